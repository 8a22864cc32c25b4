"""What one run is going to do, as it is shown to people and as an approval is bound to it.

Promises one hash for one plan: the same secrets, in the same order, in the same way, under the same
commit of the policy. Refuses to let a class that needs a person into a run that nobody watches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from domain.errors import PolicyViolation
from domain.gate import GateDecision, GateOutcome, GatePolicy
from domain.rotation.blast_radius import BlastRadius
from domain.rotation.policy import RotationPolicy
from domain.rotation.schedule import DueRow, Plan, Slot, Status, Wave, in_words, plan


class Way(StrEnum):
    """How a run was begun."""

    NIGHTLY = "nightly"
    ONE = "one"
    LEAK = "leak"


@dataclass(frozen=True)
class RunPlan:
    """Everything that a run does and leaves."""

    way: Way
    policy_commit: str
    waves: tuple[Wave, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Path of a secret that is due and not rotated now -> why."""
    approvals: frozenset[str] = frozenset()
    """Paths whose class asks a person each time."""
    accessors: tuple[str, ...] = ()
    """Tokens that are revoked before anything is rotated."""
    by_hand: tuple[str, ...] = ()
    """Paths that a leak reaches and no rule names."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every rotation, in order."""
        return tuple(slot for wave in self.waves for batch in wave.batches for slot in batch)

    @property
    def is_empty(self) -> bool:
        """True when nothing would be touched."""
        return not self.slots and not self.accessors

    @property
    def plan_hash(self) -> str:
        """Digest of what an approval is given for."""
        content = {
            "way": self.way.value,
            "policy": self.policy_commit,
            "rows": [
                [slot.row.path, slot.row.ruled.secret.kind, self.mode(slot)] for slot in self.slots
            ],
            "accessors": sorted(self.accessors),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def mode(self, slot: Slot) -> str:
        """Return which promise comes first for a rotation."""
        may_revoke_first = slot.row.ruled.policy.revoke_first and self.way is Way.LEAK
        return "revoke first" if may_revoke_first else "overlap"

    @property
    def summary(self) -> str:
        """The plan in one line."""
        parts = [f"{_counted(len(self.slots), 'secret')} in {_counted(len(self.waves), 'wave')}"]
        if self.waiting:
            parts.append(f"{len(self.waiting)} waiting")
        if self.accessors:
            parts.append(f"{_counted(len(self.accessors), 'token')} to revoke")
        if self.by_hand:
            parts.append(f"{len(self.by_hand)} to rotate by hand")
        return ", ".join(parts)

    def rows(self) -> list[dict[str, str]]:
        """Return the plan as a table: what is rotated in order, then what is not and why."""
        found = []
        for number, wave in enumerate(self.waves, start=1):
            for place, batch in enumerate(wave.batches, start=1):
                for slot in batch:
                    found.append(
                        {
                            "wave": f"{number} {wave.environment}",
                            "batch": str(place),
                            "path": slot.row.path,
                            "class": slot.row.ruled.secret.kind,
                            "mode": "to be finished" if wave.is_resumed else self.mode(slot),
                            "approval": "a person" if slot.row.path in self.approvals else "policy",
                            "note": "",
                        }
                    )
        left = [(path, "waits", why) for path, why in sorted(self.waiting.items())]
        left += [(path, "by hand", "no rule of the policy names it") for path in self.by_hand]
        for path, wave_text, why in left:
            found.append(
                {
                    "wave": wave_text,
                    "batch": "",
                    "path": path,
                    "class": "",
                    "mode": "",
                    "approval": "",
                    "note": why,
                }
            )
        return found


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def nightly_plan(
    policy: RotationPolicy,
    rows: Sequence[DueRow],
    now: datetime,
    *,
    policy_commit: str,
    asking: Collection[str],
) -> RunPlan:
    """Return what a run by the clock does; `asking` are the classes that need a person."""
    mine = [row for row in rows if row.ruled.secret.kind not in asking]
    made = plan(policy, mine, now)
    waiting = _waiting(made)
    for row in plan_rows(plan(policy, [row for row in rows if row not in mine], now)):
        waiting[row.path] = (
            f"its class {row.ruled.secret.kind} asks a person: start rotate-secrets/one for it"
        )
    return RunPlan(Way.NIGHTLY, policy_commit, made.waves, waiting)


def plan_rows(made: Plan) -> Iterator[DueRow]:
    """Yield the rows that a plan takes."""
    for wave in made.waves:
        for batch in wave.batches:
            yield from (slot.row for slot in batch)


def _waiting(made: Plan) -> dict[str, str]:
    return {
        each.row.path: f"its window opens in {in_words(each.opens_in)}" for each in made.waiting
    }


def one_plan(
    policy: RotationPolicy,
    rows: Sequence[DueRow],
    now: datetime,
    *,
    policy_commit: str,
    asking: Collection[str],
    is_outside_windows: bool,
) -> RunPlan:
    """Return what a run for one secret does, be it due or not.

    Raises:
        PolicyViolation: its window is closed and the run was not told to go on all the same.
    """
    closed = plan(policy, [_as_due(row) for row in rows], now).waiting
    if closed and not is_outside_windows:
        first = closed[0]
        raise PolicyViolation(
            f"Unable to rotate {first.row.path} now: its window opens in "
            f"{in_words(first.opens_in)}. Start the run then, or with outside_windows."
        )
    made = plan(policy, rows, now, is_leak=True)
    asked = frozenset(row.path for row in rows if row.ruled.secret.kind in asking)
    return RunPlan(Way.ONE, policy_commit, _without_jitter(made.waves), approvals=asked)


def _as_due(row: DueRow) -> DueRow:
    return replace(row, status=Status.DUE) if row.status is Status.LATER else row


def leak_plan(
    policy: RotationPolicy,
    rows: Sequence[DueRow],
    radius: BlastRadius,
    now: datetime,
    *,
    policy_commit: str,
    asking: Collection[str],
) -> RunPlan:
    """Return what a run after a leak does: what opens other secrets goes first."""
    place = {hit.path: hit for hit in radius.hits}
    ordered = sorted(
        (row for row in rows if row.path in place), key=lambda row: place[row.path].position
    )
    stages = (
        [row for row in ordered if place[row.path].opens_others],
        [row for row in ordered if not place[row.path].opens_others],
    )
    waves = [wave for stage in stages for wave in plan(policy, stage, now, is_leak=True).waves]
    asked = frozenset(row.path for row in ordered if row.ruled.secret.kind in asking)
    return RunPlan(
        Way.LEAK,
        policy_commit,
        _without_jitter(waves),
        approvals=asked,
        accessors=radius.accessors,
        by_hand=radius.by_hand,
    )


def _without_jitter(waves: Sequence[Wave]) -> tuple[Wave, ...]:
    """Nobody who waits for a run by hand or after a leak is helped by a spread start."""
    return tuple(
        replace(
            wave,
            batches=tuple(
                tuple(replace(slot, starts_after_seconds=0.0) for slot in batch)
                for batch in wave.batches
            ),
        )
        for wave in waves
    )


def gate_decision(made: RunPlan, policy: GatePolicy) -> GateDecision:
    """Decide whether a plan goes on at once.

    A run by the clock does what a commit of the policy file says, and that commit is its approval.
    """
    if made.is_empty:
        return GateDecision(GateOutcome.NOTHING_TO_DO, "Nothing is due.")
    if made.approvals:
        names = ", ".join(sorted(made.approvals))
        return GateDecision(GateOutcome.WAITS, f"A person must agree to the rotation of {names}.")
    if made.way is Way.NIGHTLY:
        commit = made.policy_commit[:12]
        return GateDecision(GateOutcome.PASSES, f"The policy of commit {commit} asks for it.")
    if policy is GatePolicy.APPROVAL:
        return GateDecision(
            GateOutcome.WAITS, "The environment's policy asks for approval of every plan."
        )
    return GateDecision(GateOutcome.PASSES, "The environment's policy lets rotations pass.")
