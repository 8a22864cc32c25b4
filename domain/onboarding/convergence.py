"""Which applications a nightly run converges, and what became of each.

Promises that every application which is remembered is in the table, also one that is left alone,
with the reason; that one which is being taken off is never brought back; and that all failures are
told at once. What it wants of an application is its last good version: of one that was never
onboarded to the end, the version that it was to become.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from domain.onboarding.saga import Journal, Version


class End(StrEnum):
    """How the convergence of one application ended, or where it is."""

    WAITS = "waits for its turn"
    RUNS = "runs"
    CONVERGED = "converged"
    APPROVAL = "waits for a person's approval"
    """Its run has a plan that deletes, or the environment asks for approval of each."""
    LEFT = "left alone"
    """A run of its own is under way, or the environment was paused."""
    WOULD_RUN = "would run"
    FAILED = "failed"


MARKS: Mapping[End, str] = {
    End.WAITS: "·",
    End.RUNS: "▶",
    End.CONVERGED: "✔",
    End.APPROVAL: "!",
    End.LEFT: "=",
    End.WOULD_RUN: "·",
    End.FAILED: "✘",
}


@dataclass
class Convergence:
    """One application of the run."""

    app: str
    version: Version | None = None
    """None: it cannot be converged, and `text` says why."""
    end: End = End.WAITS
    text: str = ""
    run_url: str = ""
    seconds: float = 0.0

    def finish(self, end: End, text: str) -> None:
        """Note how it ended."""
        self.end, self.text = end, text

    def cells(self) -> dict[str, str]:
        """Return the row of the table."""
        return {
            "app": self.app,
            "outcome": f"{MARKS[self.end]} {self.end.value}",
            "seconds": f"{self.seconds:.0f}" if self.seconds else "",
            "run": self.run_url,
            "note": self.text,
        }


@dataclass(frozen=True)
class UnderWay:
    """A run on an application that somebody else started."""

    app: str
    flow: str
    run_url: str


def convergences(
    journals: Iterable[Journal], unreadable: Mapping[str, str], under_way: Iterable[UnderWay]
) -> list[Convergence]:
    """Return what is to be done with each application, by name."""
    busy = {each.app: each for each in under_way}
    found = [_convergence(journal, busy.get(journal.name)) for journal in journals]
    found += [Convergence(app, None, End.FAILED, text) for app, text in unreadable.items()]
    return sorted(found, key=lambda each: each.app)


def _convergence(journal: Journal, busy: UnderWay | None) -> Convergence:
    name, attempt = journal.name, journal.attempt
    if busy is not None:
        return Convergence(name, None, End.LEFT, f"{busy.flow} is under way", busy.run_url)
    if attempt is not None and attempt.target is None:
        text = f"run {attempt.run_id[:8]} did not finish taking it off. Start offboard-app again."
        return Convergence(name, None, End.FAILED, text)
    version = journal.good or (attempt.target if attempt else None)
    if version is None:
        text = "its journal holds no version. Onboard it from its app.yaml, or take it off."
        return Convergence(name, None, End.FAILED, text)
    text = f"finishes what run {attempt.run_id[:8]} left" if attempt else ""
    return Convergence(name, version, End.WAITS, text)


def problem_text(environment: str, found: Sequence[Convergence]) -> str:
    """Return the error that names every application which failed; empty when none did."""
    failed = [each for each in found if each.end is End.FAILED]
    if not failed:
        return ""
    lines = []
    for each in failed:
        link = f" ({each.run_url})" if each.run_url else ""
        lines.append(f"  - {each.app}: {each.text}{link}")
    return (
        f"Unable to converge {len(failed)} of {len(found)} applications in {environment}:\n"
        + "\n".join(lines)
        + "\nMend the causes, then run again: the others are as they should be or were told."
    )
