"""The picture of the benchmark: for each size one bar of the flow and one of the bare tools.

An SVG of its own without script, font or link; the same results give the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.figures import mean, phase_seconds
from benchmarks.results import PHASES, Results, Round, Size

WIDTH = 760
LEFT, RIGHT, TOP = 132, 68, 78
BAR, GAP = 20, 14
INK, MUTED, PAPER, LINE = "#1f2937", "#6b7280", "#ffffff", "#d1d5db"
FONT = "font-family='ui-sans-serif,Segoe UI,Helvetica,Arial,sans-serif'"
COLOURS: Mapping[str, str] = {
    "start": "#9ca3af",
    "preflight": "#64748b",
    "plan": "#7c3aed",
    "gate": "#a8a29e",
    "apply": "#2563eb",
    "inventory": "#0891b2",
    "configure": "#0d9488",
    "platform": "#ca8a04",
    "verify": "#ea580c",
    "record": "#be185d",
    "wait": "#d1d5db",
}
Part = tuple[str, float]


def _text(x: float, y: float, text: str, **style: str) -> str:
    attributes = " ".join(f"{key.replace('_', '-')}='{value}'" for key, value in style.items())
    return f"<text x='{x:.1f}' y='{y:.1f}' {FONT} {attributes}>{escape(text)}</text>"


def flow_parts(size: Size) -> list[Part]:
    """Return the pieces of the flow's bar in their order."""

    def seconds(phase: str) -> float:
        return mean(size, lambda round_: phase_seconds(round_.bootstrap, phase))

    start = mean(size, lambda round_: round_.bootstrap.start_seconds)
    return [("start", start), *((phase, seconds(phase)) for phase in PHASES)]


def bare_parts(size: Size) -> list[Part]:
    """Return the pieces of the bare tools' bar; preparing the directory counts as planning."""

    def seconds(*steps: str) -> float:
        def of(round_: Round) -> float:
            return sum(round_.bare[step] for step in steps)

        return mean(size, of)

    return [
        ("plan", seconds("init", "plan")),
        ("apply", seconds("apply")),
        ("wait", seconds("wait")),
        ("configure", seconds("configure")),
    ]


def _step(total: float) -> float:
    """Return a round distance between grid lines that gives at most nine of them."""
    for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600):
        if total / step <= 9:
            return step
    return total / 5


def _bar(y: float, name: str, parts: Sequence[Part], scale: float) -> list[str]:
    drawn = [_text(LEFT - 8, y + 14, name, font_size="11", text_anchor="end", fill=INK)]
    x = float(LEFT)
    for part, seconds in parts:
        width = seconds * scale
        told = escape(f"{part}: {seconds:.1f} s")
        drawn.append(
            f"<rect x='{x:.2f}' y='{y:.1f}' width='{width:.2f}' height='{BAR}' "
            f"fill='{COLOURS[part]}'><title>{told}</title></rect>"
        )
        x += width
    total = sum(seconds for _, seconds in parts)
    drawn.append(_text(x + 6, y + 14, f"{total:.0f} s", font_size="11", fill=MUTED))
    return drawn


def _legend() -> list[str]:
    drawn, x, y = [], 16.0, 36.0
    for name, colour in COLOURS.items():
        width = 26 + 6.6 * len(name)
        if x + width > WIDTH - 8:
            x, y = 16.0, y + 18
        drawn.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='11' height='11' rx='2' fill='{colour}'/>"
        )
        drawn.append(_text(x + 15, y + 10, name, font_size="11", fill=INK))
        x += width
    return drawn


def _grid(total: float, scale: float, bottom: float) -> list[str]:
    drawn, step, mark = [], _step(total), 0.0
    while mark <= total:
        x = LEFT + mark * scale
        drawn.append(f"<line x1='{x:.1f}' y1='{TOP}' x2='{x:.1f}' y2='{bottom}' stroke='{LINE}'/>")
        label = f"{mark:g}"
        drawn.append(_text(x, bottom + 16, label, font_size="11", text_anchor="middle", fill=MUTED))
        mark += step
    return drawn


def stacked_bars(results: Results) -> str:
    """Draw where the time of each size goes, with the flow and with the bare tools."""
    sizes = sorted(results.sizes, key=lambda size: size.nodes)
    bars = [(size, flow_parts(size), bare_parts(size)) for size in sizes]
    totals = [sum(s for _, s in parts) for _, *both in bars for parts in both]
    total = max(totals, default=1.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / total
    bottom = TOP + 6 + len(bars) * (2 * BAR + 2 + GAP)
    title = "Seconds per phase: the flow, and the bare tools on the same spec"
    drawn = [_text(16, 22, title, font_size="13", font_weight="600", fill=INK)]
    drawn += _legend() + _grid(total, scale, bottom)
    for index, (size, ours, bare) in enumerate(bars):
        y = TOP + 6 + index * (2 * BAR + 2 + GAP)
        nodes = f"{size.nodes} node{'s' if size.nodes != 1 else ''}"
        drawn += _bar(y, f"{nodes}, flow", ours, scale)
        drawn += _bar(y + BAR + 2, f"{nodes}, bare", bare, scale)
    height = bottom + 28
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' "
        f"height='{height}' role='img'><title>{escape(title)}</title>"
        f"<rect width='{WIDTH}' height='{height}' rx='4' fill='{PAPER}'/>{''.join(drawn)}</svg>\n"
    )
