"""The picture of the leak drill: how its seconds grow with the number of secrets.

An SVG of its own without script, font or link; the same figures give the same picture. Both axes
are logarithmic: a straight line at 45 degrees is a time that grows as the secrets do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from benchmarks.leak_drill_figures import GOAL_SECONDS, GOAL_SECRETS, DrillResults

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 40, 50, 46
INK, MUTED, PAPER, LINE, BLUE, GREEN = (
    "#1f2937",
    "#6b7280",
    "#ffffff",
    "#d1d5db",
    "#2563eb",
    "#0d9488",
)
FONT = "font-family='ui-sans-serif,Segoe UI,Helvetica,Arial,sans-serif' font-size='11'"
Point = tuple[float, float]


def _text(x: float, y: float, text: str, fill: str = MUTED, anchor: str = "middle") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} fill='{fill}' text-anchor='{anchor}'>"
        f"{escape(text)}</text>"
    )


class _Axes:
    """Powers of ten that enclose all values, and the place of a value between them."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.x, self.y = (
            (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values) * 1.01)))
            for values in zip(*points, strict=True)
        )

    def place(self, x: float, y: float) -> Point:
        def share(value: float, ends: tuple[int, int]) -> float:
            return (math.log10(value) - ends[0]) / (ends[1] - ends[0])

        return (
            LEFT + share(x, self.x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - share(y, self.y) * (HEIGHT - TOP - BOTTOM),
        )

    def grid(self) -> list[str]:
        drawn = []
        low_x, low_y = 10.0 ** self.x[0], 10.0 ** self.y[0]
        high_x, high_y = 10.0 ** self.x[1], 10.0 ** self.y[1]
        for power in range(self.x[0], self.x[1] + 1):
            (x, bottom), (_, top) = self.place(10.0**power, low_y), self.place(10.0**power, high_y)
            drawn.append(_line((x, bottom), (x, top), LINE))
            drawn.append(_text(x, bottom + 16, f"{10**power:,}"))
        for power in range(self.y[0], self.y[1] + 1):
            (left, y), (right, _) = self.place(low_x, 10.0**power), self.place(high_x, 10.0**power)
            drawn.append(_line((left, y), (right, y), LINE))
            drawn.append(_text(left - 8, y + 4, f"{10**power:,}", anchor="end"))
        return drawn


def _line(start: Point, end: Point, stroke: str, width: float = 1.0) -> str:
    return (
        f"<line x1='{start[0]:.1f}' y1='{start[1]:.1f}' x2='{end[0]:.1f}' y2='{end[1]:.1f}' "
        f"stroke='{stroke}' stroke-width='{width}'/>"
    )


def growth_picture(results: DrillResults) -> str:
    """Draw the seconds of each drill over its number of secrets, and the goal beside them."""
    points = sorted((float(d.secrets), d.times.whole_seconds) for d in results.drills)
    goal = (float(GOAL_SECRETS), GOAL_SECONDS)
    axes = _Axes([*points, goal])
    title = "Seconds until every secret below a leaked prefix is rotated and proved dead"
    drawn = [_text(16, 24, title, INK, "start"), *axes.grid()]
    drawn.append(_text((WIDTH + LEFT - RIGHT) / 2, HEIGHT - 10, "secrets"))
    places = [axes.place(*point) for point in points]
    drawn += [_line(a, b, BLUE, 2.0) for a, b in pairwise(places)]
    for (x, y), (count, seconds) in zip(places, points, strict=True):
        told = f"<title>{count:,.0f} secrets: {seconds:.1f} s</title>"
        drawn.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{BLUE}'>{told}</circle>")
        drawn.append(_text(x, y - 9, f"{seconds:.0f} s", INK))
    x, y = axes.place(*goal)
    drawn.append(_line((x - 14, y), (x + 14, y), GREEN, 3.0))
    drawn.append(_text(x, y - 7, f"goal: {GOAL_SECONDS:.0f} s", GREEN))
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' "
        f"height='{HEIGHT}' role='img'><title>{escape(title)}</title>"
        f"<rect width='{WIDTH}' height='{HEIGHT}' rx='4' fill='{PAPER}'/>{''.join(drawn)}</svg>\n"
    )
