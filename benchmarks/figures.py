"""What follows from the measured figures: means, overhead, and how time grows with nodes.

Promises pure functions of the results; nothing is measured, read or written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from benchmarks.results import BARE_STEPS, PHASES, SHARED, FlowTimes, Round, Size

ONLY_THE_FLOW = tuple(phase for phase in PHASES if phase not in SHARED)


def least_squares(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return (fixed, slope) of the line through the points; None if they stand on one x."""
    count = len(points)
    if count < 2:
        return None
    mean_x = fmean(x for x, _ in points)
    mean_y = fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return mean_y - slope * mean_x, slope


def mean(size: Size, value: Callable[[Round], float]) -> float:
    """Return the mean of a figure over the rounds of one size."""
    return fmean(value(round_) for round_ in size.rounds)


def growth(sizes: Sequence[Size], value: Callable[[Size], float]) -> tuple[float, float] | None:
    """Return (fixed seconds, seconds for each further node) of a figure."""
    return least_squares([(size.nodes, value(size)) for size in sizes])


def phase_seconds(run: FlowTimes, phase: str) -> float:
    """Return a phase's duration; one that was not run took none."""
    return run.phases.get(phase, 0.0)


def flow_shared_seconds(round_: Round) -> float:
    """Return what the flow took for the work that the bare tools do, too."""
    return sum(phase_seconds(round_.bootstrap, phase) for phase in SHARED)


def bare_seconds(round_: Round) -> float:
    """Return what the bare tools took for it."""
    return sum(round_.bare[step] for step in BARE_STEPS)


def overhead(round_: Round) -> float:
    """Return the overhead of one round: 0.05 is five per cent more than bare."""
    return flow_shared_seconds(round_) / bare_seconds(round_) - 1.0


def mean_overhead(size: Size) -> float:
    """Return the overhead of the rounds' sums, so that a short round does not weigh more."""
    flow = sum(flow_shared_seconds(round_) for round_ in size.rounds)
    return flow / sum(bare_seconds(round_) for round_ in size.rounds) - 1.0


def extra_seconds(round_: Round) -> float:
    """Return what the flow took for work that the bare tools do not do at all."""
    return round_.bootstrap.start_seconds + sum(
        phase_seconds(round_.bootstrap, phase) for phase in ONLY_THE_FLOW
    )
