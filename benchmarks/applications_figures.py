"""The figures of applications onboarded at once, and the text that the page tells of them.

Promises the same text for the same figures, and that a set of applications counts as good only
when each is in step with Git, answers by its own name, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.figures import least_squares
from benchmarks.rendering import table
from benchmarks.results import Machine

BEGIN = "<!-- applications: begin, written by `python -m benchmarks.applications` -->"
END = "<!-- applications: end -->"
NOT_MEASURED = "Not measured yet. `python -m benchmarks.applications` measures and writes this."
PICTURE = "../docs/pictures/applications.svg"


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AppTimes(_Figures):
    """One application, from its team's push to the end of its run."""

    name: str
    has_database: bool
    push_seconds: float
    """The team's clone, commit and push."""
    hook_seconds: float
    """From the end of the push to the creation of the run: GitLab, gateway, dispatcher."""
    queue_seconds: float
    """From the run's creation to Running: Prefect's queue, and the start of its process."""
    run_seconds: float
    steps: dict[str, float]
    phases: dict[str, float]
    offboard_seconds: float
    """From Running to its end, with the answer of its gate in it."""

    @property
    def whole_seconds(self) -> float:
        """From the beginning of the push to Completed."""
        return self.push_seconds + self.hook_seconds + self.queue_seconds + self.run_seconds


class Failures(_Figures):
    """Everything that must be none."""

    not_synced: int = 0
    wrong_answers: int = 0
    """Host names at which another application answered, or none."""
    named_by_others: int = 0
    """Things of one application in which another's name was found."""
    unequal_quotas: int = 0
    left: int = 0
    """What still bore an application's name after its off-boarding."""

    @property
    def count(self) -> int:
        """All together."""
        return sum(self.model_dump().values())


class Together(_Figures):
    """So many applications at once."""

    apps: list[AppTimes] = Field(min_length=1)
    most_runs_at_once: int
    """Onboarding runs that were Running at the same moment."""
    load_average: float
    """Of the machine, over the minute before the first push."""
    wall_seconds: float
    """From the first push to the end of the last run."""
    offboard_wall_seconds: float
    failures: Failures

    @property
    def count(self) -> int:
        """Number of applications."""
        return len(self.apps)

    def middle(self, part: str) -> float:
        """Median of one of the applications' seconds."""
        return float(median(getattr(app, part) for app in self.apps))

    @property
    def slowest_seconds(self) -> float:
        """From push to Completed of the slowest."""
        return max(app.whole_seconds for app in self.apps)

    def step_seconds(self) -> dict[str, float]:
        """Step -> median of the applications that have it."""
        names = list(dict.fromkeys(name for app in self.apps for name in app.steps))
        return {
            name: median(app.steps[name] for app in self.apps if name in app.steps)
            for name in names
        }


class AppResults(_Figures):
    """One measurement, as `results_applications.json` keeps it."""

    machine: Machine
    sets: list[Together] = Field(min_length=1)

    def store(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_applications(path: Path) -> AppResults | None:
    """Return what a file holds; None when nothing was measured yet."""
    if not path.exists():
        return None
    return AppResults.model_validate_json(path.read_text(encoding="utf-8"))


def _main_table(sets: Sequence[Together]) -> str:
    head = ["seconds", *(_noun(each.count) for each in sets)]
    parts: tuple[tuple[str, Callable[[Together], float]], ...] = (
        ("push to Completed, median", lambda s: s.middle("whole_seconds")),
        ("push to Completed, slowest", lambda s: s.slowest_seconds),
        ("– push by the team, median", lambda s: s.middle("push_seconds")),
        ("– webhook to run, median", lambda s: s.middle("hook_seconds")),
        ("– Prefect's queue, median", lambda s: s.middle("queue_seconds")),
        ("– run, median", lambda s: s.middle("run_seconds")),
        ("**first push to last Completed**", lambda s: s.wall_seconds),
        ("… for each application", lambda s: s.wall_seconds / s.count),
        ("off-boarding, median of runs", lambda s: s.middle("offboard_seconds")),
        ("off-boarding of all", lambda s: s.offboard_wall_seconds),
    )
    rows = [[name, *(f"{value(each):.1f}" for each in sets)] for name, value in parts]
    rows.append(["with a database", *(str(sum(a.has_database for a in s.apps)) for s in sets)])
    rows.append(["runs at once, at most", *(str(s.most_runs_at_once) for s in sets)])
    rows.append(["load before", *(f"{s.load_average:.1f}" for s in sets)])
    return table(head, rows)


def _noun(count: int) -> str:
    return f"{count} application{'s' if count != 1 else ''}"


def _step_table(sets: Sequence[Together]) -> str:
    found = [each.step_seconds() for each in sets]
    names = list(dict.fromkeys(name for steps in reversed(found) for name in steps))
    rows = [
        [f"`{name}`", *(f"{steps[name]:.1f}" if name in steps else "–" for steps in found)]
        for name in names
    ]
    return table(["seconds of a step, median", *(f"of {each.count}" for each in sets)], rows)


def _check_table(sets: Sequence[Together]) -> str:
    parts = {
        "not Synced and Healthy": "not_synced",
        "host names with a wrong answer": "wrong_answers",
        "things that name another application": "named_by_others",
        "quotas unlike the others'": "unequal_quotas",
        "left after the off-boarding": "left",
    }
    rows = [
        [said, *(str(getattr(each.failures, name)) for each in sets)]
        for said, name in parts.items()
    ]
    return table(["must be none", *(f"of {each.count}" for each in sets)], rows)


def _growth_text(sets: Sequence[Together]) -> str:
    line = least_squares([(each.count, each.wall_seconds) for each in sets])
    if line is None:
        return "One number alone does not show how time grows."
    few, many = sets[0], sets[-1]
    return (
        f"{many.count / few.count:.0f} times as many applications take "
        f"{many.wall_seconds / few.wall_seconds:.1f} times as long. By least squares it is "
        f"{line[0]:.0f} s and {line[1]:.1f} s for each application."
    )


def applications_section(results: AppResults | None) -> str:
    """Return what stands between the marks of the page."""
    if results is None:
        return NOT_MEASURED
    sets = sorted(results.sets, key=lambda each: each.count)
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    where = (
        f"Measured on {machine.measured_on}: {machine.cores} cores, {machine.memory_gib:.0f} GiB, "
        f"{machine.architecture}, Linux {machine.kernel}; {versions}."
    )
    return "\n\n".join(
        [
            where,
            _main_table(sets),
            _growth_text(sets),
            f"![Seconds over the number of applications]({PICTURE})",
            _check_table(sets),
            _step_table(sets),
        ]
    )


def with_applications_section(page: str, results: AppResults | None) -> str:
    """Return the page with the section of applications written anew.

    Raises:
        ValueError: a mark is missing, or they are in the wrong order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            "Unable to write the applications into the page: it needs the lines "
            f"{BEGIN!r} and {END!r}, in this order. Restore them."
        )
    return f"{before}{BEGIN}\n\n{applications_section(results)}\n\n{END}{after}"
