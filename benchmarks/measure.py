"""Measures every size in the benchmark's own lab: flows and bare tools in turn.

Promises that what is compared is measured in the same lab, minutes apart, on an emptied pool, and
that who comes first changes from round to round: the second finds warmer caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bare_runs import run_bare
from benchmarks.figures import bare_seconds, flow_shared_seconds, overhead
from benchmarks.flow_runs import bootstrap, decommission, start_samples, unchanged_bootstrap
from benchmarks.machine import this_machine
from benchmarks.memory import MemorySampler
from benchmarks.results import FlowTimes, Memory, Results, Round, Size
from benchmarks.sizes import ABSENT, SIZES, WARM_UP, cluster_name, spec
from benchmarks.workspaces import forget_workspaces
from lab.driver import Driver
from lab.layout import Layout

START_SAMPLES = 5
Say = Callable[[str], None]


@contextmanager
def _told(say: Say, what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.0f} s")


class Measurement:
    """One lab, measured."""

    def __init__(self, layout: Layout, say: Say) -> None:
        self._layout = layout
        self._driver = Driver(layout)
        self._say = say

    def run(self, nodes: Sequence[int], rounds: int, target: Path) -> Results:
        """Measure; what is known so far is stored after each size."""
        samples = self._warm_up()
        sizes: list[Size] = []
        for number in nodes:
            sizes.append(self._size(number, rounds))
            results = Results(machine=this_machine(), start_samples_seconds=samples, sizes=sizes)
            results.store(target)
        return results

    def _warm_up(self) -> list[float]:
        """Read image and programs once, so that the first size is measured like the others."""
        self._driver.set_up()
        with _told(self._say, "warm-up with the bare tools"):
            run_bare(self._layout, spec(min(SIZES), WARM_UP))
        absent = spec(min(SIZES), ABSENT)
        start_samples(self._driver, absent, 1)
        with _told(self._say, f"{START_SAMPLES} starts of a flow"):
            return start_samples(self._driver, absent, START_SAMPLES)

    def _size(self, nodes: int, rounds: int) -> Size:
        servers, workers = SIZES[nodes]
        done: list[Round] = []
        memories: list[Memory] = []
        for number in range(rounds):
            is_flow_first = (number + list(SIZES).index(nodes)) % 2 == 0
            measured, memory = self._round(nodes, is_flow_first=is_flow_first)
            done.append(measured)
            memories.append(memory)
            self._say(
                f"{cluster_name(nodes)}, round {number + 1}: "
                f"flow {flow_shared_seconds(measured):.1f} s, "
                f"bare {bare_seconds(measured):.1f} s, overhead {100 * overhead(measured):+.1f} %"
            )
        return Size(servers=servers, workers=workers, rounds=done, memory=_largest(memories))

    def _round(self, nodes: int, *, is_flow_first: bool) -> tuple[Round, Memory]:
        data = spec(nodes)
        bare: dict[str, float] = {}
        forget_workspaces()
        if not is_flow_first:
            bare = self._bare(data)
        with MemorySampler(self._layout) as sampler:
            first = self._flow(f"{data['name']}: bootstrap", bootstrap, data)
            again = self._flow(f"{data['name']}: unchanged", unchanged_bootstrap, data)
        memory = sampler.result()
        gone = self._flow(f"{data['name']}: decommission", decommission, data)
        if is_flow_first:
            bare = self._bare(data)
        measured = Round(
            first="flow" if is_flow_first else "bare",
            bootstrap=first,
            unchanged=again,
            decommission=gone,
            bare=bare,
        )
        return measured, memory

    def _flow(
        self, what: str, work: Callable[[Driver, dict[str, Any]], FlowTimes], data: dict[str, Any]
    ) -> FlowTimes:
        with _told(self._say, what):
            return work(self._driver, data)

    def _bare(self, data: dict[str, Any]) -> dict[str, float]:
        # Sampled as the flow is, only so that both carry the sampler's weight.
        with _told(self._say, f"{data['name']}: bare"), MemorySampler(self._layout):
            return run_bare(self._layout, data)


def _largest(memories: Sequence[Memory]) -> Memory:
    fields = Memory.model_fields
    return Memory(**{name: max(getattr(m, name) for m in memories) for name in fields})
