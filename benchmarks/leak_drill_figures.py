"""The leak drill's figures, and the text that the benchmark's page tells of them.

Promises the same text for the same figures, and that a drill counts as good only when every secret
was rotated, every old value was refused and every new one accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.figures import least_squares
from benchmarks.rendering import table
from benchmarks.results import FlowTimes, Machine

BEGIN = "<!-- leak drill: begin, written by `python -m benchmarks.leak_drill` -->"
END = "<!-- leak drill: end -->"
NOT_MEASURED = "Not measured yet. `python -m benchmarks.leak_drill` measures and writes this."
PICTURE = "../docs/pictures/leak-drill.svg"
GOAL_SECRETS, GOAL_SECONDS = 200, 600.0


class DrillFigures(BaseModel):
    """One leak: so many secrets, and what became of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: dict[str, int] = Field(min_length=1)
    """Class -> number of its secrets."""
    times: FlowTimes
    load_average: float | None = None
    """Of the machine, over the minute before the run: what else it was busy with."""
    class_seconds: dict[str, float]
    """Class -> median seconds of one secret without its waits, from the run's own table."""
    not_rotated: int
    not_proved: int
    """Old values of whose death the ledger holds no proof."""
    old_accepted: int
    """Old values that their system still accepted when they were tried afterwards."""
    new_refused: int

    @property
    def secrets(self) -> int:
        """Number of secrets below the prefix."""
        return sum(self.classes.values())

    @property
    def failures(self) -> int:
        """Everything that must be none."""
        return self.not_rotated + self.not_proved + self.old_accepted + self.new_refused

    @property
    def seconds_per_secret(self) -> float:
        """Seconds from the run's creation to its end, for each secret."""
        return self.times.whole_seconds / self.secrets


class DrillResults(BaseModel):
    """One measurement, as `results_leak_drill.json` keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: Machine
    drills: list[DrillFigures] = Field(min_length=1)

    def store(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_drills(path: Path) -> DrillResults | None:
    """Return what a file holds; None when nothing was measured yet."""
    if not path.exists():
        return None
    return DrillResults.model_validate_json(path.read_text(encoding="utf-8"))


def _main_table(drills: Sequence[DrillFigures]) -> str:
    phases = list(drills[-1].times.phases)
    shown = [name for name in phases if any(d.times.phases.get(name, 0) >= 0.05 for d in drills)]
    head = ["secrets", "classes", "seconds", "for each", "failures", "load before", *shown]
    rows = [
        [
            f"{drill.secrets:,}",
            str(len(drill.classes)),
            f"{drill.times.whole_seconds:.1f}",
            f"{drill.seconds_per_secret:.2f}",
            str(drill.failures),
            "–" if drill.load_average is None else f"{drill.load_average:.1f}",
            *(f"{drill.times.phases.get(name, 0.0):.1f}" for name in shown),
        ]
        for drill in drills
    ]
    return table(head, rows)


def _class_table(drills: Sequence[DrillFigures]) -> str:
    rows = [
        [f"`{kind}`", *(f"{drill.class_seconds[kind]:.2f}" for drill in drills)]
        for kind in drills[0].classes
    ]
    return table(
        ["seconds of work on one secret, median", *(f"of {d.secrets:,}" for d in drills)], rows
    )


def _growth_text(drills: Sequence[DrillFigures]) -> str:
    line = least_squares([(drill.secrets, drill.times.whole_seconds) for drill in drills])
    if line is None:
        return "One number alone does not show how time grows."
    few, many = drills[0], drills[-1]
    times = many.secrets / few.secrets
    longer = many.times.whole_seconds / few.times.whole_seconds
    return (
        f"{times:.0f} times as many secrets take {longer:.1f} times as long. By least squares it "
        f"is {line[0]:.0f} s and {line[1]:.2f} s for each secret."
    )


def _goal_text(drills: Sequence[DrillFigures]) -> str:
    found = [drill for drill in drills if drill.secrets == GOAL_SECRETS]
    if not found:
        return f"The goal is for {GOAL_SECRETS} secrets, which were not measured."
    is_met = not found[0].failures and found[0].times.whole_seconds < GOAL_SECONDS
    return (
        f"The goal, {GOAL_SECRETS} secrets rotated and proved dead in less than "
        f"{GOAL_SECONDS / 60:.0f} minutes, is {'met' if is_met else 'missed'}."
    )


def drill_section(results: DrillResults | None) -> str:
    """Return what stands between the marks of the page."""
    if results is None:
        return NOT_MEASURED
    drills = sorted(results.drills, key=lambda drill: drill.secrets)
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    where = (
        f"Measured on {machine.measured_on}: {machine.cores} cores, {machine.memory_gib:.0f} GiB, "
        f"{machine.architecture}, Linux {machine.kernel}; {versions}."
    )
    growth = f"{_goal_text(drills)} {_growth_text(drills)}"
    picture = f"![Seconds over the number of secrets]({PICTURE})"
    return "\n\n".join([where, _main_table(drills), growth, picture, _class_table(drills)])


def with_drill_section(page: str, results: DrillResults | None) -> str:
    """Return the page with the drill's section written anew.

    Raises:
        ValueError: a mark is missing, or they are in the wrong order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"Unable to write the drill into the page: it needs the lines {BEGIN!r} and {END!r}, "
            "in this order. Restore them."
        )
    return f"{before}{BEGIN}\n\n{drill_section(results)}\n\n{END}{after}"
