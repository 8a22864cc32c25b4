"""A Prefect server for the flows' tests, and a site whose answers the tests give.

The flows, the gate, the lock, the artifacts and every decision are real here. What stands in is
the border to the site: the tasks that touch an outside system, replaced by name in the modules of
the flows, as `Site` answers them. It notes each act, so that a test can say what was not done.
"""

from __future__ import annotations

import contextvars
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.testing.utilities import prefect_test_harness
from prefect.variables import Variable

from blocks.git_repository import CommitResult
from domain.apply_reports import AppliedObject, ApplyReport, Change
from domain.cluster_checks import CheckResult, NodeFact, Outcome
from domain.errors import LifecycleError
from domain.host_reports import HostReport, HostStatus
from domain.hypervisors import (
    GIB,
    ApiVersion,
    HypervisorFacts,
    Node,
    Quorum,
    Storage,
    VirtualMachine,
)
from domain.inventory import ArtifactSource
from domain.machines import machines
from domain.manifest_order import ObjectKey
from domain.preflight import AddressFacts, ArtifactFacts, DnsFacts, OpenBaoFacts, ToolFacts
from domain.repository_layout import RepositoryLocation
from domain.specs import EXAMPLE, ClusterSpec, parse_spec
from domain.tofu_plan import Action, ClusterPlan, PlanRow
from tasks.proxmox.guests import Guests
from tasks.terraform.tasks import ApplyResult

RIGHTS = (
    "Sys.Audit VM.Allocate VM.Audit VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit "
    "VM.Config.Disk VM.Config.HWType VM.Config.Memory VM.Config.Network VM.Config.Options "
    "VM.PowerMgmt VM.Monitor Pool.Audit Pool.Allocate Datastore.AllocateSpace Datastore.Audit "
    "SDN.Use"
)
ENVIRONMENT = "lab"
HASH = "5d41402abc4b2a76b9719d911017c592ae3c1ed8a83d2f9a1f7c66b5d1a0c0de"
WAIT_SECONDS = 60.0


@pytest.fixture(scope="session", autouse=True)
def _prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def policy() -> Iterator[Callable[[str], None]]:
    """Set the gate policy of the environment; it is unset afterwards."""
    name = f"infraflows_gate_{ENVIRONMENT}"

    def choose(value: str) -> None:
        Variable.set(name, value, overwrite=True)

    Variable.unset(name)
    yield choose
    Variable.unset(name)


@pytest.fixture
def spec() -> ClusterSpec:
    return parse_spec(EXAMPLE)


def plan_of(actions: list[Action], plan_hash: str = HASH) -> ClusterPlan:
    rows = tuple(
        PlanRow(action, f"vm.machine[{i}]", f"demo-server-{i + 1}", "pve1", "", f"digest-{i}")
        for i, action in enumerate(actions)
    )
    return ClusterPlan(rows=rows, plan_hash=plan_hash)


@pytest.fixture(name="plan_of")
def _plan_of() -> Callable[..., ClusterPlan]:
    return plan_of


class Background:
    """A function that runs beside the test, with the test's own settings of Prefect."""

    def __init__(self, body: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        context = contextvars.copy_context()
        self._thread = Thread(target=context.run, args=(self._run, body), daemon=True)
        self._thread.start()

    def _run(self, body: Callable[[], Any]) -> None:
        try:
            self.value = body()
        except BaseException as error:
            self.error = error

    def join(self) -> Any:
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "it does not end"
        if self.error is not None:
            raise self.error
        return self.value


def eventually(look: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not seen in {WAIT_SECONDS:.0f} s: {what}")


def run_named(name: str) -> FlowRun | None:
    """Return the run with this name, or None while there is none."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name]))
        )
    return found[0] if found else None


def artifacts_of(run: FlowRun) -> dict[str, list[Any]]:
    """Return the contents of a run's artifacts by key: more than one if it was not replaced."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    contents: dict[str, list[Any]] = {}
    for artifact in found:
        is_table = artifact.type == "table" and isinstance(artifact.data, str)
        data = json.loads(artifact.data) if is_table else artifact.data
        contents.setdefault(artifact.key or "", []).append(data)
    return contents


@pytest.fixture
def in_background() -> Callable[[Callable[[], Any]], Background]:
    """Start a function beside the test; `join` returns its value or raises its error."""
    return Background


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], Any], str], Any]:
    """Look until there is something, for a bounded time."""
    return eventually


@pytest.fixture(name="run_named")
def _run_named() -> Callable[[str], FlowRun | None]:
    return run_named


@pytest.fixture(name="artifacts_of")
def _artifacts_of() -> Callable[[FlowRun], dict[str, list[Any]]]:
    return artifacts_of


class Answer:
    """What stands in for one task: called or submitted, it notes the act and answers."""

    def __init__(self, site: Site, name: str, value: Any) -> None:
        self._site, self._name, self._value = site, name, value

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._site.acts.append(self._name)
        if self._name in self._site.failures:
            raise self._site.failures[self._name]
        return self._value(*arguments, **options) if callable(self._value) else self._value

    def submit(self, *arguments: Any, **options: Any) -> Answer:
        value = self(*arguments, **options)
        return Answer(self._site, f"{self._name}'s result", lambda: value)

    def result(self) -> Any:
        return self._value()


@dataclass
class Site:
    """What the outside answers, and what the flow did to it."""

    spec: ClusterSpec
    plan: ClusterPlan = field(default_factory=lambda: plan_of([Action.CREATE] * 5))
    is_new: bool = True
    """Whether the steps after the plan find something to change."""
    openbao: OpenBaoFacts = field(default_factory=lambda: OpenBaoFacts(True, False, "2.7.2"))
    failures: dict[str, LifecycleError] = field(default_factory=dict)
    failed_checks: tuple[str, ...] = ()
    looks_in_vain: int = 0
    """How often a check can not be made before it can."""
    left: dict[str, list[str]] = field(default_factory=dict)
    acts: list[str] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    """The ledger: step and outcome."""

    def note(self, _environment: str, _target: str, step: str, outcome: str, _details: Any) -> int:
        self.steps.append((step, outcome))
        return len(self.steps)

    def hypervisor(self) -> HypervisorFacts:
        names = ("pve1", "pve2", "pve3")
        content = frozenset({"images", "rootdir"})
        return HypervisorFacts(
            version=ApiVersion("8.4.1"),
            privileges={"/": dict.fromkeys(RIGHTS.split(), True)},
            quorum=Quorum("lab", is_quorate=True, members_online=3, members=3),
            nodes=tuple(Node(name, True, 16, 64 * GIB, 2 * GIB) for name in names),
            storages=tuple(
                Storage(n, "vmstore", "zfspool", content, True, True, True, 500 * GIB, 400 * GIB)
                for n in names
            ),
            pools=(),
            machines=(
                VirtualMachine(
                    9000, "debian-12-cloud", "pve1", "stopped", is_template=True, has_agent=True
                ),
            ),
            unknown={},
        )

    def commit(self) -> CommitResult:
        return CommitResult("0123456789abcdef0123456789abcdef01234567", self.is_new)

    def host_reports(self) -> list[HostReport]:
        status = HostStatus.CHANGED if self.is_new else HostStatus.OK
        changed = 3 if self.is_new else 0
        return [HostReport(m.name, status, 40, changed) for m in machines(self.spec)]

    def apply_report(self) -> ApplyReport:
        change = Change.CREATED if self.is_new else Change.UNCHANGED
        key = ObjectKey("v1", "Namespace", "", "web")
        return ApplyReport((AppliedObject(key, change),), 0.1, "0123")

    def checks(self) -> tuple[list[CheckResult], tuple[NodeFact, ...]]:
        names = ("API", "etcd", *self.failed_checks)
        results = [
            CheckResult(n, Outcome.FAILED if n in self.failed_checks else Outcome.PASSED, "seen")
            for n in names
        ]
        if self.looks_in_vain:
            self.looks_in_vain -= 1
            results.append(CheckResult("encryption at rest", Outcome.UNKNOWN, "it did not tell"))
        version = self.spec.kubernetes.version
        return results, tuple(NodeFact(m.name, True, version) for m in machines(self.spec))

    def answers(self) -> dict[str, Any]:
        """By task: what it returns."""
        addresses = {m.name: m.address for m in machines(self.spec)}
        keys = dict.fromkeys(addresses.values(), "ssh-ed25519 AAAA")
        result = ApplyResult(5, 0, 0, 1, 1.0, {})
        return {
            "gather_proxmox_facts": self.hypervisor(),
            "gather_openbao_facts": lambda *_: self.openbao,
            "gather_dns_facts": DnsFacts(is_reachable=True, zone_exists=True),
            "gather_tool_facts": ToolFacts(
                {"tofu": "1.12.6", "proxmox provider": "0.111.1", "ansible": "2", "ssh": "9.2"}
            ),
            "gather_artifact_facts": ArtifactFacts(is_reachable=True, has_version=True),
            "gather_address_facts": AddressFacts(),
            "adopt_or_clear": [],
            "plan": lambda *_, **__: self.plan,
            "ensure_pool": lambda *_: self.is_new,
            "apply": result,
            "wait_for_guests": Guests(addresses, keys),
            "artifact_source": ArtifactSource("https://mirror.example/rke2", "a CA's text"),
            "commit_inventory": lambda *_: self.commit(),
            "publish_names": lambda *_: ["demo.lab.infraflows.internal"] if self.is_new else [],
            "ensure_cluster_secrets": lambda *_: self.is_new,
            "configure": lambda *_: self.host_reports(),
            "store_kubeconfig": lambda *_: self.is_new,
            "repository_location": RepositoryLocation("https://git.example/site.git", "main"),
            "render_platform": {"web.yaml": "kind: Namespace"},
            "commit_platform": lambda *_: self.commit(),
            "remove_stale_nodes": [],
            "apply_platform": lambda *_: self.apply_report(),
            "probe": {},
            "verify_cluster": lambda *_: self.checks(),
            "remove_leftover_machines": [],
            "remove_pool": lambda *_: self.is_new,
            "remove_names": lambda *_: ["demo"] if self.is_new else [],
            "remove_cluster_files": lambda *_: self.commit(),
            "remove_cluster_secrets": lambda *_: ["clusters/demo/rke2"] if self.is_new else [],
            "remove_state": lambda *_: self.is_new,
            "machines_left": lambda *_: self.left.get("Proxmox", []),
            "state_resources_left": lambda *_: self.left.get("OpenTofu state", []),
            "names_left": lambda *_: self.left.get("DNS", []),
            "cluster_files_left": lambda *_: self.left.get("Git", []),
            "secrets_left": lambda *_: self.left.get("OpenBao", []),
        }


@pytest.fixture
def site(spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch, policy: Callable[[str], None]) -> Site:
    """A site where everything fits, under the lab's policy; a test changes what it is about."""
    import flows.cluster_phases
    import flows.cluster_run
    import flows.leftovers
    import flows.removal_phases

    made = Site(spec)
    policy("automatic")
    modules = (flows.cluster_phases, flows.removal_phases, flows.leftovers)
    for name, value in made.answers().items():
        holders = [module for module in modules if hasattr(module, name)]
        assert holders, f"no flow uses {name}"
        for module in holders:
            monkeypatch.setattr(module, name, Answer(made, name, value))
    monkeypatch.setattr(flows.cluster_run, "record_step", made.note)
    return made
