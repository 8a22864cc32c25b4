"""The gateway's figures, and the text that the benchmark's page tells of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.rendering import table
from benchmarks.results import Machine

BEGIN = "<!-- gateway: begin, written by `python -m benchmarks.gateway` -->"
END = "<!-- gateway: end -->"
NOT_MEASURED = "Not measured yet. `python -m benchmarks.gateway` measures and writes this."
GOAL_MILLISECONDS = 50.0


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoadFigures(_Figures):
    """One server under one load, in one round."""

    per_second: float
    p50_milliseconds: float
    p99_milliseconds: float
    longest_milliseconds: float


class RoundFigures(_Figures):
    """One round: both servers, one after the other."""

    load_average: float
    """Of the machine, over the minute before: what else it was busy with."""
    bare_full: LoadFigures
    bare_paced: LoadFigures
    gateway_full: LoadFigures
    gateway_paced: LoadFigures


class GatewayResults(_Figures):
    """One measurement, as `results_gateway.json` keeps it."""

    machine: Machine
    deliveries: int
    """Of each phase at full speed."""
    connections: int
    pace_per_second: float
    fsync_milliseconds: float
    """Median time of the store's disk to write one page for good."""
    rounds: list[RoundFigures] = Field(min_length=1)

    def store(self, path: Path) -> None:
        """Write the file."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_gateway(path: Path) -> GatewayResults | None:
    """Return what a file holds; None when nothing was measured yet."""
    if not path.exists():
        return None
    return GatewayResults.model_validate_json(path.read_text(encoding="utf-8"))


def _median(figures: Sequence[LoadFigures]) -> LoadFigures:
    names = LoadFigures.model_fields
    return LoadFigures(**{name: median(getattr(f, name) for f in figures) for name in names})


def _row(name: str, figures: LoadFigures) -> list[str]:
    return [
        name,
        f"{figures.per_second:,.0f}",
        f"{figures.p50_milliseconds:.1f}",
        f"{figures.p99_milliseconds:.1f}",
        f"{figures.longest_milliseconds:.1f}",
    ]


def _goal_text(results: GatewayResults) -> str:
    worst = max(each.gateway_paced.p99_milliseconds for each in results.rounds)
    middle = median(each.gateway_paced.p99_milliseconds for each in results.rounds)
    is_met = middle < GOAL_MILLISECONDS
    return (
        f"The goal, an answer in less than {GOAL_MILLISECONDS:.0f} ms at p99 with the delivery on "
        f"disk before it, is {'met' if is_met else 'missed'} at "
        f"{results.pace_per_second:.0f} deliveries a second: {middle:.1f} ms in the median of "
        f"{len(results.rounds)} rounds, {worst:.1f} ms in the worst."
    )


def gateway_section(results: GatewayResults | None) -> str:
    """Return what stands between the marks of the page."""
    if results is None:
        return NOT_MEASURED
    machine, rounds = results.machine, results.rounds
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    loads = ", ".join(f"{each.load_average:.1f}" for each in rounds)
    where = (
        f"Measured on {machine.measured_on}: {machine.cores} cores, {machine.memory_gib:.0f} GiB, "
        f"{machine.architecture}, Linux {machine.kernel}; {versions}. Client and server share the "
        f"machine; the disk takes {results.fsync_milliseconds:.1f} ms to write a page for good. "
        f"Load average before each round: {loads}."
    )
    head = ["median of the rounds", "deliveries/s", "p50 ms", "p99 ms", "longest ms"]
    full = table(
        [f"at full speed, {results.connections} connections", *head[1:]],
        [
            _row("bare ASGI application", _median([each.bare_full for each in rounds])),
            _row("gateway", _median([each.gateway_full for each in rounds])),
        ],
    )
    paced = table(
        [f"at {results.pace_per_second:.0f} a second", *head[1:]],
        [
            _row("bare ASGI application", _median([each.bare_paced for each in rounds])),
            _row("gateway", _median([each.gateway_paced for each in rounds])),
        ],
    )
    share = median(each.gateway_full.per_second / each.bare_full.per_second for each in rounds)
    compared = (
        f"At full speed the gateway takes {share:.0%} of what an application does that reads the "
        "body and answers, on the same server with the same TLS. The rest is the signature, the "
        "reading of the event and the wait for the disk, which deliveries that come at the same "
        "time share."
    )
    return "\n\n".join([where, full, paced, _goal_text(results), compared])


def with_gateway_section(page: str, results: GatewayResults | None) -> str:
    """Return the page with this section in it; the rest is untouched.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"Unable to write the page: it lacks {BEGIN!r} or {END!r}.")
    return f"{before}{BEGIN}\n{gateway_section(results)}\n{END}{after}"
