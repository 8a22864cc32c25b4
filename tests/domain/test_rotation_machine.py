"""The rotation machine against a model of the world that fails, lies still and is killed anywhere.

The world knows what the system accepts and what each consumer holds, and checks the invariant at
every single change, not only between acts. The engine below is the smallest one that does what the
machine's documentation asks of an engine.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.rotation.contract import Seen
from domain.rotation.machine import (
    Act,
    Limits,
    Outcome,
    Request,
    after,
    begin,
    is_satisfied,
    judge,
    next_act,
    own_credential_refusal,
)
from domain.rotation.state import STEPS, Order, RotationState, Step
from domain.rotation.verdict import OldValue, verdict

LIMITS = Limits(observe_deadline_seconds=20.0)
REVOKE_FIRST = replace(LIMITS, may_revoke_first=True)
ACTS_PER_RUN_AT_MOST = 150
START = datetime(2026, 1, 1, tzinfo=UTC)


class Killed(Exception):
    """The worker is gone, at once."""


class Failed(Exception):
    """The system answered with an error."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


Fate = Callable[[str], str]
"""What happens at a point: "ok", "kill", "temporary", "permanent", "unknown", "lie"."""


def calm(_point: str) -> str:
    return "ok"


@dataclass
class World:
    """One secret, the system that accepts it, its consumers, and what OpenBao keeps."""

    fate: Fate = calm
    path: str | None = "first"
    accepted: set[str] = field(default_factory=lambda: {"first"})
    readers: dict[str, str] = field(default_factory=dict)
    pushed: dict[str, str] = field(default_factory=dict)
    record: dict[int, str] = field(default_factory=dict)
    kept: RotationState | None = None
    left_by_create: dict[int, str] = field(default_factory=dict)
    is_outage_allowed: bool = False
    now: datetime = START
    made: int = 0
    acts: list[str] = field(default_factory=list)

    def point(self, name: str) -> None:
        """A place where the worker may be killed or the system may fail; others go on working."""
        self.check(name)
        fate = self.fate(name)
        if fate == "kill":
            raise Killed(name)
        if fate == "temporary":
            raise Failed(Outcome.TEMPORARY)
        if fate == "permanent":
            raise Failed(Outcome.PERMANENT)

    def check(self, place: str) -> None:
        if self.is_outage_allowed:
            return
        for consumers in (self.readers, self.pushed):
            for name, value in consumers.items():
                assert value in self.accepted, f"{name} holds the refused {value} at {place}"

    def refresh(self, name: str) -> None:
        """A reader looks at the path by itself, as an operator or a restarting pod does."""
        if self.path is not None:
            self.readers[name] = self.path
        self.check("refresh")

    # --- the adapter ---
    def create(self, generation: int) -> str:
        self.point("create: begin")
        self.accepted.discard(self.left_by_create.pop(generation, ""))
        self.made += 1
        value = f"value-{self.made}-of-{generation}"
        self.left_by_create[generation] = value
        self.accepted.add(value)
        self.point("create: end")
        return value

    def distribute(self, value: str) -> None:
        for name in self.pushed:
            self.point(f"distribute: {name}")
            self.pushed[name] = value
        self.point("distribute: end")

    def observe(self, value: str) -> list[Seen]:
        self.point("observe: begin")
        seen = []
        for name, held in (self.readers | self.pushed).items():
            fate = self.fate(f"observe: {name}")
            if fate == "ok" and name in self.readers:
                self.refresh(name)
                held = self.readers[name]
            seen.append(Seen(name, None if fate == "unknown" else held == value))
        return seen

    def revoke(self, value: str) -> None:
        self.point("revoke: begin")
        if self.fate("revoke: effect") != "lie":
            self.accepted.discard(value)
        self.point("revoke: end")

    def rollback(self, new: str, current: str | None) -> None:
        self.point("forget: begin")
        self.accepted.discard(new)
        for name in self.pushed:
            if current is not None:
                self.pushed[name] = current
        self.point("forget: end")

    # --- the engine ---
    def perform(self, act: Act) -> Outcome:
        old = self.record.get(-1 if act.old_generation is None else act.old_generation)
        new = self.record.get(act.generation, "")
        match act.step:
            case Step.CREATE:
                self._create(act)
            case Step.SET:
                self.point("set: begin")
                self.accepted.add(new)
                self.point("set: end")
            case Step.TEST:
                self.point("test")
                assert new in self.accepted
            case Step.DISTRIBUTE:
                self.path = new
                self.point("distribute: path")
                self.distribute(new)
            case Step.RESTORE:
                assert old is not None
                self.path = old
                self.point("restore: path")
                self.distribute(old)
            case Step.OBSERVE:
                return judge(self.observe(new)).outcome
            case Step.OBSERVE_RESTORED:
                assert old is not None
                return judge(self.observe(old)).outcome
            case Step.FORGET:
                self._forget(act, new, old)
            case Step.REVOKE:
                assert old is not None
                self.revoke(old)
            case Step.PROVE_DEAD:
                self.point("prove dead")
                return Outcome.NOT_YET if old in self.accepted else Outcome.OK
            case Step.CLEAN:
                self.record.clear()
                self.point("clean: end")
        return Outcome.OK

    def _create(self, act: Act) -> None:
        value = self.create(act.generation)
        kept = {act.generation: value}
        if act.old_generation is not None:
            assert self.path is not None
            kept[act.old_generation] = self.path
        self.record = kept
        self.point("create: recorded")

    def _forget(self, act: Act, new: str, old: str | None) -> None:
        if act.old_generation is None:
            self.path = None
        if new:
            self.rollback(new, old)

    def state(self) -> RotationState | None:
        """Read the state as another worker would, through the flat form."""
        return None if self.kept is None else RotationState.from_metadata(self.kept.to_metadata())

    def run(self, request: Request, run_id: str, limits: Limits) -> RotationState:
        """Drive the secret until the machine has nothing to do, or die."""
        state = begin(
            self.state(),
            request,
            secret_id="s",
            run_id=run_id,
            has_current=self.path is not None,
            limits=limits,
            now=self.now,
        )
        self.write(state)
        for _ in range(ACTS_PER_RUN_AT_MOST):
            act = next_act(state, limits)
            if act.is_nothing:
                return state
            state = self.one(state, act, limits)
        raise AssertionError(f"no end after {ACTS_PER_RUN_AT_MOST} acts: {state}")

    def one(self, state: RotationState, act: Act, limits: Limits) -> RotationState:
        self.now += timedelta(seconds=act.wait_seconds + 0.5)
        if state.order is Order.REVOKE_FIRST and state.is_past_revoke:
            self.is_outage_allowed = True
        self.acts.append(act.step)
        self.point(f"before {act.step}")
        try:
            outcome = self.perform(act)
        except Failed as failure:
            outcome = failure.outcome
        self.kill_point(f"after {act.step}")
        state = after(state, act, outcome, limits=limits, now=self.now, reason="it failed")
        self.write(state)
        self.kill_point(f"written {act.step}")
        return state

    def kill_point(self, name: str) -> None:
        if self.fate(name) == "kill":
            raise Killed(name)

    def write(self, state: RotationState) -> None:
        assert self.kept is None or state.revision >= self.kept.revision
        self.kept = state
        if state.is_final:
            self.check_end(state)

    def check_end(self, state: RotationState) -> None:
        if state.step is Step.DONE:
            for name in self.readers:
                self.refresh(name)
            self.is_outage_allowed = False
            assert self.path is not None
            assert self.accepted == {self.path}, "an old value is still accepted"
            assert self.path.endswith(f"-of-{state.generation}")
            assert not self.record
        self.check("the end")


def world_with(consumers: int, fate: Fate = calm) -> World:
    world = World(fate)
    for number in range(consumers):
        kept = world.readers if number % 2 else world.pushed
        kept[f"consumer-{number}"] = "first"
    return world


def rolling(dice: random.Random, harm: float) -> Fate:
    """Return a fate that fails at about `harm` of all points."""

    def fate(point: str) -> str:
        if dice.random() >= harm:
            return "ok"
        if point.startswith(("before", "after", "written")):
            return dice.choice(("kill", "ok"))
        if point.startswith("observe: consumer"):
            return dice.choice(("unknown", "slow"))
        if point == "revoke: effect":
            return "lie"
        return dice.choices(("temporary", "permanent", "kill"), (6, 1, 3))[0]

    return fate


def one_sequence(seed: int) -> tuple[int, set[str]]:
    """Run one random history to a calm end; returns how often a worker died and where it ended."""
    dice = random.Random(seed)  # noqa: S311 - a reproducible history, no secret
    world = world_with(dice.randrange(4), rolling(dice, dice.choice((0.02, 0.1, 0.3))))
    limits = dice.choice((LIMITS, REVOKE_FIRST))
    killed, ends = 0, set()
    for number in range(dice.randrange(1, 4)):
        is_leak = dice.random() < 0.3
        request = Request(f"request-{number}", world.now, is_leak)
        for attempt in range(dice.randrange(1, 4)):
            try:
                state = world.run(request, f"run-{number}-{attempt}", limits)
                ends.add("halted" if state.is_halted else state.step.value)
            except Killed:
                killed += 1
            for name in world.readers:
                if dice.random() < 0.3:
                    world.refresh(name)
    finish_calmly(world, limits)
    return killed, ends


def finish_calmly(world: World, limits: Limits) -> None:
    """The next run, in which nothing fails, finishes; and asking once more does nothing."""
    world.fate = calm
    request = Request("the last", world.now, is_leak=True)
    for attempt in range(4):
        state = world.run(request, f"calm-{attempt}", limits)
        if is_satisfied(state, request):
            break
    else:
        raise AssertionError(f"never finished: {state}")
    acts, generation = len(world.acts), state.generation
    state = world.run(request, "once more", limits)
    assert (len(world.acts), state.generation) == (acts, generation), "rotated twice"


def test_ten_thousand_random_histories_keep_every_consumer_working_and_end() -> None:
    killed, ends = 0, set()
    for seed in range(10_000):
        deaths, reached = one_sequence(seed)
        killed += deaths
        ends |= reached
    assert killed > 5_000, "the histories hardly ever kill: they prove nothing"
    assert ends == {"done", "rolled back", "halted"}


EDGES = ["before", "after", "written"]
FORWARD = [step for step in STEPS[Order.OVERLAP] if step is not Step.DONE]
BACK = [Step.RESTORE, Step.OBSERVE_RESTORED, Step.FORGET, Step.CLEAN]


def killing_once(edge: str) -> Fate:
    left = [edge]

    def fate(point: str) -> str:
        if point in left:
            left.remove(point)
            return "kill"
        return "ok"

    return fate


@pytest.mark.parametrize("is_leak", [False, True], ids=["overlap", "revoke-first"])
@pytest.mark.parametrize("step", FORWARD)
@pytest.mark.parametrize("edge", EDGES)
def test_a_kill_at_any_edge_is_finished_by_the_next_run_and_nothing_rotates_twice(
    edge: str, step: Step, is_leak: bool
) -> None:
    world = world_with(3, killing_once(f"{edge} {step}"))
    request = Request("r", world.now, is_leak)
    with pytest.raises(Killed):
        world.run(request, "one", REVOKE_FIRST)
    state = world.run(request, "two", REVOKE_FIRST)
    assert (state.step, state.generation) == (Step.DONE, 1)
    acts = len(world.acts)
    world.run(request, "three", REVOKE_FIRST)
    assert len(world.acts) == acts


@pytest.mark.parametrize("step", BACK)
@pytest.mark.parametrize("edge", EDGES)
def test_a_kill_at_any_edge_of_the_way_back_is_finished_by_the_next_run(
    edge: str, step: Step
) -> None:
    once = killing_once(f"{edge} {step}")

    def fate(point: str) -> str:
        if point == "observe: consumer-1" and "restore" not in world.acts:
            return "unknown"
        return once(point)

    world = world_with(3, fate)
    request = Request("r", world.now)
    with pytest.raises(Killed):
        world.run(request, "one", LIMITS)
    state = world.run(request, "two", LIMITS)
    assert state.step is Step.ROLLED_BACK
    assert (world.path, world.accepted) == ("first", {"first"})
    assert set((world.readers | world.pushed).values()) == {"first"}


def failing_at(point: str, fate: str, times: int) -> Fate:
    left = [times]

    def decide(here: str) -> str:
        if here == point and left[0]:
            left[0] -= 1
            return fate
        return "ok"

    return decide


def test_a_rotation_without_failures_takes_the_steps_in_their_order() -> None:
    world = world_with(2)
    world.run(Request("r", world.now), "one", REVOKE_FIRST)
    assert world.acts == FORWARD


def test_a_leak_revokes_first_where_the_policy_says_so_and_not_elsewhere() -> None:
    first, not_first = world_with(2), world_with(2)
    first.run(Request("r", START, is_leak=True), "one", REVOKE_FIRST)
    not_first.run(Request("r", START, is_leak=True), "one", LIMITS)
    assert first.acts == list(STEPS[Order.REVOKE_FIRST][:-1])
    assert not_first.acts == FORWARD


def test_a_value_that_keeps_failing_its_test_is_replaced_by_a_new_generation() -> None:
    world = world_with(2, failing_at("test", "temporary", LIMITS.attempts))
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert (state.step, state.generation, state.values_tried) == (Step.DONE, 2, 2)
    assert world.acts.count(Step.TEST) == LIMITS.attempts + 1
    assert world.acts.count(Step.CREATE) == 2


def test_a_value_that_the_system_refuses_for_good_is_not_tried_again() -> None:
    world = world_with(2, failing_at("test", "permanent", 1))
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert (state.step, state.generation) == (Step.DONE, 2)
    assert world.acts.count(Step.TEST) == 2


def test_values_are_not_replaced_for_ever() -> None:
    world = world_with(2, failing_at("test", "permanent", 99))
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert (state.step, state.generation) == (Step.ROLLED_BACK, LIMITS.values)
    assert world.accepted == {"first"}
    assert verdict(state).text == (
        "Rolled back: generation 0 stays in use, generation 2 is gone (test: it failed)."
    )


def test_a_failure_after_distribute_hands_the_old_value_out_and_looks_before_it_forgets() -> None:
    world = world_with(3, failing_at("distribute: consumer-2", "permanent", 1))
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert state.step is Step.ROLLED_BACK
    assert world.acts[-4:] == ["restore", "observe restored", "forget", "clean"]


def test_consumers_that_cannot_be_seen_are_never_taken_for_moved() -> None:
    world = world_with(2, lambda point: "unknown" if point == "observe: consumer-1" else "ok")
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert (state.step, state.is_halted) == (Step.OBSERVE_RESTORED, True)
    assert Step.REVOKE not in world.acts
    assert "first" in world.accepted
    waited = datetime.fromisoformat(state.updated_at) - datetime.fromisoformat(state.started_at)
    assert waited >= timedelta(seconds=2 * LIMITS.observe_deadline_seconds)


def test_after_revoke_nothing_rolls_back_and_the_run_says_what_is_not_dead() -> None:
    world = world_with(2, failing_at("revoke: effect", "lie", 99))
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert (state.step, state.is_halted) == (Step.PROVE_DEAD, True)
    assert world.acts.count(Step.REVOKE) == LIMITS.attempts, "it is revoked again before it halts"
    told = verdict(state)
    assert (told.is_success, told.old_value) == (False, OldValue.REVOKED)
    assert told.text == (
        "Not finished: generation 0 is revoked, not proved dead; consumers use generation 1. "
        "The next run goes on with `prove dead` (prove dead: it failed)."
    )
    world.fate = calm
    state = world.run(Request("next night", world.now), "two", LIMITS)
    assert (state.step, state.generation) == (Step.DONE, 1)
    assert verdict(state).old_value is OldValue.DEAD


def test_a_revoke_that_failed_may_have_happened() -> None:
    world = world_with(2, failing_at("revoke: end", "permanent", 1))
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert (state.step, state.is_halted) == (Step.REVOKE, True)
    assert verdict(state).old_value is OldValue.MAYBE_REVOKED


def test_a_partial_rotation_counts_for_a_later_request_by_age_and_not_for_a_leak() -> None:
    for is_leak, generations in ((False, 1), (True, 2)):
        world = world_with(2, killing_once("before distribute"))
        with pytest.raises(Killed):
            world.run(Request("monday", world.now), "one", LIMITS)
        world.now += timedelta(hours=1)
        request = Request("tuesday", world.now, is_leak)
        for run in range(3):
            state = world.run(request, f"run-{run}", LIMITS)
        assert (state.step, state.generation) == (Step.DONE, generations)


def test_a_leak_does_not_wait_for_the_consumers_of_a_partial_rotation() -> None:
    world = world_with(2, killing_once("before observe"))
    with pytest.raises(Killed):
        world.run(Request("monday", world.now), "one", REVOKE_FIRST)
    acts = len(world.acts)
    world.run(Request("leak", world.now, is_leak=True), "two", REVOKE_FIRST)
    assert world.acts[acts : acts + 2] == [Step.REVOKE, Step.PROVE_DEAD]


def test_a_leak_does_not_wait_for_consumers_that_never_come_back() -> None:
    world = world_with(2, lambda point: "unknown" if point == "observe: consumer-1" else "ok")
    state = world.run(Request("monday", world.now), "one", REVOKE_FIRST)
    assert (state.step, state.is_halted) == (Step.OBSERVE_RESTORED, True)
    acts, leak = len(world.acts), Request("leak", world.now, is_leak=True)
    state = world.run(leak, "two", REVOKE_FIRST)
    assert world.acts[acts : acts + 3] == [Step.REVOKE, Step.PROVE_DEAD, Step.DISTRIBUTE]
    assert (state.step, state.is_halted) == (Step.OBSERVE, True)
    assert "first" not in world.accepted
    assert verdict(state).old_value is OldValue.DEAD


def test_another_leak_is_not_held_up_by_what_the_first_is_waiting_for() -> None:
    world = world_with(2, lambda point: "unknown" if point == "observe: consumer-1" else "ok")
    state = world.run(Request("leak", world.now, is_leak=True), "one", REVOKE_FIRST)
    assert (state.step, state.is_halted, state.generation) == (Step.OBSERVE, True, 1)
    again = Request("another leak", world.now + timedelta(hours=1), is_leak=True)
    world.now = again.asked_at
    assert world.run(again, "two", REVOKE_FIRST).step is Step.DONE
    state = world.run(again, "three", REVOKE_FIRST)
    assert (state.step, state.generation) == (Step.OBSERVE, 2)
    assert not any(value.endswith("-of-1") for value in world.accepted)


def test_a_secret_without_a_value_gets_one_and_nothing_is_revoked() -> None:
    world = World(path=None, accepted=set())
    state = world.run(Request("r", world.now), "one", LIMITS)
    assert state.step is Step.DONE
    assert not {Step.REVOKE, Step.PROVE_DEAD} & set(world.acts)
    assert verdict(state).text == "Generation 1 is in use; there was none before."


def test_waits_double_and_have_a_limit() -> None:
    state = RotationState("s", step=Step.SET)
    waits = [
        next_act(replace(state, attempts={Step.SET: n}), LIMITS).wait_seconds
        for n in (0, 1, 2, 3, 30)
    ]
    assert waits == [0.0, 1.0, 2.0, 4.0, 60.0]


def test_an_outcome_of_another_generation_is_refused() -> None:
    state = RotationState("s", step=Step.SET, generation=4)
    act = Act(Step.SET, generation=3, old_generation=2)
    with pytest.raises(ValueError, match=r"set of generation 3.*Read the state again"):
        after(state, act, Outcome.OK, limits=LIMITS, now=START)


def test_a_state_fits_openbao_and_survives_the_way_through_it() -> None:
    state = RotationState(
        "s",
        step=Step.PROVE_DEAD,
        attempts={Step.PROVE_DEAD: 2, Step.SET: 1},
        fingerprints={3: "vault:v1:abc", 4: "vault:v1:def"},
        created_at=START.isoformat(),
    )
    act = Act(Step.PROVE_DEAD, 1, 0)
    state = after(state, act, Outcome.NOT_YET, limits=LIMITS, now=START, reason="ü" * 999)
    flat = state.to_metadata()
    assert RotationState.from_metadata(flat) == state
    assert len(flat) <= 64
    assert max(len(text.encode()) for text in flat.values()) <= 512
    assert {key for key in flat if key.startswith("label_")} == {"label_current", "label_previous"}


def test_metadata_that_is_not_a_state_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="Unable to read the state of a rotation"):
        RotationState.from_metadata({"secret_id": "s", "step": "dance"})


def test_a_look_is_success_only_when_everyone_is_seen_on_the_new_value() -> None:
    assert judge([Seen("a", True)]).outcome is Outcome.OK
    assert judge([]).outcome is Outcome.OK
    assert judge([Seen("a", True), Seen("a", False)]).outcome is Outcome.NOT_YET
    assert judge([Seen("a", True)], expected=["a", "b"]).text == "unknown: b"
    found = judge([Seen("a", None), Seen("b", False), Seen("c", True)])
    assert found.outcome is Outcome.NOT_YET
    assert found.text == "not on the new value: b; unknown: a"


def test_the_credential_of_the_run_itself_is_refused() -> None:
    assert own_credential_refusal("p", ["mine"], ["other"]) is None
    assert own_credential_refusal("p", [], []) is None
    refused = own_credential_refusal("p", ["mine", ""], ["other", "mine"])
    assert refused is not None
    assert refused.startswith("Unable to rotate p: this run is authenticated with it. ")
    unknown = own_credential_refusal("p", [""], ["other"])
    assert unknown is not None
    assert "is not known" in unknown


class Rotation(RuleBasedStateMachine):
    """Hypothesis chooses each fate itself, so that a broken history shrinks to its core."""

    @initialize(consumers=st.integers(0, 3))
    def start(self, consumers: int) -> None:
        self.fates: list[str] = []
        self.world = world_with(consumers, self.next_fate)
        self.requests = 0
        self.ask()

    def next_fate(self, _point: str) -> str:
        return self.fates.pop() if self.fates else "ok"

    def ask(self) -> None:
        self.requests += 1
        request = Request(f"r{self.requests}", self.world.now)
        state = begin(
            self.world.state(),
            request,
            secret_id="s",
            run_id=f"run{self.requests}",
            has_current=True,
            limits=LIMITS,
            now=self.world.now,
        )
        self.world.write(state)

    @precondition(lambda self: not next_act(self.world.kept, LIMITS).is_nothing)
    @rule(
        fates=st.lists(
            st.sampled_from(["ok", "kill", "temporary", "permanent", "unknown", "lie"]), max_size=6
        )
    )
    def step(self, fates: list[str]) -> None:
        self.fates = fates
        state = self.world.state()
        assert state is not None
        with contextlib.suppress(Killed, Failed):
            self.world.one(state, next_act(state, LIMITS), LIMITS)
        self.fates = []

    @rule()
    def another_run_takes_over(self) -> None:
        self.ask()

    @rule()
    def readers_refresh(self) -> None:
        for name in self.world.readers:
            self.world.refresh(name)

    @invariant()
    def every_consumer_holds_a_working_credential(self) -> None:
        self.world.check("rest")

    def teardown(self) -> None:
        finish_calmly(self.world, LIMITS)


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
