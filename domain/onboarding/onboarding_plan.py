"""What a run would do to an application, thing by thing, before it does it.

Promises one hash over all that would be done, so that an approval counts for the plan that was
shown; that drift is told from what the spec changes; and that a plan which deletes anything waits
for a person in every environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from domain.gate import GateDecision, GateOutcome, GatePolicy, decide
from domain.onboarding.saga import Version
from domain.onboarding.things import Act, ThingChange, Things, differences, digest

MARKS: Mapping[Act, str] = {Act.CREATE: "+ create", Act.CHANGE: "~ change", Act.DELETE: "- delete"}


@dataclass(frozen=True)
class StepLook:
    """What one step found and wants."""

    step: str
    system: str
    holds_data: bool
    found: Things
    wanted: Things
    was_wanted: Things | None = None
    """What the last good version wants; None when there is none, or when it is not known to be
    in force because an earlier run did not finish."""

    @property
    def changes(self) -> list[ThingChange]:
        """What must be done, deletions last."""
        return differences(self.step, self.system, self.found, self.wanted)

    @property
    def drifted(self) -> set[str]:
        """Things that somebody changed since the last run: not as the last good version wants."""
        if self.was_wanted is None:
            return set()
        return {
            change.thing
            for change in differences(self.step, self.system, self.found, self.was_wanted)
        }


@dataclass(frozen=True)
class PlanLine:
    """One line of the table."""

    change: ThingChange
    holds_data: bool
    is_drift: bool

    def cells(self) -> dict[str, str]:
        """Return the line as a person reads it."""
        loses = self.holds_data and self.change.act is Act.DELETE
        return {
            "step": self.change.step,
            "system": self.change.system,
            "act": MARKS[self.change.act],
            "thing": self.change.thing,
            "why": "drift" if self.is_drift else "spec",
            "note": "loses data" if loses else "",
        }


@dataclass(frozen=True)
class AppPlan:
    """Everything that one run would do to one application."""

    app: str
    target: Version | None
    """None: off-boarding."""
    looks: Sequence[StepLook]
    good: Version | None = None
    """The last good version, if there is one."""
    unfinished: str = ""
    """The run that left an attempt unfinished, if there is one."""
    lines: Sequence[PlanLine] = field(init=False)

    def __post_init__(self) -> None:
        """List the lines once."""
        lines = [
            PlanLine(change, look.holds_data, change.thing in look.drifted)
            for look in self.looks
            for change in look.changes
        ]
        object.__setattr__(self, "lines", lines)

    @property
    def is_empty(self) -> bool:
        """True when everything is as wanted, is known to be, and nothing is left to finish."""
        return not self.lines and not self.unfinished and self.target == self.good

    @property
    def deletes(self) -> int:
        """How many things would be gone."""
        return sum(line.change.act is Act.DELETE for line in self.lines)

    @property
    def unchanged(self) -> list[str]:
        """Steps that hold what is wanted."""
        return [look.step for look in self.looks if not look.changes]

    @property
    def holding_data(self) -> list[str]:
        """Steps that hold data of the application now."""
        return [look.step for look in self.looks if look.holds_data and look.found]

    @property
    def plan_hash(self) -> str:
        """Changes when anything that would be done changes."""
        wanted = {look.step: dict(look.wanted) for look in self.looks}
        lines = [(c.step, c.thing, c.act.value) for c in (line.change for line in self.lines)]
        target = self.target.model_dump(mode="json") if self.target else None
        return digest([self.app, target, sorted(lines), wanted]) + digest([sorted(lines), target])

    @property
    def done(self) -> str:
        """What was done once the plan is carried out, in one line."""
        counts = {act: sum(line.change.act is act for line in self.lines) for act in Act}
        words = {Act.CREATE: "created", Act.CHANGE: "changed", Act.DELETE: "deleted"}
        return ", ".join(f"{counts[act]} {words[act]}" for act in Act if counts[act]) or "no change"

    @property
    def summary(self) -> str:
        """The plan in one line."""
        if self.is_empty:
            return "nothing to do"
        counts = [
            f"{sum(line.change.act is act for line in self.lines)} to {act.value}" for act in Act
        ]
        drift = sum(line.is_drift for line in self.lines)
        parts = [*counts, *([f"{drift} by drift"] if drift else [])]
        if self.unfinished:
            parts.append(f"finishes run {self.unfinished[:8]}")
        if not self.lines and self.target is not None and not self.unfinished:
            return "everything is there; it becomes known as the last good version"
        return ", ".join(parts)

    def rows(self) -> list[dict[str, str]]:
        """Return the table of the plan."""
        return [line.cells() for line in self.lines]


def gate_decision(plan: AppPlan, policy: GatePolicy) -> GateDecision:
    """Decide whether the plan waits: what deletes anything waits whatever the policy says."""
    if plan.target is None and not plan.is_empty:
        return GateDecision(
            GateOutcome.WAITS,
            f"The plan takes {plan.app} off: {plan.deletes} things and their data would be gone.",
        )
    changes = len(plan.lines) or int(not plan.is_empty)
    return decide(policy, changes=changes, destroys=plan.deletes)


def inventory_rows(
    before: Mapping[str, Things], after: Mapping[str, Things]
) -> list[dict[str, str]]:
    """Return one row a thing: what there was before and what there is after, per step."""
    rows = []
    for step in before:
        things = sorted({*before[step], *after.get(step, {})})
        for thing in things:
            was, remains = before[step].get(thing), after.get(step, {}).get(thing)
            same = "= unchanged" if was == remains else "~ changed"
            mark = "- gone" if remains is None else ("+ new" if was is None else same)
            rows.append(
                {
                    "step": step,
                    "thing": thing,
                    "before": was or "",
                    "after": remains or "",
                    "result": mark,
                }
            )
    return rows
