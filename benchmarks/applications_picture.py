"""The picture of applications at once: of what an application's seconds are made, by their number.

An SVG of its own without script, font or link; the same figures give the same picture.
"""

from __future__ import annotations

from html import escape

from benchmarks.applications_figures import AppResults, Together

WIDTH, ROW, LEFT, RIGHT, TOP = 620, 44, 120, 70, 62
INK, MUTED, PAPER = "#1f2937", "#6b7280", "#ffffff"
PARTS = (
    ("push_seconds", "push", "#9ca3af"),
    ("hook_seconds", "webhook to run", "#0d9488"),
    ("queue_seconds", "Prefect's queue", "#d97706"),
    ("run_seconds", "run", "#2563eb"),
)
FONT = "font-family='ui-sans-serif,Segoe UI,Helvetica,Arial,sans-serif' font-size='11'"


def _text(x: float, y: float, text: str, fill: str = MUTED, anchor: str = "start") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} fill='{fill}' text-anchor='{anchor}'>"
        f"{escape(text)}</text>"
    )


def _bar(x: float, y: float, width: float, fill: str, told: str) -> str:
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='18' fill='{fill}'>"
        f"<title>{escape(told)}</title></rect>"
    )


def _row(each: Together, y: float, scale: float) -> list[str]:
    """Draw the median parts of one set, and below them the line until its last one was done."""
    noun = "application" if each.count == 1 else "applications"
    drawn = [_text(LEFT - 10, y + 13, f"{each.count} {noun}", INK, "end")]
    x = float(LEFT)
    for part, name, fill in PARTS:
        width = each.middle(part) * scale
        drawn.append(_bar(x, y, width, fill, f"{name}: {each.middle(part):.1f} s"))
        x += width
    end = LEFT + each.wall_seconds * scale
    drawn.append(
        f"<line x1='{LEFT}' y1='{y + 23:.1f}' x2='{end:.1f}' y2='{y + 23:.1f}' "
        f"stroke='{INK}' stroke-width='2'/>"
    )
    drawn.append(_text(end + 6, y + 27, f"{each.wall_seconds:.0f} s", INK))
    return drawn


def applications_picture(results: AppResults) -> str:
    """Draw a bar of medians for each number of applications, and the time until all were done."""
    sets = sorted(results.sets, key=lambda each: each.count)
    most = max(
        max(each.wall_seconds, sum(each.middle(part) for part, _, _ in PARTS)) for each in sets
    )
    scale = (WIDTH - LEFT - RIGHT) / most
    title = "Applications at once: median seconds of one, and (line) until the last one ran"
    drawn, x = [_text(16, 24, title, INK)], float(LEFT)
    for _, name, fill in PARTS:
        drawn += [_bar(x, 36, 10, fill, name).replace("height='18'", "height='10'")]
        drawn.append(_text(x + 14, 45, name))
        x += 34 + 6.2 * len(name)
    for number, each in enumerate(sets):
        drawn += _row(each, TOP + ROW * number, scale)
    height = TOP + ROW * len(sets)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' "
        f"height='{height}' role='img'><title>{escape(title)}</title>"
        f"<rect width='{WIDTH}' height='{height}' rx='4' fill='{PAPER}'/>{''.join(drawn)}</svg>\n"
    )
