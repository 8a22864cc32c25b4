"""The rotation flow: what comes first, what is held back, what is not touched, and how it ends.

Real here: flow, gate, lock, pause switch, artifacts, schedule, and the engine that drives each
secret. What stands in: the adapters that the registry would make, the record's store, and the
look at the site.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

import flows.rotation_phases
import flows.rotation_run
import tasks.rotation.tasks
from blocks.rotation.store import Record
from deployments.approve import answer
from domain.errors import NotFound, PermanentError, PolicyViolation
from domain.findings import error
from domain.rotation.blast_radius import AccessFacts, Holder, Leak, LeakKind
from domain.rotation.contract import Proof, SecretRef, Seen, Values
from domain.rotation.policy import RotationPolicy, parse_policy
from domain.rotation.schedule import SecretFact
from domain.rotation.state import RotationState, Step
from flows.rotate_secrets import LeakHint, rotate_after_leak, rotate_one_secret, rotate_secrets
from tasks.rotation.facts import SecretFacts, Surroundings
from tasks.runs.pause_switch import lift_pause, set_pause

ENVIRONMENT = "lab"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CANARY = "canary-value-of"
PLAIN, ASKING = "plain", "unseal"
Latest = Callable[[], dict[str, list[Any]]]


def policy_of(**changes: Any) -> RotationPolicy:
    fast = {"max_age_days": 30, "attempts": 1, "values": 1, "parallel": 8, "retry_seconds": 0.1}
    document: dict[str, Any] = {
        "environments": ["test", "staging", "production"],
        "classes": {PLAIN: fast, ASKING: fast},
        "secrets": [
            {"path": "unseal", "class": ASKING, "environment": "production"},
            {"path": "test/**", "class": PLAIN, "environment": "test"},
            {"path": "staging/**", "class": PLAIN, "environment": "staging"},
            {"path": "production/**", "class": PLAIN, "environment": "production"},
        ],
    } | changes
    return parse_policy(document, [PLAIN, ASKING])


@dataclass
class World:
    """The secrets of a site that exists in memory, and all that was done to it."""

    policy: RotationPolicy = field(default_factory=policy_of)
    values: dict[str, Values] = field(default_factory=dict)
    last_rotated: dict[str, datetime] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    acts: list[tuple[str, str]] = field(default_factory=list)
    """(act, path), in order."""
    broken: dict[str, str] = field(default_factory=dict)
    """Path -> the act that fails."""
    dead: set[str] = field(default_factory=set)
    ledger: list[tuple[str, str, str]] = field(default_factory=list)
    """(target, step, outcome)."""
    findings: tuple[Any, ...] = ()
    access: AccessFacts | None = None
    on_act: Callable[[str, str], None] = lambda act, path: None
    lock: Any = field(default_factory=threading.Lock)

    def add(self, *paths: str, age_days: float | None = None) -> World:
        for path in paths:
            self.values[path] = {"password": f"{CANARY}-{path}-0"}
            if age_days is not None:
                self.last_rotated[path] = datetime.now(UTC) - timedelta(days=age_days)
        return self

    def act(self, name: str, path: str) -> None:
        with self.lock:
            self.acts.append((name, path))
        self.on_act(name, path)
        if self.broken.get(path) == name:
            raise PermanentError(f"Unable to {name} {path}: it is broken. Mend it.")

    def begun(self) -> list[str]:
        """Paths in the order in which their rotation was begun."""
        return list(dict.fromkeys(path for act, path in self.acts if act != "prepare"))

    def look_around(self, _environment: str) -> Surroundings:
        if self.findings:
            return Surroundings(self.findings)
        return Surroundings((), self.policy, COMMIT, tuple(sorted(self.values)))

    def secret_facts(
        self, _environment: str, policy: RotationPolicy, paths: Sequence[str]
    ) -> SecretFacts:
        def fact(path: str) -> SecretFact:
            ruled = policy.resolve(path)
            assert ruled is not None
            record = self.records.get(ruled.secret.secret_id)
            state = record.state if record else None
            return SecretFact(path, self.last_rotated.get(path), ("Deployment web",), state)

        return SecretFacts(tuple(fact(path) for path in paths))

    def access_facts(
        self, _environment: str, _policy: RotationPolicy, leak: Leak
    ) -> tuple[Leak, AccessFacts, tuple[str, ...]]:
        assert self.access is not None
        return leak, self.access, ()

    def revoke_tokens(self, _environment: str, accessors: Sequence[str]) -> tuple[int, list[str]]:
        self.acts += [("revoke token", accessor) for accessor in accessors]
        return len(accessors), []


class Adapter:
    """A class of secrets whose systems are the world's memory."""

    kind = PLAIN
    has_overlap = True

    def __init__(self, world: World) -> None:
        self.world = world

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        self.world.act("create", secret.path)
        return {"password": f"{CANARY}-{secret.path}-{generation}"}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        self.world.act("set", secret.path)

    def test(self, secret: SecretRef, new: Values) -> None:
        self.world.act("test", secret.path)

    def distribute(self, secret: SecretRef, new: Values) -> None:
        self.world.act("distribute", secret.path)

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        self.world.act("observe", secret.path)
        return [Seen("web", True)]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        self.world.act("revoke", secret.path)
        self.world.dead.add(old["password"])

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        self.world.act("prove dead", secret.path)
        return Proof(old["password"] in self.world.dead, f"login to {secret.path}", "denied")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        self.world.act("rollback", secret.path)


class Store:
    """Records and paths in the world's memory."""

    def __init__(self, world: World) -> None:
        self.world = world

    def path(self, secret: SecretRef) -> str:
        return f"rotation/{ENVIRONMENT}/{secret.secret_id}"

    def load(self, secret: SecretRef) -> Record | None:
        return self.world.records.get(secret.secret_id)

    def save(self, secret: SecretRef, record: Record) -> Record:
        kept = replace(record, version=record.version + 1)
        self.world.records[secret.secret_id] = kept
        if record.state.step is Step.DONE:
            self.world.last_rotated[secret.path] = datetime.now(UTC)
        return kept

    def current(self, secret: SecretRef) -> Values | None:
        return self.world.values.get(secret.path)

    def hand_out(self, secret: SecretRef, new: Values, old: Values | None) -> None:
        self.world.values[secret.path] = new

    def hand_back(self, secret: SecretRef, old: Values, new: Values) -> None:
        self.world.values[secret.path] = old

    def withdraw(self, secret: SecretRef, new: Values) -> None:
        self.world.values.pop(secret.path)

    def erase_older(self, secret: SecretRef) -> int:
        return 1

    def fingerprint(self, values: Values) -> str:
        return f"hmac-{len(values)}"

    def own_accessors(self) -> frozenset[str]:
        return frozenset({"own"})


class Server:
    """OpenBao, as far as a task opens a session of it."""

    @contextmanager
    def session(self) -> Iterator[Server]:
        yield self


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, policy: Callable[[str], None]) -> Iterator[World]:
    made = World()
    policy("automatic")
    phases, jobs = flows.rotation_phases, tasks.rotation.tasks
    monkeypatch.setattr(phases, "look_around", made.look_around)
    monkeypatch.setattr(phases, "gather_secret_facts", made.secret_facts)
    monkeypatch.setattr(phases, "gather_access_facts", made.access_facts)
    monkeypatch.setattr(phases, "revoke_tokens", made.revoke_tokens)
    monkeypatch.setattr(phases, "classes_that_ask", lambda: frozenset({ASKING}))
    monkeypatch.setattr(jobs, "openbao", lambda environment: Server())
    monkeypatch.setattr(jobs, "RotationStore", lambda session, environment: Store(made))

    def adapter_for(site: Any, secret: SecretRef) -> Adapter:
        if secret.kind == ASKING and not site.approvals.get(secret.secret_id):
            raise PolicyViolation(f"Unable to rotate {secret.path}: nobody has approved it.")
        return Adapter(made)

    def note(commission: Any, _bao: Any, step: str, outcome: str, _details: Any) -> None:
        made.ledger.append((commission.path, step, outcome))

    def note_run(_environment: str, target: str, step: str, outcome: str, _details: Any) -> int:
        made.ledger.append((target, step, outcome))
        return len(made.ledger)

    monkeypatch.setattr(jobs, "adapter_for", adapter_for)
    monkeypatch.setattr(jobs, "_record", note)
    monkeypatch.setattr(flows.rotation_run, "record_step", note_run)
    yield made
    lift_pause(ENVIRONMENT)


@pytest.fixture
def latest(artifacts_of: Callable[[FlowRun], dict[str, list[Any]]]) -> Latest:
    """Return the artifacts of the latest rotation run."""

    def read() -> dict[str, list[Any]]:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["rotate-secrets"])),
                sort=FlowRunSort.START_TIME_DESC,
                limit=1,
            )
        return artifacts_of(runs[0])

    return read


def rows_by_path(found: Mapping[str, list[Any]], name: str) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in found[f"lab-rotation-{name}"][-1]}


def partial(path: str, policy: RotationPolicy, step: Step) -> Record:
    """Return the record that a killed run left behind at `step`."""
    ruled = policy.resolve(path)
    assert ruled is not None
    state = RotationState(
        secret_id=ruled.secret.secret_id,
        step=step,
        request_id="earlier",
        started_at="2026-01-01T00:00:00+00:00",
        created_at="2026-01-01T00:00:00+00:00",
        observe_since="2026-01-01T00:00:00+00:00",
    )
    old, new = ({"password": f"{CANARY}-{path}-{n}"} for n in (0, 1))
    return Record(state, {0: old, 1: new}, version=3)


def test_what_is_due_is_rotated_in_the_order_of_the_environments_and_proved_dead(
    world: World, latest: Latest
) -> None:
    world.add("production/a", "staging/a", "test/a", "test/b", age_days=90)
    world.add("test/young", age_days=1)
    rotate_secrets(ENVIRONMENT)
    environments = [path.split("/")[0] for path in world.begun()]
    assert environments == ["test", "test", "staging", "production"]
    assert "test/young" not in world.begun()
    assert all(world.values[path]["password"].endswith("-1") for path in world.begun())
    assert world.ledger.count(("test/a", "prove dead", "dead")) == 1
    assert world.ledger.count(("test/a", "rotate", "done")) == 1
    assert world.ledger[-1] == ("rotation", "rotate secrets", "changed")
    found = latest()
    due = [row["path"] for row in found["lab-rotation-due"][0]]
    assert due[-1] == "test/young"
    table = rows_by_path(found, "secrets")
    assert {row["state"] for row in table.values()} == {"✔ rotated"}
    assert table["test/a"]["step"] == "done"
    report = found["lab-rotation-report"][0]
    assert "**Succeeded**" in report
    assert "| prove dead | 4 |" in report
    assert "login to test/a: denied" in report


def test_a_second_run_finds_nothing_due_and_says_so(world: World, latest: Latest) -> None:
    world.add("test/a", age_days=90)
    rotate_secrets(ENVIRONMENT)
    before = list(world.acts)
    rotate_secrets(ENVIRONMENT)
    assert world.acts == before
    found = latest()
    assert "Nothing is due." in found["lab-rotation-report"][0]
    states = {row["phase"]: row["state"] for row in found["lab-rotation-phases"][0]}
    assert states["rotate"] == "– skipped"


def test_one_failing_secret_does_not_stop_its_wave_but_fails_the_run(
    world: World, latest: Latest
) -> None:
    world.add("test/a", "test/broken", "test/z", age_days=90)
    world.broken["test/broken"] = "set"
    with pytest.raises(PermanentError, match="Unable to rotate 1 of 3 secrets") as caught:
        rotate_secrets(ENVIRONMENT)
    assert "test/broken: rolled back. Rolled back: generation 0 stays in use" in str(caught.value)
    assert world.values["test/broken"]["password"].endswith("-0")
    assert all(world.values[p]["password"].endswith("-1") for p in ("test/a", "test/z"))
    assert world.ledger[-1] == ("rotation", "rotate secrets", "failed")
    table = rows_by_path(latest(), "secrets")
    assert table["test/broken"]["state"] == "✘ rolled back"
    assert table["test/z"]["state"] == "✔ rotated"
    assert "**Failed**" in latest()["lab-rotation-report"][0]


def test_a_failure_holds_the_later_environments_back(world: World, latest: Latest) -> None:
    world.add("test/broken", "production/a", age_days=90)
    world.broken["test/broken"] = "test"
    with pytest.raises(PermanentError, match="1 rotation failed in test"):
        rotate_secrets(ENVIRONMENT)
    assert "production/a" not in world.begun()
    assert rows_by_path(latest(), "secrets")["production/a"]["state"] == "– held back"


def test_what_an_earlier_run_left_partial_is_finished_first(world: World) -> None:
    world.add("production/partial", "test/a", age_days=90)
    record = partial("production/partial", world.policy, Step.REVOKE)
    world.records[record.state.secret_id] = record
    world.values["production/partial"] = record.values[1]
    rotate_secrets(ENVIRONMENT)
    assert world.begun() == ["production/partial", "test/a"]
    assert ("create", "production/partial") not in world.acts
    assert [a for a, p in world.acts if p == "production/partial"] == ["revoke", "prove dead"]


@pytest.mark.parametrize("way", ["nightly", "one", "leak"])
def test_a_dry_run_shows_the_same_plan_and_touches_nothing(
    way: str, world: World, latest: Latest
) -> None:
    world.add("test/a", "test/b", age_days=90)
    world.access = AccessFacts(paths=("test/a", "test/b"), mount="kv")
    ways: dict[str, Callable[[bool], None]] = {
        "nightly": lambda dry: rotate_secrets(ENVIRONMENT, dry_run=dry),
        "one": lambda dry: rotate_one_secret(ENVIRONMENT, "test/a", dry_run=dry),
        "leak": lambda dry: rotate_after_leak(
            ENVIRONMENT, LeakHint(kind=LeakKind.PREFIX, value="test"), dry_run=dry
        ),
    }
    set_pause(ENVIRONMENT, "a freeze", "operations")  # looking is allowed in a freeze
    ways[way](True)
    dry = latest()
    assert world.acts == []
    assert world.ledger == []
    assert world.records == {}
    assert "Dry run" in dry["lab-rotation-report"][0]
    lift_pause(ENVIRONMENT)
    ways[way](False)
    assert latest()["lab-rotation-plan"] == dry["lab-rotation-plan"]
    assert world.acts != []


def test_a_paused_environment_is_not_touched(world: World) -> None:
    world.add("test/a", age_days=90)
    set_pause(ENVIRONMENT, "a freeze", "operations")
    with pytest.raises(PolicyViolation, match="a freeze"):
        rotate_secrets(ENVIRONMENT)
    assert world.acts == []


def test_a_pause_in_the_middle_lets_running_rotations_end_and_starts_no_other(
    world: World, latest: Latest
) -> None:
    world.add("test/a", "staging/a", age_days=90)

    def pause(act: str, path: str) -> None:
        if (act, path) == ("set", "test/a"):
            set_pause(ENVIRONMENT, "an incident", "operations")

    world.on_act = pause
    with pytest.raises(PermanentError, match="staging/a: held back"):
        rotate_secrets(ENVIRONMENT)
    assert world.begun() == ["test/a"]
    table = rows_by_path(latest(), "secrets")
    assert table["test/a"]["state"] == "✔ rotated"
    assert "an incident" in table["staging/a"]["outcome"]


def test_every_error_of_the_preflight_is_told_and_nothing_is_touched(world: World) -> None:
    world.findings = (
        error("policy", "classes.x: is no class of secrets", "Use one of: a, b"),
        error("apps/gone", "there is no such secret", "Write it, or correct the rule's path"),
    )
    with pytest.raises(PermanentError, match="the preflight found 2 errors") as caught:
        rotate_secrets(ENVIRONMENT)
    assert "classes.x: is no class of secrets. Use one of: a, b" in str(caught.value)
    assert "apps/gone: there is no such secret. Write it" in str(caught.value)
    assert world.acts == []


def test_a_class_that_asks_a_person_is_left_out_at_night(world: World, latest: Latest) -> None:
    world.add("unseal", "test/a", age_days=90)
    rotate_secrets(ENVIRONMENT)
    assert world.begun() == ["test/a"]
    assert "start rotate-secrets/one" in rows_by_path(latest(), "plan")["unseal"]["note"]


def paused_hash(run_named: Callable[[str], FlowRun | None], name: str) -> tuple[Any, str] | None:
    from deployments.approve import shown_plan_hash

    run = run_named(name)
    if run is None or run.state is None or not run.state.is_paused():
        return None
    return run.id, shown_plan_hash(run.id)


@pytest.mark.parametrize("is_approved", [True, False])
def test_a_class_that_asks_a_person_waits_for_one(
    is_approved: bool,
    world: World,
    in_background: Callable[[Callable[[], Any]], Any],
    eventually: Callable[[Callable[[], Any], str], Any],
    run_named: Callable[[str], FlowRun | None],
) -> None:
    world.add("unseal", age_days=1 if is_approved else 2)
    name = f"unseal, {'approved' if is_approved else 'rejected'}"
    job = in_background(
        lambda: rotate_one_secret.with_options(flow_run_name=name)(ENVIRONMENT, "unseal")
    )
    run_id, shown = eventually(lambda: paused_hash(run_named, name), "a run at its gate")
    assert world.acts == []
    answer(run_id, approve=is_approved, plan_hash=shown, approver="ada")
    if is_approved:
        job.join()
        assert world.values["unseal"]["password"].endswith("-1")
    else:
        with pytest.raises(PolicyViolation, match="ada rejected the plan"):
            job.join()
        assert world.acts == []


def test_a_secret_without_a_rule_is_refused_by_name(world: World) -> None:
    with pytest.raises(NotFound, match=r"other/a: no rule of the policy names it\. Add"):
        rotate_one_secret(ENVIRONMENT, "other/a")


def test_a_closed_window_stops_a_run_by_hand_unless_it_is_told_to_go_on(world: World) -> None:
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%a").lower()
    window = {"days": [yesterday], "from": "00:00", "to": "00:01"}
    fast = {"max_age_days": 30, "windows": [window]}
    world.policy = policy_of(classes={PLAIN: fast, ASKING: fast})
    world.add("test/a", age_days=1)
    with pytest.raises(PolicyViolation, match="its window opens in"):
        rotate_one_secret(ENVIRONMENT, "test/a")
    assert world.acts == []
    rotate_one_secret(ENVIRONMENT, "test/a", outside_windows=True)
    assert world.values["test/a"]["password"].endswith("-1")


def test_a_leak_revokes_tokens_first_then_what_opens_others_then_the_rest(
    world: World, latest: Latest
) -> None:
    from domain.rotation.access_policies import PathRule

    world.add("test/a", "production/login", "staging/b", age_days=1)
    readable = (PathRule("kv/data/*", frozenset({"read"})),)
    world.access = AccessFacts(
        paths=("test/a", "production/login", "staging/b", "other/unruled"),
        mount="kv",
        policies={"wide": readable},
        holders=(Holder("accessor-1", "approle ci", ("wide",)),),
        opens={"production/login": ("wide",)},
    )
    with pytest.raises(PermanentError, match="other/unruled: no rule of the policy names it"):
        rotate_after_leak(ENVIRONMENT, LeakHint(kind=LeakKind.ACCESSOR, value="accessor-1"))
    assert world.begun()[0] == "accessor-1"
    assert world.begun()[1] == "production/login"
    assert set(world.begun()[2:]) == {"test/a", "staging/b"}
    found = latest()
    assert rows_by_path(found, "blast-radius")["other/unruled"]["class"] == (
        "no rule: rotate by hand"
    )
    assert "data:image/svg+xml" in found["lab-rotation-graph"][0]


def test_a_leak_revokes_first_where_the_policy_says_so_and_failures_hold_nothing_back(
    world: World,
) -> None:
    first = {"max_age_days": 30, "revoke_first": True, "attempts": 1, "values": 1}
    world.policy = policy_of(classes={PLAIN: first, ASKING: first})
    world.add("test/broken", "production/a", age_days=1)
    world.broken["test/broken"] = "set"
    world.access = AccessFacts(paths=("test/broken", "production/a"), mount="kv")
    with pytest.raises(PermanentError, match="1 of 2 secrets"):
        rotate_after_leak(ENVIRONMENT, LeakHint(kind=LeakKind.PREFIX, value="/"))
    acts = [act for act, path in world.acts if path == "production/a"]
    assert acts == ["create", "set", "test", "revoke", "prove dead", "distribute", "observe"]


def test_a_hint_that_names_nothing_is_an_error(world: World) -> None:
    world.access = AccessFacts(paths=("test/a",), mount="kv")
    with pytest.raises(NotFound, match="Unable to tell what the host web-9 reaches"):
        rotate_after_leak(ENVIRONMENT, LeakHint(kind=LeakKind.HOST, value="web-9"))


@pytest.mark.parametrize("token", ["hvs.CAESIA", "s.abcdefgh", "b.AAAA"])
def test_a_token_is_no_hint(token: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        LeakHint(kind=LeakKind.ACCESSOR, value=token)


def test_no_value_is_in_an_artifact(world: World, latest: Latest) -> None:
    world.add("test/a", "test/broken", age_days=90)
    world.broken["test/broken"] = "distribute"
    with pytest.raises(PermanentError) as caught:
        rotate_secrets(ENVIRONMENT)
    assert CANARY not in str(caught.value)
    found = latest()
    assert "lab-rotation-secrets" in found
    assert CANARY not in repr(found)
