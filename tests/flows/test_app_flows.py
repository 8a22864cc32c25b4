"""The flows on applications: what stops them, what waits, what is taken back, and what is told.

Flow, gate, lock, tasks, saga, plan and artifacts are real. What stands in is the border to the
site: steps that hold their things in memory, and the tasks that would ask a cluster or GitLab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prefect.flow_runs import resume_flow_run

from domain.errors import NotFound, PermanentError, PolicyViolation
from domain.findings import error, ok
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.delivery_checks import DeliveryCheck, Verdict
from domain.onboarding.saga import Act, Journal, Order, Version, before, begin
from domain.onboarding.tenant import Platform, Tenant
from domain.onboarding.things import Things, digest
from flows.deploy_app import deploy_app
from flows.offboard_app import offboard_app
from flows.onboard_app import onboard_app
from flows.rollback_app import rollback_app
from tasks.onboarding import registry
from tasks.onboarding.engine import step_orders
from tasks.onboarding.facts import Surroundings
from tasks.runs.pause_switch import lift_pause, set_pause

ENVIRONMENT = "lab"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def an_app(name: str, port: int = 8080, **more: Any) -> AppSpec:
    return AppSpec.model_validate(
        {
            "name": name,
            "team": "storefront",
            "repository": f"storefront/{name}",
            "owners": ["ada@example.org"],
            "kind": "python",
            "port": port,
            "environments": {"staging": {}, "production": {}},
            **more,
        }
    )


@dataclass
class MemoryStep:
    """One thing a stage; wanted anew when the port changes."""

    name: str
    needs: tuple[str, ...] = ()
    holds_data: bool = False
    things: dict[str, dict[str, str]] = field(default_factory=dict)
    refuses: str = ""
    """The act that is refused."""
    spoils: bool = False
    """Apply does not do what it should."""

    @property
    def system(self) -> str:
        return f"{self.name}-system"

    def wanted(self, tenant: Tenant) -> Things:
        state = digest(tenant.app.port)
        return {f"{self.name} {tenant.scoped(stage)}": state for stage in tenant.app.stages}

    def found(self, tenant: Tenant) -> Things:
        return dict(self.things.get(tenant.name, {}))

    def apply(self, tenant: Tenant) -> None:
        self._refuse("apply")
        self.things[tenant.name] = {} if self.spoils else dict(self.wanted(tenant))

    def remove(self, tenant: Tenant) -> None:
        self._refuse("remove")
        self.things.pop(tenant.name, None)

    def _refuse(self, act: str) -> None:
        if self.refuses == act:
            raise PermanentError(f"Unable to {act} {self.name}: it is full. Make room.")


@dataclass
class Held:
    """A journal in memory."""

    place: Place
    name: str

    def save(self, journal: Journal) -> None:
        self.place.journals[self.name] = journal

    def forget(self) -> None:
        self.place.journals.pop(self.name, None)


@dataclass
class Place:
    """Where applications land, and what the flows did there."""

    steps: list[MemoryStep]
    platform: Platform
    journals: dict[str, Journal] = field(default_factory=dict)
    tags: dict[Stage, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    findings: list[Any] = field(default_factory=lambda: [ok("OpenBao", "unsealed")])
    broken_version: str = ""
    is_silent: bool = False
    unbuilt_tags: tuple[str, ...] = ()
    ledger: list[tuple[str, str]] = field(default_factory=list)
    comments: dict[str, str] = field(default_factory=dict)
    disconnected: list[int] = field(default_factory=list)

    def step(self, name: str) -> MemoryStep:
        return next(step for step in self.steps if step.name == name)

    def all_things(self, app: str) -> dict[str, Things]:
        return {step.name: dict(t) for step in self.steps if (t := step.things.get(app))}

    def onboarded(self, app: AppSpec, project_id: int = 7) -> None:
        """Put an application there as an onboarding leaves it, without a run."""
        version = Version(app=app, project_id=project_id, tags=self.tags)
        self.journals[app.name] = Journal(name=app.name, generation=1, good=version)
        tenant = Tenant(self.platform, app, project_id, self.tags)
        for step in self.steps:
            step.things[app.name] = dict(step.wanted(tenant))

    def look_around(self, _environment: str) -> Surroundings:
        return Surroundings(self.findings, self.platform, list(self.journals.values()))

    def look_for_image(self, _tenant: Tenant, tag: str) -> list[Any]:
        is_there = tag not in self.unbuilt_tags
        return [ok("image", "there") if is_there else error("image", f"Harbor has no {tag}", "")]

    def verify(self, tenant: Tenant, stages: list[Stage]) -> list[DeliveryCheck]:
        return [self._check(tenant, stage) for stage in stages]

    def _check(self, tenant: Tenant, stage: Stage) -> DeliveryCheck:
        tag = self.tags.get(stage, "")
        is_bad = self.is_silent or (tag and tag == self.broken_version)
        verdict = Verdict.FAILED if is_bad else Verdict.PASSED
        return DeliveryCheck(stage, "https://x/", verdict, f"version {tag}")

    def set_tag(self, _platform: Any, _app: str, stage: Stage, tag: str) -> str:
        self.tags[stage] = tag
        self.history.append(tag)
        return COMMIT


@contextmanager
def _held(place: Place, name: str) -> Iterator[Held]:
    yield Held(place, name)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, policy: Callable[[str], None]) -> Place:
    """A place where everything fits; a test changes what it is about."""
    import flows.app_phases
    import flows.app_run
    import flows.deploy_app
    import flows.offboard_app
    import flows.onboard_app
    import flows.rollback_app
    import flows.tag_phases
    import tasks.onboarding.tag_change
    import tasks.onboarding.tasks

    policy("automatic")
    platform = Platform(
        environment=ENVIRONMENT,
        clusters=dict.fromkeys(Stage, "demo"),
        domain="apps.example.org",
        ingress_address="192.0.2.1",
        outside_address="",
        registry="registry.example.org",
        gitops_url="https://git.example.org/gitops.git",
        gitops_branch="main",
        gitops_credential="infraflows/lab/git",
        gitlab_url="https://gitlab.example.org",
        gateway_url="https://gateway.example.org",
        database_mount="database",
        database_server="apps",
        database_credential="infraflows/lab/database",
        pki_mount="pki",
        pki_role="apps",
        openbao_url="https://openbao.example.org",
    )
    steps = [
        MemoryStep("project"),
        MemoryStep("database", holds_data=True),
        MemoryStep("gitops", ("project",)),
        MemoryStep("delivery", ("gitops", "database")),
    ]
    made = Place(steps, platform)
    monkeypatch.setattr(registry, "STEPS", tuple(steps))
    for module in (flows.app_phases, flows.tag_phases):
        monkeypatch.setattr(module, "verify_stages", made.verify)
        monkeypatch.setattr(module, "present_tags", lambda *_: dict(made.tags))
    monkeypatch.setattr(flows.app_phases, "look_around", made.look_around)
    monkeypatch.setattr(flows.app_phases, "find_project", lambda *_: 7)
    monkeypatch.setattr(
        flows.app_phases,
        "disconnect_project_webhook",
        lambda _, number: made.disconnected.append(number),
    )
    monkeypatch.setattr(flows.tag_phases, "tag_before", lambda *_: made.history[-2])
    monkeypatch.setattr(flows.tag_phases, "image_findings", made.look_for_image)
    monkeypatch.setattr(tasks.onboarding.tag_change, "set_tag", made.set_tag)
    for module in (flows.onboard_app, flows.offboard_app, flows.deploy_app, flows.rollback_app):
        monkeypatch.setattr(module, "held_journal", lambda _, name: _held(made, name))

    def note(_environment: str, _target: str, step: str, outcome: str, _details: Any) -> int:
        made.ledger.append((step, outcome))
        return len(made.ledger)

    def comment(_environment: str, _project: int, commit: str, marker: str, text: str) -> bool:
        made.comments[f"{commit[:8]} {marker}"] = text
        return True

    monkeypatch.setattr(flows.app_run, "record_step", note)
    for holder in (tasks.onboarding.tasks, tasks.onboarding.tag_change):
        monkeypatch.setattr(holder, "record_line", note)
    monkeypatch.setattr(flows.app_run, "comment_on_commit", comment)
    return made


@pytest.fixture
def approve(eventually: Any, run_named: Any, in_background: Any) -> Callable[..., Any]:
    """Start a flow, approve what it waits with, and return its value or error."""

    def run(body: Callable[[], Any], name: str, plan_hash: str = "") -> Any:
        from flows.gate import Approval

        running = in_background(body)

        def waiting() -> Any:
            found = run_named(name)
            return found if found and found.state and found.state.name == "Paused" else None

        paused = eventually(waiting, f"{name} waits")
        shown = plan_hash or _shown_hash(paused)
        resume_flow_run(
            paused.id,
            run_input=Approval(approve=True, plan_hash=shown, approved_by="Ada").model_dump(),
        )
        return running.join()

    return run


def _shown_hash(run: Any) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    text = next(a.description for a in found if (a.key or "").endswith("-plan"))
    return str(text).split("`")[1]


# --- onboarding ----------------------------------------------------------------------------------


def test_an_application_is_made_in_every_system_and_its_commit_is_told(
    place: Place, run_named: Any, artifacts_of: Any
) -> None:
    wish = an_app("first", secrets=[{"path": "payment", "keys": ["API_KEY"]}])
    onboard_app(ENVIRONMENT, wish, commit=COMMIT)
    assert set(place.all_things("first")) == {"project", "database", "gitops", "delivery"}
    journal = place.journals["first"]
    assert journal.attempt is None
    assert journal.good is not None
    assert journal.good.project_id == 7
    assert [step for step, _ in place.ledger][-1] == "onboard"
    assert {step for step, _ in place.ledger[:-1]} == {f"apply {s.name}" for s in place.steps}
    text = place.comments["01234567 onboard-first"]
    assert "**✔ first: onboarded**" in text
    assert "https://first.apps.example.org/" in text
    assert "| delivery |" in text
    shown = artifacts_of(run_named("onboard first"))
    assert len(shown["app-first-plan"][0]) == 8
    assert {row["state"] for row in shown["app-first-steps"][-1]} == {"✔ done"}
    assert "Seconds per phase" in shown["app-first-report"][0]


def test_a_second_run_changes_nothing_and_says_so(place: Place) -> None:
    place.onboarded(an_app("twice"))
    for step in place.steps:
        step.refuses = "apply"
    onboard_app(ENVIRONMENT, an_app("twice"), commit=COMMIT)
    assert place.ledger == []
    assert "= twice: onboarded" in place.comments["01234567 onboard-twice"]


def test_a_step_that_fails_takes_a_first_onboarding_back_and_the_commit_is_told(
    place: Place,
) -> None:
    place.step("delivery").refuses = "apply"
    with pytest.raises(PermanentError, match=r"(?s)it is full.*All of it was taken back"):
        onboard_app(ENVIRONMENT, an_app("failing"), commit=COMMIT)
    assert place.all_things("failing") == {}
    assert "failing" not in place.journals
    assert place.ledger[-1] == ("onboard", "failed")
    text = place.comments["01234567 onboard-failing"]
    assert "✘ failing: onboard failed" in text
    assert "it is full" in text


def test_a_step_whose_result_is_not_what_was_wanted_fails_by_name(place: Place) -> None:
    place.step("gitops").spoils = True
    with pytest.raises(PermanentError, match="gitops spoilt-staging is missing"):
        onboard_app(ENVIRONMENT, an_app("spoilt"))
    assert place.all_things("spoilt") == {}


def test_an_application_that_does_not_answer_is_taken_back(place: Place) -> None:
    place.is_silent = True
    with pytest.raises(PermanentError, match="does not run as it should"):
        onboard_app(ENVIRONMENT, an_app("silent"))
    assert (place.all_things("silent"), place.journals) == ({}, {})


def test_every_fault_is_told_at_once_and_nothing_is_changed(place: Place) -> None:
    other = Version(
        app=an_app("other", environments={"staging": {"hostnames": ["shop.example.org"]}}),
        project_id=7,
    )
    place.journals["other"] = Journal(name="other", good=other)
    wish = an_app("greedy", environments={"staging": {"hostnames": ["shop.example.org"]}})
    with pytest.raises(PermanentError) as caught:
        onboard_app(ENVIRONMENT, wish)
    text = str(caught.value)
    assert "2 errors; nothing was changed" in text
    assert "shop.example.org belongs to other" in text
    assert "GitLab project 7 is the application other" in text
    assert place.all_things("greedy") == {}


def test_a_sealed_openbao_stops_the_run_before_it_looks_further(place: Place) -> None:
    place.findings = [error("OpenBao", "it is sealed", "Unseal it: bao operator unseal.")]
    with pytest.raises(PermanentError, match="OpenBao: it is sealed"):
        onboard_app(ENVIRONMENT, an_app("sealed"))


def test_a_name_that_another_project_has_is_refused(place: Place) -> None:
    place.onboarded(an_app("taken"), 7)
    with pytest.raises(PermanentError, match="taken is the application of GitLab project 7"):
        onboard_app(ENVIRONMENT, an_app("taken"), project_id=8)


def test_a_paused_environment_is_not_touched(place: Place) -> None:
    set_pause(ENVIRONMENT, "storage is being moved", "Ada")
    try:
        with pytest.raises(PolicyViolation, match="storage is being moved"):
            onboard_app(ENVIRONMENT, an_app("paused"))
    finally:
        lift_pause(ENVIRONMENT)
    assert place.all_things("paused") == {}


def test_what_somebody_changed_by_hand_is_shown_as_drift_and_put_right(
    place: Place, run_named: Any, artifacts_of: Any
) -> None:
    place.onboarded(an_app("drifting"))
    place.step("gitops").things["drifting"]["gitops drifting-staging"] = "by hand"
    run = onboard_app.with_options(flow_run_name="drifts again")
    run(ENVIRONMENT, an_app("drifting"))
    rows = artifacts_of(run_named("drifts again"))["app-drifting-plan"][0]
    assert [(row["thing"], row["why"]) for row in rows] == [("gitops drifting-staging", "drift")]
    assert place.step("gitops").things["drifting"]["gitops drifting-staging"] != "by hand"


def test_a_change_that_deletes_waits_for_a_person_even_under_the_automatic_policy(
    place: Place, approve: Any
) -> None:
    place.onboarded(an_app("shrinking"))
    smaller = an_app("shrinking", environments={"staging": {}})
    run = onboard_app.with_options(flow_run_name="shrinks")
    approve(lambda: run(ENVIRONMENT, smaller), "shrinks")
    assert all(len(things) == 1 for things in place.all_things("shrinking").values())


def test_an_approval_is_void_when_the_systems_change_while_it_is_waited_for(
    place: Place, approve: Any
) -> None:
    place.onboarded(an_app("moving"))
    smaller = an_app("moving", environments={"staging": {}})
    run = onboard_app.with_options(flow_run_name="moves")

    def body() -> None:
        run(ENVIRONMENT, smaller)

    found = place.step("project").found
    looks = iter(range(100))

    def changing(tenant: Tenant) -> Things:
        # Each look finds another state: what was approved is not what would be done.
        return {**found(tenant), f"stray {next(looks)}": "x"}

    place.step("project").found = changing  # type: ignore[method-assign]
    with pytest.raises(PolicyViolation, match="the approval is void"):
        approve(body, "moves")
    assert len(place.step("database").things["moving"]) == 2


def test_a_run_finishes_what_a_killed_one_left(place: Place) -> None:
    wish = an_app("killed")
    orders = step_orders(registry.STEPS)
    version = Version(app=wish, project_id=7)
    journal = begin(Journal(name="killed"), version, "dead", steps=orders, unchanged=())
    place.journals["killed"] = before(journal, [Order("project", Act.APPLY)])
    onboard_app(ENVIRONMENT, wish)
    assert set(place.all_things("killed")) == {"project", "database", "gitops", "delivery"}
    assert place.journals["killed"].attempt is None


# --- off-boarding --------------------------------------------------------------------------------


def test_an_off_boarding_waits_removes_everything_and_proves_it(
    place: Place, approve: Any, run_named: Any, artifacts_of: Any
) -> None:
    place.onboarded(an_app("leaving"))
    place.onboarded(an_app("staying"), 9)
    staying = place.all_things("staying")
    approve(lambda: offboard_app(ENVIRONMENT, "leaving"), "take leaving off")
    assert place.all_things("leaving") == {}
    assert "leaving" not in place.journals
    assert place.all_things("staying") == staying
    assert ("off-board", "removed") in place.ledger
    assert place.disconnected == [7]
    rows = artifacts_of(run_named("take leaving off"))["app-leaving-inventory"][0]
    assert len(rows) == 8
    assert {row["result"] for row in rows} == {"- gone"}


def test_an_off_boarding_of_nothing_says_so_and_waits_for_nobody(place: Place) -> None:
    offboard_app(ENVIRONMENT, "nobody")
    assert place.ledger == []


def test_things_without_a_journal_are_found_and_removed(place: Place, approve: Any) -> None:
    place.onboarded(an_app("forgotten"))
    place.journals.clear()
    approve(lambda: offboard_app(ENVIRONMENT, "forgotten"), "take forgotten off")
    assert place.all_things("forgotten") == {}


def test_a_removal_that_fails_names_what_is_left_and_keeps_the_journal(
    place: Place, approve: Any
) -> None:
    place.onboarded(an_app("stuck"))
    place.step("database").refuses = "remove"
    with pytest.raises(PermanentError, match=r"database-system \(database\): database stuck-"):
        approve(lambda: offboard_app(ENVIRONMENT, "stuck"), "take stuck off")
    assert place.journals["stuck"].attempt is not None


# --- deployment and roll-back ---------------------------------------------------------------------


def test_a_deployment_changes_the_tag_and_nothing_else(place: Place) -> None:
    place.onboarded(an_app("served"))
    for step in place.steps:
        step.refuses = "apply"
    deploy_app(ENVIRONMENT, "served", Stage.STAGING, "0a1b2c3d")
    assert place.tags == {Stage.STAGING: "0a1b2c3d"}
    good = place.journals["served"].good
    assert good is not None
    assert good.tags == {Stage.STAGING: "0a1b2c3d"}
    assert "staging serves 0a1b2c3d" in place.comments["0a1b2c3d deploy-served-staging"]


def test_a_commit_that_two_stages_get_has_a_comment_for_each(place: Place) -> None:
    place.onboarded(an_app("twofold"))
    for stage in (Stage.STAGING, Stage.PRODUCTION):
        deploy_app(ENVIRONMENT, "twofold", stage, "0a1b2c3d")
        text = place.comments[f"0a1b2c3d deploy-twofold-{stage.value}"]
        assert f"{stage.value} serves 0a1b2c3d" in text


def test_a_version_that_does_not_serve_gives_way_to_the_former_one(place: Place) -> None:
    place.onboarded(an_app("careful"))
    place.tags = {Stage.STAGING: "v1"}
    place.broken_version = "v2"
    with pytest.raises(PermanentError, match="back at its last good version and answers"):
        deploy_app(ENVIRONMENT, "careful", Stage.STAGING, "v2")
    assert place.tags == {Stage.STAGING: "v1"}
    assert place.journals["careful"].attempt is None


def test_a_roll_back_brings_the_previous_version_back(place: Place) -> None:
    place.onboarded(an_app("rolling"))
    place.tags, place.history = {Stage.STAGING: "v2"}, ["v1", "v2"]
    rollback_app(ENVIRONMENT, "rolling", Stage.STAGING)
    assert place.tags == {Stage.STAGING: "v1"}
    assert ("roll back", "changed") in place.ledger


def test_an_application_that_is_not_onboarded_cannot_be_deployed(place: Place) -> None:
    with pytest.raises(NotFound, match="it is not onboarded"):
        deploy_app(ENVIRONMENT, "unknown", Stage.STAGING, "v1")


def test_a_tag_of_which_there_is_no_image_is_not_deployed(place: Place) -> None:
    place.onboarded(an_app("hasty"))
    place.unbuilt_tags = ("v9",)
    with pytest.raises(PermanentError, match="Harbor has no v9"):
        deploy_app(ENVIRONMENT, "hasty", Stage.STAGING, "v9")
    assert place.tags == {}


def test_manifests_that_the_cluster_would_refuse_stop_the_run(place: Place) -> None:
    wish = an_app("wild", environments={"staging": {"hostnames": ["apps.example.org"]}})
    with pytest.raises(PermanentError, match=r"apps\.example\.org is the platform's own"):
        onboard_app(ENVIRONMENT, wish)
    assert place.all_things("wild") == {}


def test_a_stage_that_the_spec_does_not_have_cannot_be_deployed_to(place: Place) -> None:
    place.onboarded(an_app("small", environments={"staging": {}}))
    with pytest.raises(NotFound, match="it has no such stage"):
        deploy_app(ENVIRONMENT, "small", Stage.PRODUCTION, "v1")


def test_a_tag_with_a_shell_in_it_is_refused_before_anything_starts(place: Place) -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError):
        deploy_app(ENVIRONMENT, "served", Stage.STAGING, "v1; rm -rf /")
