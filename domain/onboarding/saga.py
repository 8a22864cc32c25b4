"""The saga of one application: what was begun, what is done, and what the next run has to do.

Exists because a dozen systems are changed for one application and any run may be killed between
two of them. Promises that whatever was touched stands in the journal before it is touched; that an
attempt ends as a whole, at its target or where it came from; and that the next run finishes what an
earlier one left, with the same spec, with another one, or towards nothing. Refuses to know systems:
a step is a name and the names of what it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from domain.errors import Conflict, PermanentError
from domain.onboarding.app_spec import AppName, AppSpec, Stage
from domain.spec_fields import SpecModel


class Mark(StrEnum):
    """How far one step is within an attempt; a step without a mark was not looked at yet."""

    UNCHANGED = "unchanged"
    """It holds what is wanted and this attempt did not touch it."""
    BEGUN = "begun"
    """Something may have been changed; nobody knows how much."""
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"
    """Removed, or as the last good version wants it."""


class Course(StrEnum):
    """Where an attempt goes."""

    FORWARD = "forward"
    """To its target."""
    BACK = "back"
    """To the last good version, after a failure on day 2."""
    REMOVE = "remove"
    """To nothing: off-boarding, or a first onboarding that failed."""


class Act(StrEnum):
    """What is to be done with a step now."""

    APPLY = "apply"
    """Converge to the target."""
    RESTORE = "restore"
    """Converge to the last good version."""
    REMOVE = "remove"


class Version(SpecModel):
    """What an application should be: its spec, its GitLab project, the image tag of each stage."""

    app: AppSpec
    project_id: int
    tags: dict[Stage, str] = Field(default_factory=dict)


class Attempt(SpecModel):
    """A run's way from one version to another, as far as it came."""

    target: Version | None
    """None: off-boarding."""
    course: Course
    run_id: str
    marks: dict[str, Mark] = Field(default_factory=dict)
    kept: list[str] = Field(default_factory=list)
    """Steps whose data was there before the first attempt: taking back does not remove it."""
    known: Version | None = None
    """Of an off-boarding: what was known best when it began, as the GitLab project."""
    cause: str = ""
    """Why the attempt turned back."""


class Journal(SpecModel):
    """All that is remembered about one application; gone when nothing of it is left."""

    name: AppName
    generation: int = 0
    good: Version | None = None
    attempt: Attempt | None = None

    @property
    def versions(self) -> list[Version]:
        """Every version that may be, or may become, real: for conflicts with other applications."""
        found = [self.good]
        if self.attempt is not None:
            found += [self.attempt.target, self.attempt.known]
        return [version for version in found if version is not None]


@dataclass(frozen=True)
class StepOrder:
    """The part of a step that the saga knows."""

    name: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """One thing that may be done now, beside the others of the same answer."""

    step: str
    act: Act


_BEFORE: Mapping[Act, Mark] = {
    Act.APPLY: Mark.BEGUN,
    Act.RESTORE: Mark.UNDOING,
    Act.REMOVE: Mark.UNDOING,
}
_AFTER: Mapping[Act, Mark] = {
    Act.APPLY: Mark.DONE,
    Act.RESTORE: Mark.UNDONE,
    Act.REMOVE: Mark.UNDONE,
}
_SATISFIED = (Mark.DONE, Mark.UNCHANGED)


def with_present_tags(journal: Journal, tags: Mapping[Stage, str]) -> Journal:
    """Take in what Git says that runs: a pipeline may have deployed since the last run.

    While an attempt is under way Git may show its half: then the journal is right.
    """
    if journal.good is None or journal.attempt is not None:
        return journal
    return _with(journal, good=journal.good.model_copy(update={"tags": dict(tags)}))


def only_touched(journal: Journal, names: Collection[str]) -> bool:
    """True when no attempt is under way, or one that touched nothing but these steps."""
    return _touched(journal) <= set(names)


# --- beginning -----------------------------------------------------------------------------------


def begin(
    journal: Journal,
    target: Version,
    run_id: str,
    *,
    steps: Sequence[StepOrder],
    unchanged: Collection[str],
    holding_data: Collection[str] = (),
) -> Journal:
    """Begin an attempt towards `target`, or go on with one that another run left.

    `unchanged` are the steps that hold what the target wants already. `holding_data` are the steps
    that hold data of the application now; of a first attempt, they are what was there before it.
    """
    left = journal.attempt
    touched = _touched(journal)
    marks = {}
    for step in steps:
        if step.name in unchanged:
            marks[step.name] = Mark.DONE if step.name in touched else Mark.UNCHANGED
        elif step.name in touched:
            marks[step.name] = Mark.BEGUN
    is_first = journal.good is None and left is None
    kept = sorted(holding_data) if is_first else (left.kept if left else [])
    attempt = Attempt(
        target=target, course=Course.FORWARD, run_id=run_id, marks=marks, kept=list(kept)
    )
    return _with(journal, generation=journal.generation + 1, attempt=attempt)


def begin_removal(
    journal: Journal, run_id: str, *, steps: Sequence[StepOrder], known: Version | None = None
) -> Journal:
    """Begin to take the application off, whatever became of it so far.

    `known` is what is known of an application of which no journal remembers a version.
    """
    attempt = Attempt(
        target=None,
        known=next(iter(journal.versions), known),
        course=Course.REMOVE,
        run_id=run_id,
        marks={step.name: Mark.BEGUN for step in steps},
    )
    return _with(journal, generation=journal.generation + 1, attempt=attempt)


def _touched(journal: Journal) -> set[str]:
    """Return the steps that are not, or may not be, as the last good version wants them."""
    left = journal.attempt
    if left is None:
        return set()
    marked = {name for name, mark in left.marks.items() if mark is not Mark.UNCHANGED}
    if left.course is Course.REMOVE and journal.good is not None:
        return marked  # what was removed is missing to the last good version
    return {name for name in marked if left.marks[name] is not Mark.UNDONE}


# --- going on ------------------------------------------------------------------------------------


def orders(
    journal: Journal, steps: Sequence[StepOrder], running: Collection[str] = ()
) -> list[Order]:
    """Return what may be done now, all of it at once; empty when done, or when `running` must end.

    Raises:
        PermanentError: the journal names a step that this version does not have.
    """
    attempt = _under_way(journal)
    _refuse_unknown(attempt, steps)
    if attempt.course is Course.REMOVE:
        found = _to_undo(attempt, steps, blockers=_dependents(steps), act=Act.REMOVE)
    elif attempt.course is Course.BACK:
        found = _to_undo(attempt, steps, blockers=_all_needs(steps), act=Act.RESTORE)
    else:
        found = [
            Order(step.name, Act.APPLY)
            for step in steps
            if attempt.marks.get(step.name) not in _SATISFIED
            and all(attempt.marks.get(need) in _SATISFIED for need in step.needs)
        ]
    return [order for order in found if order.step not in running]


def _to_undo(
    attempt: Attempt, steps: Sequence[StepOrder], *, blockers: Mapping[str, set[str]], act: Act
) -> list[Order]:
    pending = {name for name, mark in attempt.marks.items() if mark is not Mark.UNDONE}
    ordered = reversed(steps) if act is Act.REMOVE else steps
    return [
        Order(step.name, act)
        for step in ordered
        if step.name in pending and not blockers[step.name] & pending
    ]


def _dependents(steps: Sequence[StepOrder]) -> dict[str, set[str]]:
    """Return for each step all that needs it, also by way of others."""
    found: dict[str, set[str]] = {step.name: set() for step in steps}
    for step in reversed(steps):  # the registry's order respects needs
        for need in step.needs:
            if need in found:
                found[need] |= {step.name} | found[step.name]
    return found


def _all_needs(steps: Sequence[StepOrder]) -> dict[str, set[str]]:
    """Return for each step all that it needs, also by way of others."""
    found: dict[str, set[str]] = {}
    for step in steps:
        found[step.name] = set(step.needs).union(*(found.get(need, set()) for need in step.needs))
    return found


def before(journal: Journal, given: Iterable[Order]) -> Journal:
    """Note that orders are about to be carried out: written before anything is touched."""
    return _mark(journal, {order.step: _BEFORE[order.act] for order in given})


def after(journal: Journal, order: Order) -> Journal:
    """Note that an order was carried out and read back."""
    return _mark(journal, {order.step: _AFTER[order.act]})


def turn_back(journal: Journal, cause: str) -> Journal:
    """Give an attempt up: to nothing when it was the first one, else to the last good version.

    An off-boarding does not turn back: what is removed stays removed, and the next run goes on.
    """
    attempt = _under_way(journal)
    if attempt.course is not Course.FORWARD:
        return journal
    course = Course.REMOVE if journal.good is None else Course.BACK
    marks = {name: mark for name, mark in attempt.marks.items() if mark is not Mark.UNCHANGED}
    if course is Course.REMOVE:
        marks |= {name: Mark.UNDONE for name in attempt.kept if name in marks}
    changed = attempt.model_copy(update={"course": course, "marks": marks, "cause": cause})
    return _with(journal, attempt=changed)


# --- ending --------------------------------------------------------------------------------------


def is_finished(journal: Journal, steps: Sequence[StepOrder]) -> bool:
    """True when the attempt has reached where it goes."""
    attempt = _under_way(journal)
    if attempt.course is Course.FORWARD:
        return all(attempt.marks.get(step.name) in _SATISFIED for step in steps)
    return all(mark is Mark.UNDONE for mark in attempt.marks.values())


def settle(journal: Journal, steps: Sequence[StepOrder]) -> Journal | None:
    """Return the journal after a finished attempt; None when there is nothing left to remember.

    Raises:
        Conflict: the attempt is not finished.
    """
    attempt = _under_way(journal)
    if not is_finished(journal, steps):
        raise Conflict(
            f"Unable to close the journal of {journal.name}: {', '.join(pending(journal, steps))} "
            "not finished. Run again."
        )
    if attempt.course is Course.REMOVE:
        return None
    if attempt.course is Course.BACK or attempt.target is None:
        return _with(journal, attempt=None)
    return _with(journal, good=attempt.target, attempt=None)


def pending(journal: Journal, steps: Sequence[StepOrder]) -> list[str]:
    """Return the steps that the attempt has not finished, in their order."""
    attempt = _under_way(journal)
    if attempt.course is Course.FORWARD:
        return [step.name for step in steps if attempt.marks.get(step.name) not in _SATISFIED]
    open_marks = {name for name, mark in attempt.marks.items() if mark is not Mark.UNDONE}
    return [step.name for step in steps if step.name in open_marks]


def _under_way(journal: Journal) -> Attempt:
    if journal.attempt is None:
        raise Conflict(
            f"Unable to go on with {journal.name}: no attempt is under way. Begin one first."
        )
    return journal.attempt


def _refuse_unknown(attempt: Attempt, steps: Sequence[StepOrder]) -> None:
    unknown = sorted(set(attempt.marks) - {step.name for step in steps})
    if unknown:
        raise PermanentError(
            f"Unable to go on with the attempt of run {attempt.run_id}: its journal names "
            f"{', '.join(unknown)}, which this version does not have. Finish it with the version "
            "that began it."
        )


def _mark(journal: Journal, marks: Mapping[str, Mark]) -> Journal:
    attempt = _under_way(journal)
    return _with(journal, attempt=attempt.model_copy(update={"marks": {**attempt.marks, **marks}}))


def _with(journal: Journal, **changes: object) -> Journal:
    return journal.model_copy(update=changes)
