"""The state machine of one secret's rotation: what comes next, and what an outcome means.

    create -> set -> test -> distribute -> observe -> revoke -> prove dead -> clean -> done
                                   |           |
       forget <- observe restored <- restore <-+          (any failure before `revoke`)
       after a leak, where the policy says so:
    create -> set -> test -> revoke -> prove dead -> distribute -> observe -> clean -> done

Invariant, at every instant and after a kill at every edge: **each consumer holds at least one value
that the system accepts** (in the order `revoke first` it is given up on purpose, from `revoke` to
the end of `observe`). It rests on four rules:

1. The old value is accepted until `revoke`, and `revoke` is due only when `test` has passed and
   every consumer was *seen* on the new value. What could not be looked at counts as not seen.
2. The new value is accepted from `set` to `forget`, and `forget` is due only when the new value was
   never handed out, or every consumer was seen back on the old one.
3. From the moment that `revoke` is due nothing rolls back: a failed or killed `revoke` may have
   taken effect. The run halts there, says what is dead and what is not, and the next goes on.
4. A step is due until its outcome is written. A kill after the act and before the write repeats the
   act, which adapters allow; a kill never skips one.

Promises besides: a run ends after a bounded number of acts; a value that keeps failing `set` or
`test` is replaced by a new generation, a bounded number of times; one request rotates once.

What the engine does per step (`old` and `new` are the values of `old_generation` and `generation`
in its record, the adapter's methods are those of `domain.rotation.contract`):
`create`: read the current value at the secret's path, call `create`, write both values to the
record in one write; never take over a value that an earlier try left there. `distribute`: write
`new` to the path, then call `distribute`. `restore`: write `old` to the path, then `distribute`
with it. `observe restored`: `observe(new=old, current=new)`. `forget`: `rollback`, if the record
holds a new value; without an old generation the path is deleted too. `clean`: destroy the record's
values. Each outcome is written before the next act. Labels are for people: the engine goes by the
generations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from domain.rotation.judgement import Observation, judge, own_credential_refusal
from domain.rotation.state import (
    ROLLBACK_STEPS,
    STEPS,
    Order,
    Outcome,
    RotationState,
    Step,
    cut,
    stamp,
)

__all__ = [
    "Act",
    "Limits",
    "Observation",
    "Outcome",
    "Request",
    "after",
    "begin",
    "is_satisfied",
    "judge",
    "next_act",
    "own_credential_refusal",
]

LONGEST_WAIT_SECONDS = 60.0
OBSERVING = frozenset({Step.OBSERVE, Step.OBSERVE_RESTORED})
_TIME_OF: Mapping[Step, str] = {
    Step.CREATE: "created_at",
    Step.DISTRIBUTE: "observe_since",
    Step.RESTORE: "observe_since",
    Step.REVOKE: "revoked_at",
    Step.PROVE_DEAD: "proved_at",
}
"""The time that a step's success sets."""


@dataclass(frozen=True)
class Limits:
    """How patient the machine is with one secret."""

    attempts: int = 3
    """Failures of one step before the value is replaced, rolled back, or the run halts."""
    values: int = 2
    """Values that one request may use up."""
    observe_deadline_seconds: float = 600.0
    observe_interval_seconds: float = 2.0
    retry_seconds: float = 1.0
    """Wait before the first repetition; doubles with each."""
    may_revoke_first: bool = False
    """After a leak the old value is revoked before consumers have moved."""


@dataclass(frozen=True)
class Act:
    """What is to be done next, after a wait. Nothing, when `is_nothing`."""

    step: Step
    generation: int
    old_generation: int | None
    wait_seconds: float = 0.0
    is_nothing: bool = False


def next_act(state: RotationState, limits: Limits) -> Act:
    """Return the act that `state` calls for; the same for every worker that asks."""
    is_nothing = state.is_final or state.is_halted
    wait_seconds = 0.0 if is_nothing else _wait_seconds(state, limits)
    return Act(state.step, state.generation, state.old_generation, wait_seconds, is_nothing)


def _wait_seconds(state: RotationState, limits: Limits) -> float:
    failures = state.attempts.get(state.step, 0)
    if state.step is Step.REVOKE:
        # The old value was still accepted after `revoke`: it is revoked again, not in a hurry.
        failures = max(failures, state.attempts.get(Step.PROVE_DEAD, 0))
    if failures == 0:
        return 0.0
    if state.step in OBSERVING:
        return limits.observe_interval_seconds
    return float(min(limits.retry_seconds * 2 ** min(failures - 1, 16), LONGEST_WAIT_SECONDS))


def after(
    state: RotationState,
    act: Act,
    outcome: Outcome,
    *,
    limits: Limits,
    now: datetime,
    reason: str = "",
) -> RotationState:
    """Return the state after `act` ended with `outcome`; `reason` says why it did not succeed.

    Raises:
        ValueError: the act does not belong to the state: another worker went on meanwhile.
    """
    if act.is_nothing or (act.step, act.generation) != (state.step, state.generation):
        raise ValueError(
            f"Unable to record {act.step} of generation {act.generation}: {state.step} of "
            f"generation {state.generation} is due. Read the state again"
        )
    state = replace(state, updated_at=stamp(now), revision=state.revision + 1)
    if outcome is Outcome.OK:
        return _advanced(state, now)
    state = replace(state, reason=cut(f"{state.step}: {reason or outcome}"))
    if state.is_past_revoke or state.is_rolling_back or state.step is Step.CLEAN:
        return _held(state, outcome, limits, now)
    return _failed_before_revoke(state, outcome, limits, now)


def _without(state: RotationState, done: Step) -> dict[Step, int]:
    return {step: count for step, count in state.attempts.items() if step is not done}


def _once_more(state: RotationState) -> RotationState:
    failures = state.attempts.get(state.step, 0) + 1
    return replace(state, attempts={**state.attempts, state.step: failures})


def _advanced(state: RotationState, now: datetime) -> RotationState:
    """The step succeeded: the next one of the way that the state is on."""
    done, time = state.step, stamp(now)
    times: dict[str, Any] = {_TIME_OF[done]: time} if done in _TIME_OF else {}
    state = replace(state, attempts=_without(state, done), **times)
    if state.is_rolling_back:
        return _further_back(state, time)
    order = STEPS[state.order]
    following = order[order.index(done) + 1]
    while state.old_generation is None and following in (Step.REVOKE, Step.PROVE_DEAD):
        following = order[order.index(following) + 1]
    if following is Step.DONE:
        return replace(state, step=following, attempts={}, finished_at=time, reason="")
    return replace(state, step=following)


def _further_back(state: RotationState, time: str) -> RotationState:
    if state.step is not Step.CLEAN:
        following = ROLLBACK_STEPS[ROLLBACK_STEPS.index(state.step) + 1]
        return replace(state, step=following)
    if not state.is_replacing:
        return replace(
            state, step=Step.ROLLED_BACK, is_rolling_back=False, attempts={}, finished_at=time
        )
    return replace(
        state,
        step=Step.CREATE,
        generation=state.generation + 1,
        values_tried=state.values_tried + 1,
        is_rolling_back=False,
        is_replacing=False,
        attempts={},
        created_at="",
    )


def _is_late(state: RotationState, limits: Limits, now: datetime) -> bool:
    if not state.observe_since:
        return True
    waited_seconds = (now - datetime.fromisoformat(state.observe_since)).total_seconds()
    return waited_seconds >= limits.observe_deadline_seconds


def _may_repeat(state: RotationState, outcome: Outcome, limits: Limits, now: datetime) -> bool:
    """True when the step may be tried again; `state` counts the failure already."""
    if outcome is Outcome.PERMANENT:
        return False
    if state.step in OBSERVING:
        return not _is_late(state, limits, now)
    return state.attempts[state.step] < limits.attempts


def _failed_before_revoke(
    state: RotationState, outcome: Outcome, limits: Limits, now: datetime
) -> RotationState:
    state = _once_more(state)
    if _may_repeat(state, outcome, limits, now):
        return state
    # Another value helps only where the value itself is in question, not where a consumer is slow.
    is_about_the_value = state.step in (Step.SET, Step.TEST)
    was_handed_out = state.step in (Step.DISTRIBUTE, Step.OBSERVE)
    has_old = state.old_generation is not None
    return replace(
        state,
        step=Step.RESTORE if was_handed_out and has_old else Step.FORGET,
        is_rolling_back=True,
        is_replacing=is_about_the_value and state.values_tried < limits.values,
        attempts={},
    )


def _held(state: RotationState, outcome: Outcome, limits: Limits, now: datetime) -> RotationState:
    """There is no way back from here: try again, or halt until the next run."""
    state = _once_more(state)
    if not _may_repeat(state, outcome, limits, now):
        return replace(state, is_halted=True)
    if state.step is Step.PROVE_DEAD and outcome is Outcome.NOT_YET:
        return replace(state, step=Step.REVOKE)
    return state


@dataclass(frozen=True)
class Request:
    """One wish to rotate one secret; its id is the same in every retry of the run."""

    request_id: str
    asked_at: datetime
    is_leak: bool = False


def begin(
    state: RotationState | None,
    request: Request,
    *,
    secret_id: str,
    run_id: str,
    has_current: bool,
    limits: Limits,
    now: datetime,
) -> RotationState:
    """Return the state from which `request` goes on: a fresh one, a partial one, or a final one.

    A partial rotation is always finished first. It then counts for a request by age or by hand. It
    does not count for a leak that was reported after its value was made: when the returned state
    has come to its end, call again, and a second rotation starts (`is_satisfied` tells).
    """
    if state is None:
        started = RotationState(
            secret_id=secret_id, old_generation=0 if has_current else None, generation=1
        )
        return _started(started, request, run_id, limits, now)
    if state.is_partial:
        return _adopted(state, request, run_id, limits, now)
    if is_satisfied(state, request) or state.request_id == request.request_id:
        return state
    current = state.generation if state.step is Step.DONE else state.old_generation
    # A generation of which no value was recorded is used again, so that its adapter clears what a
    # killed `create` has left in the system.
    following = state.generation + (1 if state.created_at else 0)
    started = RotationState(
        secret_id=secret_id,
        generation=following,
        old_generation=(current if current is not None else 0) if has_current else None,
        revision=state.revision,
        fingerprints={n: text for n, text in state.fingerprints.items() if n == current},
    )
    return _started(started, request, run_id, limits, now)


def is_satisfied(state: RotationState, request: Request) -> bool:
    """True when the secret has been rotated for `request`, or since it was made."""
    if state.step is not Step.DONE:
        return False
    if state.request_id == request.request_id:
        return True
    return datetime.fromisoformat(state.created_at) >= request.asked_at


def _started(
    state: RotationState, request: Request, run_id: str, limits: Limits, now: datetime
) -> RotationState:
    is_first_revoked = request.is_leak and limits.may_revoke_first
    return replace(
        state,
        order=Order.REVOKE_FIRST if is_first_revoked else Order.OVERLAP,
        request_id=request.request_id,
        run_id=run_id,
        started_at=stamp(now),
        updated_at=stamp(now),
        revision=state.revision + 1,
    )


def _adopted(
    state: RotationState, request: Request, run_id: str, limits: Limits, now: datetime
) -> RotationState:
    """Take over a partial rotation; the budget of attempts starts anew when the last run halted."""
    adopted = replace(state, run_id=run_id, updated_at=stamp(now), revision=state.revision + 1)
    if not request.is_leak:
        adopted = replace(adopted, request_id=request.request_id)
    elif limits.may_revoke_first:
        adopted = _hastened(adopted, request)
    if not adopted.is_halted:
        return adopted
    # What was given up is not only looked at again: its act is repeated as well.
    repeated = {
        Step.OBSERVE: Step.DISTRIBUTE,
        Step.OBSERVE_RESTORED: Step.RESTORE,
        Step.PROVE_DEAD: Step.REVOKE,
    }
    due = repeated.get(adopted.step, adopted.step)
    return replace(adopted, step=due, is_halted=False, attempts={})


def _hastened(state: RotationState, request: Request) -> RotationState:
    """A leak does not wait for consumers, be it on the way to the new value or back to the old.

    Where the new value has passed its test the old one is revoked at once, and `distribute` is
    repeated after. Where the old one is dead and another leak comes, nobody is waited for.
    """
    if state.is_past_revoke:
        is_waiting = state.order is Order.REVOKE_FIRST and state.step is Step.OBSERVE
        is_another = state.request_id != request.request_id
        return replace(state, step=Step.CLEAN) if is_waiting and is_another else state
    tested = (Step.DISTRIBUTE, Step.OBSERVE, Step.RESTORE, Step.OBSERVE_RESTORED)
    if state.step in tested and state.old_generation is not None:
        return replace(
            state,
            order=Order.REVOKE_FIRST,
            step=Step.REVOKE,
            is_rolling_back=False,
            is_replacing=False,
            attempts={},
        )
    return state if state.is_rolling_back else replace(state, order=Order.REVOKE_FIRST)
