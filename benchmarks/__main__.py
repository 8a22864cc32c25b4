"""The command `python -m benchmarks`: measures, prints the tables, writes page and picture.

The committed page, picture and figures are written by a complete measurement only; a partial one
goes to test-results/benchmark, so that figures of different moments are never mixed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.bare_runs import BareFailed
from benchmarks.measure import Measurement
from benchmarks.own_lab import BenchmarkRefused, alone, forget_the_shell, own_lab
from benchmarks.picture import stacked_bars
from benchmarks.rendering import section, with_section
from benchmarks.results import Results, read_results
from benchmarks.sizes import SIZES
from domain.errors import LifecycleError
from lab.driver import DriverFailed
from lab.lifecycle import LabFailed
from lab.preflight import PreflightFailed
from lab.services.service import ServiceFailed

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "README.md"
FIGURES = ROOT / "benchmarks" / "results.json"
PICTURE = ROOT / "docs" / "pictures" / "benchmark.svg"
PARTIAL = ROOT / "test-results" / "benchmark"
EXPECTED = (
    BareFailed,
    BenchmarkRefused,
    DriverFailed,
    LabFailed,
    LifecycleError,
    PreflightFailed,
    ServiceFailed,
)


def write_page(results: Results | None) -> None:
    """Write the committed page and picture from the figures."""
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None:
        PICTURE.write_text(stacked_bars(results), encoding="utf-8")


def _sizes(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    unknown = [word for word in words if not word.isdigit() or int(word) not in SIZES]
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: there are {', '.join(map(str, SIZES))} nodes."
        )
    return sorted({int(word) for word in words})


def _measured(nodes: list[int], rounds: int, *, is_kept: bool) -> Results:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    forget_the_shell()
    with alone(), own_lab(say, is_kept=is_kept, logs=PARTIAL / "lab-log") as layout:
        return Measurement(layout, say).run(nodes, rounds, PARTIAL / "results.json")


def main(
    nodes: Annotated[str, typer.Option(help="Sizes to measure, by number of nodes.")] = ",".join(
        map(str, SIZES)
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Comparisons of each size.")] = 2,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up.")] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Measure nothing; write the page anew.")
    ] = False,
) -> None:
    """Measure the flows against the bare tools in a lab of the benchmark's own."""
    if render:
        write_page(read_results(FIGURES))
        return
    wanted = _sizes(nodes)
    try:
        results = _measured(wanted, rounds, is_kept=keep)
    except EXPECTED as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"\n{section(results)}")
    if wanted == sorted(SIZES):
        results.store(FIGURES)
        write_page(results)
        print(f"\nWritten: {FIGURES}, {PAGE}, {PICTURE}")
    else:
        (PARTIAL / "benchmark.svg").write_text(stacked_bars(results), encoding="utf-8")
        print(f"\nNot all sizes were measured: the figures are in {PARTIAL} only.")


if __name__ == "__main__":
    typer.run(main)
