"""The phases of a run: their order, how far they are, and the rows that people watch.

Promises that progress never goes backwards within a run and reaches 100 only when every phase
ended well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class PhaseState(StrEnum):
    """How far one phase is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


BOOTSTRAP_WEIGHTS: Mapping[str, int] = {
    "preflight": 4,
    "plan": 6,
    "gate": 1,
    "apply": 20,
    "inventory": 3,
    "configure": 42,
    "platform": 12,
    "verify": 9,
    "record": 3,
}
"""Usual shares of a bootstrap's duration, in percent; used for the progress bar only."""

DECOMMISSION_WEIGHTS: Mapping[str, int] = {
    "preflight": 10,
    "plan": 20,
    "gate": 2,
    "destroy": 45,
    "withdraw": 12,
    "prove": 8,
    "record": 3,
}

ROTATION_WEIGHTS: Mapping[str, int] = {
    "preflight": 6,
    "plan": 8,
    "gate": 1,
    "rotate": 82,
    "record": 3,
}


@dataclass
class Phase:
    """One phase of one run."""

    name: str
    state: PhaseState = PhaseState.WAITING
    seconds: float = 0.0
    summary: str = ""
    fraction: float = 0.0
    """How much of the phase is done, from 0 to 1, where the phase can tell."""


@dataclass
class RunProgress:
    """All phases of a run with their weights."""

    weights: Mapping[str, int]
    phases: dict[str, Phase] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start with every phase waiting, in the order of the weights."""
        for name in self.weights:
            self.phases.setdefault(name, Phase(name))

    @property
    def percent(self) -> float:
        """Share of the run that is done, from 0 to 100."""
        total = sum(self.weights.values())
        done = 0.0
        for name, weight in self.weights.items():
            phase = self.phases[name]
            if phase.state in (PhaseState.DONE, PhaseState.SKIPPED):
                done += weight
            elif phase.state is PhaseState.RUNNING:
                done += weight * min(max(phase.fraction, 0.0), 0.99)
        return round(100 * done / total, 1)

    @property
    def current(self) -> Phase | None:
        """The phase that runs now, or that failed."""
        for phase in self.phases.values():
            if phase.state in (PhaseState.RUNNING, PhaseState.FAILED):
                return phase
        return None

    def rows(self) -> list[dict[str, str]]:
        """Return one row a phase, as shown in the UI and in a terminal."""
        marks = {
            PhaseState.WAITING: "·",
            PhaseState.RUNNING: "▶",
            PhaseState.DONE: "✔",
            PhaseState.FAILED: "✘",
            PhaseState.SKIPPED: "–",
        }
        return [
            {
                "phase": phase.name,
                "state": f"{marks[phase.state]} {phase.state.value}",
                "seconds": f"{phase.seconds:.1f}" if phase.seconds else "",
                "summary": phase.summary,
            }
            for phase in self.phases.values()
        ]


def unfinished(progress: RunProgress) -> Sequence[str]:
    """Return the names of the phases that did not end well, in their order."""
    good = (PhaseState.DONE, PhaseState.SKIPPED)
    return [phase.name for phase in progress.phases.values() if phase.state not in good]
