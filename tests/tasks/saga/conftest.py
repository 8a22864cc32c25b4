"""A real OpenBao for the journal, and a world of files whose steps fail or die where told.

A step's things are files: `<root>/<step>/<application>/<thing>`. A run is a child process that is
killed by SIGKILL at its n-th edge; before and after each write of the journal is one, and before,
within and after each act of a step.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from blocks.openbao import OpenBaoServer
from blocks.saga_journal import SagaJournals
from domain.errors import PermanentError
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.neighbours import tenant_of
from domain.onboarding.onboarding_plan import AppPlan, StepLook
from domain.onboarding.saga import Act as SagaAct
from domain.onboarding.saga import Journal, Order, Version
from domain.onboarding.tenant import Platform, Tenant
from domain.onboarding.things import Things, digest
from lab.bare_services import bare_openbao
from tasks.onboarding.engine import Ended, Saga, converge, remove
from tasks.onboarding.journal import HeldJournal

ENVIRONMENT = "trial"
RIGHTS = """
path "kv/data/onboarding/trial/*"     { capabilities = ["create", "read", "update"] }
path "kv/metadata/onboarding/trial/*" { capabilities = ["read", "list", "delete"] }
path "kv/metadata/onboarding/trial"   { capabilities = ["list"] }
"""
PLATFORM = Platform(
    environment=ENVIRONMENT,
    clusters=dict.fromkeys(Stage, "demo"),
    domain="apps.example.org",
    ingress_address="127.0.0.1",
    outside_address="",
    registry="registry.example.org",
    gitops_url="https://git.example.org/gitops.git",
    gitops_branch="main",
    gitops_credential="infraflows/trial/git",
    gitlab_url="https://gitlab.example.org",
    gateway_url="https://gateway.example.org",
    database_mount="database",
    database_server="apps",
    database_credential="infraflows/trial/database",
    pki_mount="pki",
    pki_role="apps",
)


def spec(port: int = 8080, name: str = "shop") -> AppSpec:
    return AppSpec.model_validate(
        {
            "name": name,
            "team": "storefront",
            "repository": f"storefront/{name}",
            "owners": ["ada@example.org"],
            "kind": "python",
            "port": port,
            "environments": {"staging": {}, "production": {}},
        }
    )


def version(port: int = 8080, name: str = "shop") -> Version:
    return Version(app=spec(port, name), project_id=7, tags=dict.fromkeys(Stage, "1"))


class Edges:
    """Counts edges and dies at one of them."""

    def __init__(self, kill_at: int | None = None, log: Path | None = None) -> None:
        self._kill_at, self._log = kill_at, log
        self._count = 0
        self._lock = threading.Lock()

    def point(self, name: str) -> None:
        with self._lock:
            if self._count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # the signal comes at once; nothing more is done
            self._count += 1
            if self._log:
                with self._log.open("a") as file:
                    file.write(name + "\n")


@dataclass
class FileStep:
    """Two things a stage; changed when the port is."""

    name: str
    root: Path
    needs: tuple[str, ...] = ()
    holds_data: bool = False
    edges: Edges = field(default_factory=Edges)
    fails: tuple[str, ...] = ()
    """`apply` or `remove`: refused half-way."""

    @property
    def system(self) -> str:
        return f"{self.name}-system"

    def _directory(self, tenant: Tenant) -> Path:
        return self.root / self.name / tenant.name

    def wanted(self, tenant: Tenant) -> Things:
        state = digest([self.name, tenant.app.port])
        return {f"{part}-{stage.value}": state for stage in tenant.app.stages for part in "ab"}

    def found(self, tenant: Tenant) -> Things:
        directory = self._directory(tenant)
        if not directory.is_dir():
            return {}
        return {file.name: file.read_text() for file in sorted(directory.iterdir())}

    def apply(self, tenant: Tenant) -> None:
        self.edges.point(f"{self.name}: before apply")
        directory = self._directory(tenant)
        directory.mkdir(parents=True, exist_ok=True)
        for name in set(self.found(tenant)) - set(self.wanted(tenant)):
            (directory / name).unlink(missing_ok=True)
        for number, (name, state) in enumerate(self.wanted(tenant).items()):
            if number == 1:
                self.edges.point(f"{self.name}: within apply")
                self._refuse("apply")
            (directory / name).write_text(state)
        self.edges.point(f"{self.name}: after apply")

    def remove(self, tenant: Tenant) -> None:
        self.edges.point(f"{self.name}: before remove")
        for number, name in enumerate(self.found(tenant)):
            if number == 1:
                self.edges.point(f"{self.name}: within remove")
                self._refuse("remove")
            (self._directory(tenant) / name).unlink(missing_ok=True)
        self.edges.point(f"{self.name}: after remove")

    def _refuse(self, act: str) -> None:
        if act in self.fails:
            raise PermanentError(f"Unable to {act} {self.name}: it is refused. Allow it.")


class ThreadWorkers:
    """Carries orders out in threads, as Prefect's task runner does."""

    def __init__(self, steps: list[FileStep]) -> None:
        self._steps = {step.name: step for step in steps}

    def start(self, order: Order, tenant: Tenant, tell: Callable[[Ended], None]) -> None:
        threading.Thread(target=self._run, args=(order, tenant, tell), daemon=True).start()

    def _run(self, order: Order, tenant: Tenant, tell: Callable[[Ended], None]) -> None:
        step = self._steps[order.step]
        try:
            step.remove(tenant) if order.act is SagaAct.REMOVE else step.apply(tenant)
        except Exception as error:
            tell(Ended(order, 0.0, error))
        else:
            tell(Ended(order, 0.0))


class WatchedJournal:
    """The held journal; before and after each write is an edge."""

    def __init__(self, held: HeldJournal, edges: Edges) -> None:
        self._held, self._edges = held, edges

    def save(self, journal: Journal) -> None:
        self._edges.point("before the journal's write")
        self._held.save(journal)
        self._edges.point("after the journal's write")

    def forget(self) -> None:
        self._edges.point("before the journal's end")
        self._held.forget()
        self._edges.point("after the journal's end")


@dataclass
class World:
    """One place for applications, and runs on it."""

    root: Path
    open_journals: Callable[[], SagaJournals]

    def steps(
        self, edges: Edges | None = None, fails: dict[str, tuple[str, ...]] | None = None
    ) -> list[FileStep]:
        needs: dict[str, tuple[str, ...]] = {
            "project": (),
            "database": (),
            "access": ("project",),
            "delivery": ("access", "database"),
        }
        return [
            FileStep(
                name,
                self.root,
                needed,
                name == "database",
                edges or Edges(),
                (fails or {}).get(name, ()),
            )
            for name, needed in needs.items()
        ]

    def run(
        self,
        target: Version | None,
        *,
        name: str = "shop",
        edges: Edges | None = None,
        fails: dict[str, tuple[str, ...]] | None = None,
        verify: Callable[[Tenant], None] = lambda _: None,
    ) -> Journal:
        """One run as the flow does it: look, plan, carry out."""
        watched = edges or Edges()
        steps: list[Any] = self.steps(watched, fails)
        held = HeldJournal(name, self.open_journals)
        saga = Saga(
            PLATFORM,
            steps,
            held.journal,
            WatchedJournal(held, watched),
            ThreadWorkers(steps),
            lambda step, tenant: step.found(tenant),
        )
        if target is None:
            remove(saga, "run")
        else:
            tenant = tenant_of(PLATFORM, target)
            looks = [
                StepLook(s.name, s.system, s.holds_data, s.found(tenant), s.wanted(tenant))
                for s in steps
            ]
            converge(saga, target, AppPlan(name, target, looks), "run", verify)
        return saga.journal

    def killed_run(self, kill_at: int, target: Version | None, **options: Any) -> bool:
        """Run in a child that dies at an edge; False when it ended before it came there."""
        child = os.fork()
        if child == 0:
            try:
                self.run(target, edges=Edges(kill_at), **options)
                os._exit(0)
            except BaseException:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)

    def edges_of(self, target: Version | None, **options: Any) -> int:
        """Run to the end and return how many edges there were."""
        log = self.root / "edges.log"
        log.unlink(missing_ok=True)
        with suppress(PermanentError):
            self.run(target, edges=Edges(log=log), **options)
        return len(log.read_text().splitlines())

    def journal(self, name: str = "shop") -> Journal | None:
        entry = self.open_journals().load(name)
        return None if entry.is_new else entry.journal

    def things(self, name: str = "shop") -> dict[str, Things]:
        """Everything that there is of an application, without empty steps."""
        tenant = tenant_of(PLATFORM, version(name=name))
        return {s.name: found for s in self.steps() if (found := s.found(tenant))}

    def wanted(self, target: Version) -> dict[str, Things]:
        tenant = tenant_of(PLATFORM, target)
        return {step.name: step.wanted(tenant) for step in self.steps()}

    def clear(self, name: str = "shop") -> None:
        self.run(None, name=name)
        assert (self.journal(name), self.things(name)) == (None, {})


@pytest.fixture(scope="session")
def open_journals() -> Iterator[Callable[[], SagaJournals]]:
    """Log in to a real OpenBao with no more rights than the block asks for."""
    directory = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="infraflows-saga-"))
    try:
        with bare_openbao(directory) as bao:
            client = bao.client()
            client.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
            client.sys.create_or_update_policy("worker", RIGHTS)
            token = client.auth.token.create(policies=["worker"])["auth"]["client_token"]
            server = OpenBaoServer(
                address=bao.address, ca_file=bao.ca_file, role_id_file="", secret_id_file=""
            )
            yield lambda: SagaJournals(server.holder(token), ENVIRONMENT)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def world(tmp_path: Path, open_journals: Callable[[], SagaJournals]) -> Iterator[World]:
    """A fresh place beside which another application lives, which no test may touch."""
    made = World(tmp_path, open_journals)
    made.run(version(name="other"), name="other")
    others = made.things("other")
    yield made
    assert made.things("other") == others, "things of another application were touched"
    made.clear("other")
    if made.journal() is not None:
        made.clear()


@pytest.fixture(name="version")
def _version() -> Callable[..., Version]:
    return version


@pytest.fixture(name="platform")
def _platform() -> Platform:
    return PLATFORM
