"""Rotates one secret: asks the machine what is due, has it done, writes the outcome, goes on.

Why it exists: the machine decides and touches nothing, adapters touch and decide nothing. Promises
that each outcome is recorded before the next act, so that a run that was killed anywhere is gone on
with by the next; that values are erased once the old one is proved dead; and that a step is told to
`on_step` at least once, before it is recorded. Refuses the credential that the run itself is
authenticated with. No value is ever part of a report, a reason or an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from blocks.rotation.store import Record, RotationStore
from domain.errors import LifecycleError, PermanentError, PolicyViolation, TemporaryError
from domain.rotation.contract import (
    Adapter,
    KeepsCurrent,
    NamesAccessors,
    Proof,
    SecretRef,
    Values,
)
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
from domain.rotation.state import RotationState, Step


class Clock(Protocol):
    """Time, so that tests need not wait."""

    def now(self) -> datetime:
        """Return the present moment."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the present moment, UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(frozen=True)
class StepReport:
    """What was done to one secret, for progress and ledger; never a value."""

    secret: SecretRef
    step: Step
    generation: int
    old_generation: int | None
    outcome: Outcome
    detail: str
    seconds: float
    fingerprints: Mapping[int, str] = field(default_factory=dict)
    """HMACs of the values that the step was about."""
    proof: Proof | None = None
    """With `prove dead` only."""


OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class Job:
    """One secret to rotate, and who asks for it."""

    secret: SecretRef
    request: Request
    limits: Limits = field(default_factory=Limits)
    run_id: str = ""
    expected: Collection[str] = ()
    """Consumers that must be seen on the new value, besides those that the class finds."""


@dataclass(frozen=True)
class _Done:
    """What an act amounts to, and the record that follows from it, its state aside."""

    record: Record
    outcome: Outcome = Outcome.OK
    detail: str = ""
    proof: Proof | None = None


def rotate_one(
    adapter: Adapter,
    store: RotationStore,
    job: Job,
    *,
    clock: Clock | None = None,
    on_step: OnStep | None = None,
) -> RotationState:
    """Rotate, or finish what another run has begun; returns the state at which it ended.

    Raises:
        PolicyViolation: it is the run's own credential. Conflict: another worker is at it.
        TemporaryError: the record could not be written; running again goes on.
    """
    engine = _Engine(adapter, store, job, clock or SystemClock(), on_step)
    state = engine.run()
    # A partial rotation is finished first; it may not count for a leak that came later.
    is_other = state.request_id != job.request.request_id
    if state.is_final and is_other and not is_satisfied(state, job.request):
        state = engine.run()
    return state


class _Engine:
    def __init__(
        self,
        adapter: Adapter,
        store: RotationStore,
        job: Job,
        clock: Clock,
        on_step: OnStep | None,
    ) -> None:
        self._adapter = adapter
        self._store = store
        self._job = job
        self._secret = job.secret
        self._clock = clock
        self._on_step = on_step

    def run(self) -> RotationState:
        record = self._begun()
        while not (act := next_act(record.state, self._job.limits)).is_nothing:
            if act.wait_seconds:
                self._clock.sleep(act.wait_seconds)
            record = self._step(record, act)
        return record.state

    def _current(self) -> Values | None:
        if isinstance(self._adapter, KeepsCurrent):
            return self._adapter.current(self._secret)
        return self._store.current(self._secret)

    def _begun(self) -> Record:
        found = self._store.load(self._secret)
        current = self._current()
        self._refuse_own(current)
        state = begin(
            found.state if found else None,
            self._job.request,
            secret_id=self._secret.secret_id,
            run_id=self._job.run_id,
            has_current=current is not None,
            limits=self._job.limits,
            now=self._clock.now(),
        )
        if found and state == found.state:
            return found
        if found is None:
            return self._store.save(self._secret, Record(state))
        proof = found.proof if state.is_partial and found.state.is_partial else ""
        return self._store.save(self._secret, replace(found, state=state, proof=proof))

    def _refuse_own(self, current: Values | None) -> None:
        if not isinstance(self._adapter, NamesAccessors):
            return
        refusal = own_credential_refusal(
            self._secret.path,
            self._store.own_accessors(),
            self._adapter.accessors(self._secret, current),
        )
        if refusal:
            raise PolicyViolation(f"{refusal}.")

    def _step(self, record: Record, act: Act) -> Record:
        started = self._clock.now()
        done = self._attempted(record, act)
        now = self._clock.now()
        state = after(
            record.state, act, done.outcome, limits=self._job.limits, now=now, reason=done.detail
        )
        fingerprints = done.record.state.fingerprints
        report = StepReport(
            secret=self._secret,
            step=act.step,
            generation=act.generation,
            old_generation=act.old_generation,
            outcome=done.outcome,
            detail=done.detail,
            seconds=(now - started).total_seconds(),
            fingerprints=fingerprints,
            proof=done.proof,
        )
        if self._on_step:
            self._on_step(report)
        state = replace(state, fingerprints=fingerprints)
        return self._store.save(self._secret, replace(done.record, state=state))

    def _attempted(self, record: Record, act: Act) -> _Done:
        """Perform the act; every failure becomes an outcome that the machine decides about."""
        try:
            return self._perform(record, act)
        except TemporaryError as error:
            return _Done(record, Outcome.TEMPORARY, str(error))
        except LifecycleError as error:
            return _Done(record, Outcome.PERMANENT, str(error))
        except Exception as error:
            # A fault of a class: its text may repeat what was sent, so only its kind is told.
            kind = type(error).__name__
            return _Done(record, Outcome.PERMANENT, f"the class {self._secret.kind} failed: {kind}")

    def _perform(self, record: Record, act: Act) -> _Done:
        if act.step is Step.CREATE:
            return self._create(record, act)
        if act.step is Step.CLEAN:
            return self._clean(record)
        new = record.values.get(act.generation)
        old = record.values.get(act.old_generation) if act.old_generation is not None else None
        if act.step is Step.FORGET:
            return self._forget(record, new, old)
        if new is None or (old is None and act.old_generation is not None):
            raise PermanentError(
                f"Unable to go on with {self._secret.path}: the record holds no value of "
                f"generation {act.generation} or {act.old_generation}. Restore the record "
                f"{self._store.path(self._secret)}, or delete it and check the path by hand."
            )
        return self._with_values(record, act.step, new, old)

    def _with_values(self, record: Record, step: Step, new: Values, old: Values | None) -> _Done:
        adapter, secret = self._adapter, self._secret
        if step is Step.SET:
            adapter.set(secret, new, old)
        elif step is Step.TEST:
            adapter.test(secret, new)
        elif step is Step.DISTRIBUTE:
            if not isinstance(adapter, KeepsCurrent):
                self._store.hand_out(secret, new, old)
            adapter.distribute(secret, new)
        elif step is Step.OBSERVE:
            return self._observe(record, new, old)
        elif old is not None:
            return self._about_the_old(record, step, new, old)
        return _Done(record)

    def _about_the_old(self, record: Record, step: Step, new: Values, old: Values) -> _Done:
        adapter, secret = self._adapter, self._secret
        if step is Step.REVOKE:
            adapter.revoke(secret, old)
        elif step is Step.PROVE_DEAD:
            proof = adapter.prove_dead(secret, old)
            text = f"{proof.method}: {proof.answer}"
            outcome = Outcome.OK if proof.is_dead else Outcome.NOT_YET
            kept = replace(record, proof=text) if proof.is_dead else record
            return _Done(kept, outcome, text, proof)
        elif step is Step.RESTORE:
            if not isinstance(adapter, KeepsCurrent):
                self._store.hand_back(secret, old, new)
            adapter.distribute(secret, old)
        elif step is Step.OBSERVE_RESTORED:
            return self._observe(record, old, new)
        return _Done(record)

    def _create(self, record: Record, act: Act) -> _Done:
        current = self._current()
        if (current is not None) != (act.old_generation is not None):
            raise PermanentError(
                f"Unable to rotate {self._secret.path}: its value appeared or vanished while the "
                "rotation began. Find the other writer in the audit log, then rotate again."
            )
        new = self._adapter.create(self._secret, act.generation, current)
        values: dict[int, Values] = {act.generation: new}
        if current is not None and act.old_generation is not None:
            values[act.old_generation] = current
        prints = {number: self._store.fingerprint(value) for number, value in values.items()}
        state = replace(record.state, fingerprints=prints)
        return _Done(replace(record, state=state, values=values))

    def _observe(self, record: Record, wanted: Values, unwanted: Values | None) -> _Done:
        seen = self._adapter.observe(self._secret, wanted, unwanted)
        found = judge(seen, self._job.expected)
        return _Done(record, found.outcome, found.text)

    def _forget(self, record: Record, new: Values | None, old: Values | None) -> _Done:
        if new is not None:
            self._adapter.rollback(self._secret, new, old)
            if old is None and not isinstance(self._adapter, KeepsCurrent):
                self._store.withdraw(self._secret, new)
        return _Done(record)

    def _clean(self, record: Record) -> _Done:
        erased = 0
        if not isinstance(self._adapter, KeepsCurrent):
            erased = self._store.erase_older(self._secret)
        detail = f"values erased from the record, {erased} old versions from the path"
        return _Done(replace(record, values={}), detail=detail)
