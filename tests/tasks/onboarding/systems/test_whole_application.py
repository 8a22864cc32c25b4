"""A whole application in every system at once: made, changed, failed, killed, and taken off.

The steps, the engine and the journal are the product's; OpenBao, PostgreSQL, BIND, Kubernetes and
Git are real, GitLab and Harbor the lab's simulators, all with the rights that the lab gives. Argo
CD and the hosts outside need a lab, and are not here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dns.query
import dns.rdatatype
import dns.tsigkeyring
import dns.zone
import pytest

import blocks.git_repository
import blocks.gitlab_server
import blocks.harbor
from blocks.git_repository import GitRepository
from blocks.gitlab_server import GitLabServer
from blocks.harbor import HarborRegistry
from blocks.saga_journal import SagaJournals
from domain.errors import NotFound, PermanentError, TemporaryError
from domain.findings import errors
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.neighbours import tenant_of
from domain.onboarding.onboarding_plan import AppPlan, StepLook
from domain.onboarding.saga import Act, Journal, Order, Version
from domain.onboarding.tenant import Platform, Tenant
from domain.onboarding.things import Things
from lab.bare_gitlab import GROUP, BareGitLab, bare_gitlab
from lab.bare_harbor import BareHarbor, bare_harbor
from tasks.onboarding import announce, facts, tag_change
from tasks.onboarding.engine import Ended, Saga, converge, remove
from tasks.onboarding.journal import HeldJournal
from tasks.onboarding.registry import STEPS
from tasks.onboarding.steps.gitops import set_tag

NEED_A_LAB = ("argocd", "nginx-outside")
HERE = tuple(step for step in STEPS if step.name not in NEED_A_LAB)
ENVIRONMENT = "lab"
ATTEMPTS = 5
SHARED_NAMESPACE = "infraflows-system"
"""Of the cluster, for all applications: made with the first one, and stays."""


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


class Workers:
    """Threads that try again what may pass by itself, as tasks do; one step may be made to fail."""

    def __init__(self, failing: str = "", dies_after: str = "") -> None:
        self._failing, self._dies_after = failing, dies_after

    def start(self, order: Order, tenant: Tenant, tell: Callable[[Ended], None]) -> None:
        threading.Thread(target=self._run, args=(order, tenant, tell), daemon=True).start()

    def _run(self, order: Order, tenant: Tenant, tell: Callable[[Ended], None]) -> None:
        began, error = time.monotonic(), None
        try:
            self._carry_out(order, tenant)
        except Exception as failed:
            error = failed
        tell(Ended(order, time.monotonic() - began, error))

    def _carry_out(self, order: Order, tenant: Tenant) -> None:
        step = next(step for step in HERE if step.name == order.step)
        for attempt in range(ATTEMPTS):
            try:
                step.remove(tenant) if order.act is Act.REMOVE else step.apply(tenant)
                break
            except TemporaryError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.5)
        if order.step == self._dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if order.act is Act.APPLY and order.step == self._failing:
            raise PermanentError(f"Unable to go on after {order.step}: the test stops it. Go on.")
        wanted = {} if order.act is Act.REMOVE else step.wanted(tenant)
        found = step.found(tenant)
        if found != wanted:
            raise PermanentError(f"{order.step}: found {found}, wanted {wanted}")


@dataclass
class Whole:
    """The systems, and runs on one application in them."""

    systems: Any
    gitlab: BareGitLab
    harbor: BareHarbor
    gitops: Path
    platform: Platform

    def project(self, name: str) -> Any:
        client = self.gitlab.client()
        group = client.groups.get(GROUP)
        settings = {"name": name, "namespace_id": group.id, "initialize_with_readme": True}
        return client.projects.create(settings)

    def version(self, name: str, project_id: int, **fields: Any) -> Version:
        document = {
            "name": name,
            "team": "storefront",
            "repository": f"{GROUP}/{name}",
            "owners": ["jo@example.org"],
            "kind": "python",
            "port": 8080,
            "environments": {"staging": {}, "production": {"replicas": 2}},
            "secrets": [{"path": "payment", "keys": ["API_KEY"]}],
            "database": {"connections": 5},
            **fields,
        }
        return Version(app=AppSpec.model_validate(document), project_id=project_id)

    def run(
        self, target: Version | None, name: str, workers: Workers | None = None
    ) -> tuple[Journal, AppPlan | None]:
        """One run as the flow does it, without asking a cluster whether pods run."""
        session = self.systems.server.session
        with session() as bao:
            held = HeldJournal(name, lambda: SagaJournals(bao, ENVIRONMENT))
            saga = Saga(
                self.platform,
                HERE,
                held.journal,
                held,
                workers or Workers(),
                lambda step, tenant: step.found(tenant),
            )
            if target is None:
                remove(saga, "run")
                return saga.journal, None
            plan = self.plan(target)
            converge(saga, target, plan, "run", lambda _: None)
            return saga.journal, plan

    def plan(self, target: Version) -> AppPlan:
        tenant = tenant_of(self.platform, target)
        looks = [
            StepLook(s.name, s.system, s.holds_data, s.found(tenant), s.wanted(tenant))
            for s in HERE
        ]
        return AppPlan(target.app.name, target, looks)

    def things(self, target: Version) -> dict[str, Things]:
        tenant = tenant_of(self.platform, target)
        return {step.name: found for step in HERE if (found := step.found(tenant))}

    def killed_after(self, step: str, target: Version | None, name: str) -> None:
        """Run in a child that dies right after a step did its work, before anybody noted it."""
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                self.run(target, name, Workers(dies_after=step))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"it did not come to {step}"

    # --- what an administrator sees ----------------------------------------------------------

    def inventory(self, project_id: int) -> dict[str, Any]:
        """Everything in every system, by the administrators' own means and not by the steps'."""
        return {
            "OpenBao": self._openbao(),
            "PostgreSQL": self._postgresql(),
            "Kubernetes": self._kubernetes(),
            "Harbor": self._harbor(),
            "GitLab": self._gitlab(project_id),
            "Git": _git(self.gitops, "ls-tree", "-r", "--name-only", "main").split(),
            "DNS": self._dns(),
        }

    def _openbao(self) -> dict[str, list[str]]:
        admin = self.systems.admin

        def listed(path: str) -> list[str]:
            answer = admin.list(path)
            return sorted(answer["data"]["keys"]) if answer else []

        def below(path: str) -> list[str]:
            names = listed(f"kv/metadata/{path}")
            return [
                n for key in names for n in (below(path + key) if key[-1] == "/" else [path + key])
            ]

        return {
            "policies": listed("sys/policies/acl"),
            "logins": listed("auth/kubernetes-demo/role"),
            "database roles": listed("database/roles"),
            "secrets": below(""),
        }

    def _postgresql(self) -> list[str]:
        with self.systems.postgresql.connect() as connection:
            names = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles"
            return sorted(row[0] for row in connection.execute(names).fetchall())

    def _kubernetes(self) -> list[str]:
        with self.systems.api() as api:
            names = {found["metadata"]["name"] for found in api.list("v1", "Namespace")}
        return sorted(names - {SHARED_NAMESPACE})

    def _harbor(self) -> list[str]:
        with self.harbor.client() as client:
            found = [client.get(f"/api/v2.0/{kind}").json() for kind in ("projects", "robots")]
        return sorted(each["name"] for kind in found for each in kind)

    def _gitlab(self, project_id: int) -> dict[str, Any]:
        project = self.gitlab.client().projects.get(project_id)
        return {
            "files": sorted(each["path"] for each in project.repository_tree(recursive=True)),
            "variables": sorted(each.key for each in project.variables.list(get_all=True)),
            "deploy tokens": sorted(each.name for each in project.deploytokens.list(get_all=True)),
            "protected": [_levels(each) for each in project.protectedbranches.list(get_all=True)],
            "merge": project.only_allow_merge_if_pipeline_succeeds,
        }

    def _dns(self) -> list[str]:
        server = self.systems.dns
        keys = dns.tsigkeyring.from_text({server.key_name: server.secret})
        answers = dns.query.xfr("127.0.0.1", server.zone, port=server.port, keyring=keys)
        zone = dns.zone.from_xfr(answers)
        return sorted(f"{name} {dns.rdatatype.to_text(kind)}" for name, kind in _records(zone))


def _levels(branch: Any) -> tuple[Any, ...]:
    pushes, merges = branch.push_access_levels, branch.merge_access_levels
    levels = [sorted(each["access_level"] for each in kind) for kind in (pushes, merges)]
    return branch.name, *levels, branch.allow_force_push


def _records(zone: dns.zone.Zone) -> list[tuple[Any, Any]]:
    return [(name, rdataset.rdtype) for name, rdataset in zone.iterate_rdatasets()]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BareGitLab, BareHarbor]]:
    with (
        bare_harbor(tmp_path_factory.mktemp("harbor")) as harbor,
        bare_gitlab(tmp_path_factory.mktemp("gitlab")) as gitlab,
    ):
        yield gitlab, harbor


@pytest.fixture
def whole(
    systems: Any,
    servers: tuple[BareGitLab, BareHarbor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tenant_of: Callable[..., Tenant],
) -> Whole:
    gitlab, harbor = servers
    gitops = tmp_path / "gitops.git"
    subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", gitops], check=True)
    empty = subprocess.run(
        ["git", "-C", gitops, "-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", "-m", "a",
         _git(gitops, "hash-object", "-t", "tree", "-w", "/dev/null").strip()],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    _git(gitops, "update-ref", "refs/heads/main", empty)
    systems.put("infraflows/lab/gitlab", token=gitlab.tokens["infraflows"])
    systems.put("infraflows/lab/harbor", **harbor.administrator)
    found: dict[Any, Any] = {
        GitLabServer: GitLabServer(
            url=gitlab.url, ca_file=gitlab.ca_file, credential="infraflows/lab/gitlab"
        ),
        HarborRegistry: HarborRegistry(
            url=harbor.url,
            registry=harbor.registry,
            ca_file=harbor.ca_file,
            credential="infraflows/lab/harbor",
        ),
        GitRepository: GitRepository(url=f"file://{gitops}", credential="infraflows/lab/git"),
    }
    for module in (blocks.git_repository, blocks.gitlab_server, blocks.harbor):
        monkeypatch.setattr(module, "document", lambda kind, _name: found[kind])
    platform = tenant_of("any").platform
    fields = {name: getattr(platform, name) for name in Platform.__dataclass_fields__}
    fields |= {"registry": harbor.registry, "gitlab_url": gitlab.url}
    fields |= {"openbao_url": systems.bao.address, "database_address": "10.0.0.8:5432"}
    return Whole(systems, gitlab, harbor, gitops, Platform(**fields))


def test_an_application_is_made_changed_and_taken_off_without_a_trace(whole: Whole) -> None:
    project = whole.project("roundtrip")
    target = whole.version("roundtrip", project.id)
    before = whole.inventory(project.id)
    journal, plan = whole.run(target, "roundtrip")
    assert plan is not None
    assert {line.change.act.value for line in plan.lines} == {"create"}
    assert journal.good == target
    assert set(whole.things(target)) == {step.name for step in HERE}
    assert whole.plan(target).lines == [], "a second run would change something"

    changed = whole.version("roundtrip", project.id, port=9090, environments={"staging": {}})
    _, plan = whole.run(changed, "roundtrip")
    assert plan is not None
    assert {"change", "delete"} <= {line.change.act.value for line in plan.lines}
    assert whole.plan(changed).lines == []

    whole.run(None, "roundtrip")
    assert whole.things(target) == {}
    assert whole.inventory(project.id) == before


@pytest.mark.parametrize("step", [step.name for step in HERE])
def test_a_failure_after_a_step_leaves_no_trace_of_a_first_onboarding(
    whole: Whole, step: str
) -> None:
    name = f"fails-{[s.name for s in HERE].index(step)}"
    project = whole.project(name)
    before = whole.inventory(project.id)
    with pytest.raises(PermanentError, match=r"(?s)the test stops it.*All of it was taken back"):
        whole.run(whole.version(name, project.id), name, Workers(failing=step))
    assert whole.inventory(project.id) == before


@pytest.mark.parametrize("step", [step.name for step in HERE])
def test_a_run_that_is_killed_after_a_step_is_finished_by_the_next(whole: Whole, step: str) -> None:
    name = f"killed-{[s.name for s in HERE].index(step)}"
    project = whole.project(name)
    before = whole.inventory(project.id)
    target = whole.version(name, project.id)
    whole.killed_after(step, target, name)
    journal, _ = whole.run(target, name)
    assert journal.good == target
    assert whole.plan(target).lines == []
    whole.killed_after(step, None, name)
    whole.run(None, name)
    assert whole.inventory(project.id) == before


def test_half_a_first_onboarding_is_taken_off_without_a_trace(whole: Whole) -> None:
    project = whole.project("half")
    before = whole.inventory(project.id)
    whole.killed_after("gitlab-project", whole.version("half", project.id), "half")
    assert whole.inventory(project.id) != before
    whole.run(None, "half")
    assert whole.inventory(project.id) == before


def test_what_a_preflight_and_a_deployment_ask_for_is_answered(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = whole.project("asked")
    target = whole.version("asked", project.id)
    whole.run(target, "asked")
    tenant = tenant_of(whole.platform, target)
    monkeypatch.setattr(facts, "document", lambda kind, _name: kind)
    monkeypatch.setattr(
        facts, "app_platform", lambda _: SimpleNamespace(platform=lambda: whole.platform)
    )
    seen = facts.look_around.fn(ENVIRONMENT)
    assert [finding.text for finding in errors(seen.findings)] == []
    assert {finding.subject for finding in seen.findings} == {"blocks", "OpenBao", "cluster demo"}
    assert "asked" in [journal.name for journal in seen.journals]
    assert facts.find_project.fn(ENVIRONMENT, target.app) == project.id
    assert facts.present_tags.fn(whole.platform, "asked") == {}
    (finding,) = tag_change.image_findings.fn(tenant, "v1")
    assert "Harbor has no asked/asked:v1" in finding.text
    set_tag(whole.platform, "asked", Stage.STAGING, "v1")
    assert facts.present_tags.fn(whole.platform, "asked") == {Stage.STAGING: "v1"}
    again = Version(app=target.app, project_id=project.id, tags={Stage.STAGING: "v1"})
    assert whole.plan(again).lines == [], "a deployed tag looks like drift"
    whole.run(None, "asked")


def test_a_commit_has_one_comment_however_often_it_is_told(whole: Whole) -> None:
    project = whole.project("told")
    commit = project.commits.list()[0].id
    for text in ("it fails", "it runs"):
        announce._comment.fn(ENVIRONMENT, project.id, commit, "onboard-told", text)
    notes = [
        n for d in project.commits.get(commit).discussions.list() for n in d.attributes["notes"]
    ]
    assert [note["body"].splitlines()[-1] for note in notes] == ["it runs"]


def test_an_unknown_project_is_told_with_what_to_do(whole: Whole) -> None:
    with pytest.raises(NotFound, match="make Infraflows a maintainer of it"):
        facts.find_project.fn(ENVIRONMENT, whole.version("nowhere", 0).app)
