"""Drives one application's saga: asks the machine what may run, has it done, writes it down.

Why it exists: the machine decides and touches nothing, steps touch and decide nothing. Promises
that the journal names a step before the step is touched; that a failure waits for what runs beside
it and then turns the whole attempt back; and that a run which can neither finish nor turn back ends
in one error that names what is left, and where. Refuses to go on when the journal cannot be
written: another run has taken over, or nobody could go on from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NoReturn, Protocol

from domain.errors import Conflict, LifecycleError, PermanentError
from domain.onboarding.neighbours import tenant_of
from domain.onboarding.onboarding_plan import AppPlan
from domain.onboarding.saga import (
    Act,
    Attempt,
    Course,
    Journal,
    Order,
    StepOrder,
    Version,
    after,
    before,
    begin,
    begin_removal,
    is_finished,
    orders,
    pending,
    settle,
    turn_back,
)
from domain.onboarding.tenant import Platform, Tenant
from domain.onboarding.things import Things
from tasks.onboarding.step import Step


class JournalStore(Protocol):
    """One application's journal, as this run holds it."""

    def save(self, journal: Journal) -> None:
        """Write it over what this run read or wrote last.

        Raises:
            Conflict: another run wrote meanwhile.
        """
        ...

    def forget(self) -> None:
        """Remove it."""
        ...


@dataclass(frozen=True)
class Ended:
    """How an order ended."""

    order: Order
    seconds: float
    error: BaseException | None = None


class Workers(Protocol):
    """Whoever carries orders out beside each other."""

    def start(self, order: Order, tenant: Tenant, tell: Callable[[Ended], None]) -> None:
        """Begin to carry an order out, and call `tell` once when it ended, from any thread."""
        ...


Look = Callable[[Step, Tenant], Things]
Verify = Callable[[Tenant], None]


@dataclass
class Saga:
    """One run on one application."""

    platform: Platform
    steps: Sequence[Step]
    journal: Journal
    store: JournalStore
    workers: Workers
    look: Look
    """Returns what a step finds; used to tell what is left."""
    on_started: Callable[[Order], None] = field(default=lambda _: None)
    on_ended: Callable[[Ended], None] = field(default=lambda _: None)

    @property
    def orders(self) -> list[StepOrder]:
        """The steps as the machine knows them."""
        return step_orders(self.steps)

    @property
    def attempt(self) -> Attempt:
        """The attempt under way."""
        if self.journal.attempt is None:
            raise Conflict(f"Unable to go on with {self.journal.name}: no attempt is under way.")
        return self.journal.attempt

    def keep(self, journal: Journal) -> None:
        """Write the journal; only what is written counts."""
        self.store.save(journal)
        self.journal = journal


def step_orders(steps: Sequence[Step]) -> list[StepOrder]:
    """Return the steps' names and needs.

    Raises:
        PermanentError: a step needs one that is not there or comes after it.
    """
    known: set[str] = set()
    for step in steps:
        missing = [need for need in step.needs if need not in known]
        if missing:
            raise PermanentError(
                f"Unable to order the steps: {step.name} needs {', '.join(missing)}, which does "
                "not come before it. Correct the registry of steps."
            )
        known.add(step.name)
    return [StepOrder(step.name, tuple(step.needs)) for step in steps]


# --- towards a version ---------------------------------------------------------------------------


def converge(saga: Saga, target: Version, plan: AppPlan, run_id: str, verify: Verify) -> None:
    """Bring the application to `target` and let it be verified, or bring it back as a whole.

    Raises:
        PermanentError: with the cause, and where the application stands now.
    """
    advance(saga, target, plan, run_id, verify)
    confirm(saga, verify)


def advance(saga: Saga, target: Version, plan: AppPlan, run_id: str, verify: Verify) -> None:
    """Carry out every step that the plan changes, or go back as a whole.

    Raises:
        PermanentError: with the cause, and where the application stands now.
    """
    looked_at = {look.step for look in plan.looks}
    passed_over = [step.name for step in saga.steps if step.name not in looked_at]
    saga.keep(
        begin(
            saga.journal,
            target,
            run_id,
            steps=saga.orders,
            unchanged=[*plan.unchanged, *passed_over],
            holding_data=plan.holding_data,
        )
    )
    failures = _drive(saga)
    if failures:
        _go_back(saga, failures, verify)


def confirm(saga: Saga, verify: Verify) -> None:
    """Let what was made be verified, and only then count it as the last good version.

    Raises:
        PermanentError: with the cause, and where the application stands now.
    """
    target = saga.attempt.target
    if target is None:
        raise Conflict(f"Unable to confirm {saga.journal.name}: it is being taken off.")
    try:
        verify(tenant_of(saga.platform, target))
    except Exception as error:
        _go_back(saga, [("verify", error)], verify)
    _close(saga)


def _go_back(saga: Saga, failures: Sequence[tuple[str, BaseException]], verify: Verify) -> NoReturn:
    """Turn the attempt back, and raise what became of it."""
    cause = _causes(failures)
    name = saga.journal.name
    saga.keep(turn_back(saga.journal, cause))
    course = saga.attempt.course
    undone = _drive(saga)
    if undone:
        raise PermanentError(
            f"Unable to onboard {name}: {cause}\nIt could not be taken back either: "
            f"{_causes(undone)}\n{_left_over(saga)}\n"
            "Mend the cause, then run again: what is unfinished is finished first."
        )
    kept = [step for step in saga.attempt.kept if course is Course.REMOVE]
    good = saga.journal.good
    _close(saga)
    if course is Course.REMOVE or good is None:
        left = f" The data of {', '.join(kept)} was there before and is left." if kept else ""
        raise PermanentError(
            f"Unable to onboard {name}: {cause}\nAll of it was taken back.{left} "
            "Mend the cause, then run again."
        )
    doubt = _doubt(verify, tenant_of(saga.platform, good))
    raise PermanentError(
        f"Unable to change {name}: {cause}\nIt is back at its last good version{doubt}. "
        "Mend the cause, then run again."
    )


def _doubt(verify: Verify, tenant: Tenant) -> str:
    try:
        verify(tenant)
    except Exception as error:
        return f", which does not answer as it should: {_text(error)}"
    return " and answers"


# --- towards nothing -----------------------------------------------------------------------------


def remove(saga: Saga, run_id: str, known: Version | None = None) -> None:
    """Take the application off, step by step in reverse.

    `known` tells about an application that no journal remembers.

    Raises:
        PermanentError: naming what is left, and where; the next run goes on.
    """
    saga.keep(begin_removal(saga.journal, run_id, steps=saga.orders, known=known))
    failures = _drive(saga)
    if failures:
        raise PermanentError(
            f"Unable to take {saga.journal.name} off: {_causes(failures)}\n{_left_over(saga)}\n"
            "Mend the cause, then run again: it goes on where it was."
        )
    _close(saga)


def _close(saga: Saga) -> None:
    settled = settle(saga.journal, saga.orders)
    if settled is None:
        saga.store.forget()
        saga.journal = Journal(name=saga.journal.name)
    else:
        saga.keep(settled)


# --- the loop ------------------------------------------------------------------------------------


def _drive(saga: Saga) -> list[tuple[str, BaseException]]:
    """Carry orders out until none is left; return what failed.

    Forward, the first failure ends the giving of orders: what runs is waited for. On the way back,
    whatever does not depend on the failed step is still done.
    """
    is_forward = saga.attempt.course is Course.FORWARD
    failures: list[tuple[str, BaseException]] = []
    running: set[str] = set()
    refused: set[str] = set()
    ended: SimpleQueue[Ended] = SimpleQueue()
    while True:
        if not (failures and is_forward):
            given = orders(saga.journal, saga.orders, running | refused)
            if given:
                saga.keep(before(saga.journal, given))
            for order in given:
                running.add(order.step)
                saga.on_started(order)
                saga.workers.start(order, _tenant(saga, order), ended.put)
        if not running:
            break
        end = ended.get()
        running.discard(end.order.step)
        saga.on_ended(end)
        if end.error is None:
            saga.keep(after(saga.journal, end.order))
        else:
            failures.append((end.order.step, end.error))
            refused.add(end.order.step)
    if not failures and not is_finished(saga.journal, saga.orders):
        raise PermanentError(
            f"Unable to go on with {saga.journal.name}: no step can run, and "
            f"{', '.join(pending(saga.journal, saga.orders))} are not finished. Report this."
        )
    return failures


def _tenant(saga: Saga, order: Order) -> Tenant:
    """Return what the step is to converge to; for a removal, the version that is known best."""
    attempt = saga.attempt
    version = attempt.target if order.act is Act.APPLY else next(iter(saga.journal.versions), None)
    if version is None:
        version = stranger(saga.platform, saga.journal.name)
    return tenant_of(saga.platform, version)


def stranger(platform: Platform, name: str, project_id: int = 0) -> Version:
    """Return a version of an application of which only the name is known, for looking and removal.

    It names every stage of the platform, so that each cluster is looked into.
    """
    from domain.onboarding.app_spec import AppSpec

    app = AppSpec.model_validate(
        {
            "name": name,
            "team": name,
            "repository": f"{name}/{name}",
            "owners": ["nobody@example.org"],
            "image": "registry.example.org/none:0",
            "port": 8080,
            "environments": {stage.value: {} for stage in platform.clusters},
        }
    )
    return Version(app=app, project_id=project_id)


# --- words ---------------------------------------------------------------------------------------


def _causes(failures: Sequence[tuple[str, BaseException]]) -> str:
    texts = [f"{step}: {_text(error)}" for step, error in failures]
    return texts[0] if len(texts) == 1 else "".join(f"\n  - {text}" for text in texts)


def _text(error: BaseException) -> str:
    # An error that the product does not explain may hold anything: its kind only is told.
    return str(error) if isinstance(error, LifecycleError) else f"{type(error).__name__}."


def left_over(saga: Saga) -> Mapping[str, Sequence[str]]:
    """Return by step the things that are not as the attempt should have left them."""
    found: dict[str, Sequence[str]] = {}
    by_name = {step.name: step for step in saga.steps}
    order = Act.RESTORE if saga.attempt.course is Course.BACK else Act.REMOVE
    for name in pending(saga.journal, saga.orders):
        step = by_name[name]
        tenant = _tenant(saga, Order(name, order))
        wanted = step.wanted(tenant) if order is Act.RESTORE else {}
        try:
            things = saga.look(step, tenant)
        except Exception as error:
            found[name] = [f"unknown, {step.system} did not tell ({type(error).__name__})"]
            continue
        wrong = [thing for thing, state in things.items() if wanted.get(thing) != state]
        wrong += [f"{thing} (missing)" for thing in wanted if thing not in things]
        if wrong:
            found[name] = wrong
    return found


def _left_over(saga: Saga) -> str:
    found = left_over(saga)
    by_name = {step.name: step.system for step in saga.steps}
    lines = [f"  - {by_name[name]} ({name}): {', '.join(t)}" for name, t in found.items()]
    return "Left behind:\n" + "\n".join(lines) if lines else "Nothing is left behind."
