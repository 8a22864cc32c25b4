"""What a rotation run leaves behind for people: what became of each secret, and how long it took.

Promises that a run is called good only when every secret that it took up ended well. Refuses values
by having no place for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from domain.phases import Phase
from domain.rotation.state import Outcome, RotationState, Step
from domain.rotation.verdict import verdict


class End(StrEnum):
    """What became of one secret in this run."""

    WAITS = "waits"
    RUNS = "runs"
    ROTATED = "rotated"
    ROLLED_BACK = "rolled back"
    UNFINISHED = "not finished"
    FAILED = "failed"
    """It was refused or could not be begun; nothing is known to have changed."""
    HELD_BACK = "held back"


MARKS: Mapping[End, str] = {
    End.WAITS: "·",
    End.RUNS: "▶",
    End.ROTATED: "✔",
    End.ROLLED_BACK: "✘",
    End.UNFINISHED: "✘",
    End.FAILED: "✘",
    End.HELD_BACK: "–",
}
BAD = (End.ROLLED_BACK, End.UNFINISHED, End.FAILED)


@dataclass
class SecretProgress:
    """One secret as the run sees it now."""

    path: str
    kind: str
    environment: str
    end: End = End.WAITS
    step: str = ""
    generation: int = 0
    seconds: float = 0.0
    text: str = ""
    proof: str = ""
    seconds_per_step: dict[str, float] = field(default_factory=dict)

    def note(self, step: Step, generation: int, outcome: Outcome, seconds: float) -> None:
        """Take in what was done to it."""
        self.end = End.RUNS
        self.step = step.value
        self.generation = generation
        self.text = "" if outcome is Outcome.OK else outcome.value
        self.seconds += seconds
        self.seconds_per_step[step.value] = self.seconds_per_step.get(step.value, 0.0) + seconds

    def finish(self, state: RotationState, proof: str = "") -> None:
        """Take in how it ended."""
        found = verdict(state)
        self.step, self.generation, self.text = state.step.value, state.generation, found.text
        self.proof = proof or self.proof
        if found.is_success:
            self.end = End.ROTATED
        else:
            is_back = state.step is Step.ROLLED_BACK
            self.end = End.ROLLED_BACK if is_back else End.UNFINISHED

    def cells(self) -> dict[str, str]:
        """Return the line as a person reads it."""
        return {
            "path": self.path,
            "class": self.kind,
            "state": f"{MARKS[self.end]} {self.end.value}",
            "step": self.step,
            "generation": str(self.generation) if self.generation else "",
            "seconds": f"{self.seconds:.1f}" if self.seconds else "",
            "outcome": self.text,
        }


@dataclass(frozen=True)
class StepSeconds:
    """How long one step took over all secrets."""

    step: str
    count: int
    median_seconds: float
    longest_seconds: float


def step_seconds(secrets: Iterable[SecretProgress]) -> list[StepSeconds]:
    """Return the seconds per step, in the order of the machine."""
    found: dict[str, list[float]] = {}
    for secret in secrets:
        for step, seconds in secret.seconds_per_step.items():
            found.setdefault(step, []).append(seconds)
    return [
        StepSeconds(step.value, len(times), median(times), max(times))
        for step in Step
        if (times := found.get(step.value))
    ]


@dataclass(frozen=True)
class RotationReport:
    """Everything that the report page shows."""

    title: str
    outcome: str
    """One word: succeeded, unchanged, planned or failed."""
    summary: str
    run_id: str
    environment: str
    plan_hash: str
    approved_by: str
    phases: Sequence[Phase]
    secrets: Sequence[SecretProgress] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    by_hand: Sequence[str] = ()
    next_steps: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """Duration of all phases."""
        return round(sum(phase.seconds for phase in self.phases), 1)

    @property
    def steps(self) -> list[StepSeconds]:
        """Seconds per step."""
        return step_seconds(self.secrets)

    def count(self, *ends: End) -> int:
        """Return how many secrets ended so."""
        return sum(secret.end in ends for secret in self.secrets)


def failure_text(
    environment: str, secrets: Sequence[SecretProgress], by_hand: Sequence[str]
) -> str:
    """Return the error that ends a run in which something did not end well; empty if all did."""
    bad = [secret for secret in secrets if secret.end in BAD]
    held = [secret for secret in secrets if secret.end is End.HELD_BACK]
    if not bad and not held and not by_hand:
        return ""
    lines = [f"  - {each.path}: {each.end.value}. {each.text}" for each in (*bad, *held)]
    lines += [f"  - {path}: no rule of the policy names it. Rotate it by hand" for path in by_hand]
    total = len(secrets) + len(by_hand)
    return (
        f"Unable to rotate {len(lines)} of {total} secrets in {environment}; the others are done."
        + "\n"
        + "\n".join(lines)
        + "\nMend the cause, then run again: what is partial is finished first."
    )
