"""Writes the measured figures as text: the benchmark's page and what the terminal shows.

Promises the same text for the same results, tables that can be read as they stand, and that only
what lies between the page's two marks is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.figures import (
    ONLY_THE_FLOW,
    bare_seconds,
    extra_seconds,
    flow_shared_seconds,
    growth,
    mean,
    mean_overhead,
    overhead,
    phase_seconds,
)
from benchmarks.results import PHASES, SHARED, Machine, Memory, Results, Round, Size

BEGIN = "<!-- benchmark: begin, written by `make bench` -->"
END = "<!-- benchmark: end -->"
GOAL = 0.10
NOT_MEASURED = "Not measured yet. `make bench` measures and writes this section."
PICTURE = "../docs/pictures/benchmark.svg"
Row = Sequence[str]


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table whose columns are aligned in its source, too."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Row) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|:" + "-" * (widths[0] + 1) + "|" + "".join("-" * (w + 1) + ":|" for w in widths[1:])
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def _heads(sizes: Sequence[Size]) -> list[str]:
    return [f"{size.nodes} node{'s' if size.nodes != 1 else ''}" for size in sizes]


def _row(name: str, sizes: Sequence[Size], value: Callable[[Round], float]) -> Row:
    """Return a row of seconds: one column a size, then the seconds for each further node."""
    line = growth(sizes, lambda size: mean(size, value))
    slope = f"{line[1]:.1f}" if line else "–"
    return [name, *(f"{mean(size, value):.1f}" for size in sizes), slope]


def _phases(sizes: Sequence[Size]) -> str:
    def of(phase: str) -> Callable[[Round], float]:
        return lambda round_: phase_seconds(round_.bootstrap, phase)

    rows = [_row("start (created to Running)", sizes, lambda r: r.bootstrap.start_seconds)]
    rows += [_row(phase, sizes, of(phase)) for phase in PHASES]
    rows.append(_row("**whole run**", sizes, lambda r: r.bootstrap.whole_seconds))
    rows.append(_row("second run, unchanged", sizes, lambda r: r.unchanged.whole_seconds))
    rows.append(_row("decommission", sizes, lambda r: r.decommission.whole_seconds))
    return table(["seconds", *_heads(sizes), "each further node"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _spread(size: Size) -> str:
    found = [overhead(round_) for round_ in size.rounds]
    if len(found) == 1:
        return "–"
    return f"{_percent(min(found))} to {_percent(max(found))}"


def _against_bare(sizes: Sequence[Size]) -> str:
    def both(name: str, phase: str, bare: Sequence[str]) -> Row:
        def cell(size: Size) -> str:
            ours = mean(size, lambda r: phase_seconds(r.bootstrap, phase))
            plain = mean(size, lambda r: sum(r.bare[step] for step in bare))
            return f"{ours:.1f} / {plain:.1f}"

        return [name, *map(cell, sizes)]

    def totals(size: Size) -> str:
        return f"{mean(size, flow_shared_seconds):.1f} / {mean(size, bare_seconds):.1f}"

    rows: list[Row] = [
        both("plan / init + plan", "plan", ("init", "plan")),
        both("apply / apply", "apply", ("apply",)),
        both("configure / playbook", "configure", ("configure",)),
        ["**sum**", *map(totals, sizes)],
        ["**overhead** (goal: under +10 %)", *(_percent(mean_overhead(size)) for size in sizes)],
        ["overhead, round by round", *map(_spread, sizes)],
    ]
    return table(["seconds: flow / bare", *_heads(sizes)], rows)


def _only_the_flow(sizes: Sequence[Size]) -> str:
    rows: list[Row] = [
        ["done by the flow alone", *(f"{mean(s, extra_seconds):.1f}" for s in sizes)],
        ["whole flow", *(f"{mean(s, lambda r: r.bootstrap.whole_seconds):.1f}" for s in sizes)],
        ["whole bare, with its wait", *(f"{mean(s, _bare_whole):.1f}" for s in sizes)],
    ]
    return table(["seconds", *_heads(sizes)], rows)


def _bare_whole(round_: Round) -> float:
    return bare_seconds(round_) + round_.bare["wait"]


def _memory(sizes: Sequence[Size]) -> str:
    parts: Sequence[tuple[str, Callable[[Memory], float]]] = (
        ("Prefect server", lambda m: m.prefect_server),
        ("worker", lambda m: m.worker),
        ("flow's process, peak", lambda m: m.flow_process),
        ("programs of the flow, peak", lambda m: m.flow_programs),
        ("services of the lab", lambda m: m.lab_services),
        ("guests, all", lambda m: m.guests),
    )
    rows = [[name, *(f"{value(size.memory):.0f}" for size in sizes)] for name, value in parts]
    rows.append(["for each guest", *(f"{s.memory.guests / s.nodes:.0f}" for s in sizes)])
    return table(["MiB (proportional)", *_heads(sizes)], rows)


def _start(results: Results) -> str:
    samples = results.start_samples_seconds
    return (
        f"From the run's creation to Running, on an otherwise idle lab, {len(samples)} samples: "
        f"median {median(samples):.1f} s, least {min(samples):.1f} s, most {max(samples):.1f} s."
    )


def _growth_text(sizes: Sequence[Size], machine: Machine) -> str:
    def configure(size: Size) -> float:
        return mean(size, lambda r: phase_seconds(r.bootstrap, "configure"))

    line = growth(sizes, configure)
    if line is None:
        return "One size alone does not show how time grows with nodes."
    few, many = min(sizes, key=lambda s: s.nodes), max(sizes, key=lambda s: s.nodes)
    whole = growth(sizes, lambda size: mean(size, lambda r: r.bootstrap.whole_seconds))
    parts = [
        f"Configure runs all hosts in parallel: {many.nodes} nodes take "
        f"{configure(many) / configure(few):.1f} times as long as {few.nodes}.",
        f"By least squares it is {line[0]:.0f} s and {line[1]:.1f} s for each node",
    ]
    if whole is not None:
        parts[-1] += f"; the whole run is {whole[0]:.0f} s and {whole[1]:.1f} s for each node."
    parts.append(
        f"All guests, the lab and the worker share {machine.cores} cores here, so a part of the "
        "slope is that machine and not the flow; further servers also join etcd one after another."
    )
    return " ".join(parts)


def _met(sizes: Sequence[Size]) -> str:
    over = [s for s in sizes if mean_overhead(s) >= GOAL]
    if not over:
        return "The goal of less than 10 % is met at every size."
    missed = ", ".join(f"{s.nodes} ({_percent(mean_overhead(s))})" for s in over)
    return f"The goal of less than 10 % is missed at these numbers of nodes: {missed}."


def _machine(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rounds = max((len(size.rounds) for size in results.sizes), default=0)
    sizes = ", ".join(f"{s.nodes} = {s.servers} + {s.workers}" for s in results.sizes)
    return (
        f"Measured on {machine.measured_on}: {machine.cores} cores, {machine.memory_gib:.0f} GiB, "
        f"{machine.architecture}, Linux {machine.kernel}; {versions}. "
        f"Nodes = servers + workers: {sizes}. Rounds of each size: {rounds}, means are shown."
    )


def section(results: Results | None) -> str:
    """Return what stands between the marks of the page."""
    if results is None or not results.sizes:
        return NOT_MEASURED
    sizes = sorted(results.sizes, key=lambda size: size.nodes)
    parts = [
        _machine(results),
        "### Seconds per phase of `bootstrap-cluster`",
        _phases(sizes),
        f"![Seconds per phase, flow and bare tools]({PICTURE})",
        "### How time grows with nodes",
        _growth_text(sizes, results.machine),
        "### Against bare `tofu` and `ansible-playbook`",
        _against_bare(sizes),
        f"{_met(sizes)} Compared are {', '.join(SHARED)}, with all that Prefect adds to them.",
        f"What the bare tools do not do (start, {', '.join(ONLY_THE_FLOW)}) is told apart:",
        _only_the_flow(sizes),
        "### Memory",
        _memory(sizes),
        "### Start of a flow",
        _start(results),
    ]
    return "\n\n".join(parts)


def with_section(page: str, results: Results | None) -> str:
    """Return the page with its section written anew.

    Raises:
        ValueError: a mark is missing, or they are in the wrong order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"Unable to write the figures into the page: it needs the lines {BEGIN!r} and {END!r}, "
            "in this order. Restore them."
        )
    return f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}"
