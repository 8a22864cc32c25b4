"""The pictures of a report, as SVG that carries no script, no font and no outside link.

Promises the same picture for the same data, readable on a light and on a dark page.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from domain.phases import Phase, PhaseState
from domain.run_report import Row

WIDTH = 760
INK = "#1f2937"
MUTED = "#6b7280"
PAPER = "#ffffff"
LINE = "#d1d5db"
COLOURS = {
    PhaseState.DONE: "#2563eb",
    PhaseState.RUNNING: "#d97706",
    PhaseState.FAILED: "#dc2626",
    PhaseState.SKIPPED: "#9ca3af",
    PhaseState.WAITING: "#e5e7eb",
}
SERVER, WORKER = "#2563eb", "#0d9488"
FONT = "font-family='ui-sans-serif,Segoe UI,Helvetica,Arial,sans-serif'"


def svg_text(x: float, y: float, text: str, **style: str) -> str:
    attributes = " ".join(f"{key.replace('_', '-')}='{value}'" for key, value in style.items())
    return f"<text x='{x:.1f}' y='{y:.1f}' {FONT} {attributes}>{escape(text)}</text>"


def svg_rectangle(
    x: float, y: float, width: float, height: float, fill: str, extra: str = ""
) -> str:
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{max(width, 0):.1f}' height='{height:.1f}' "
        f"rx='4' fill='{fill}' {extra}/>"
    )


def svg_document(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' "
        f"width='{WIDTH}' height='{height:.0f}' role='img'><title>{escape(title)}</title>"
        + svg_rectangle(0, 0, WIDTH, height, PAPER)
        + "".join(parts)
        + "</svg>"
    )


def _step(total: float) -> float:
    """Return a round distance between grid lines that gives four to nine of them."""
    for step in (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600):
        if total / step <= 9:
            return step
    return total / 5


def timing_plot(phases: Sequence[Phase]) -> str:
    """Draw when each phase ran, as bars on one time axis in seconds."""
    left, right, row, top = 96, 64, 26, 34
    total = sum(phase.seconds for phase in phases) or 1.0
    scale = (WIDTH - left - right) / total
    bottom = top + row * len(phases)
    parts = [svg_text(16, 21, "Seconds per phase", font_size="13", font_weight="600", fill=INK)]
    step, mark = _step(total), 0.0
    while mark <= total:
        x = left + mark * scale
        parts.append(f"<line x1='{x:.1f}' y1='{top}' x2='{x:.1f}' y2='{bottom}' stroke='{LINE}'/>")
        parts.append(
            svg_text(x, bottom + 16, f"{mark:g}", font_size="11", text_anchor="middle", fill=MUTED)
        )
        mark += step
    at = 0.0
    for index, phase in enumerate(phases):
        y = top + index * row + 5
        width = max(phase.seconds * scale, 2.0)
        x = left + at * scale
        parts.append(svg_text(16, y + 12, phase.name, font_size="12", fill=INK))
        parts.append(svg_rectangle(x, y, width, row - 10, COLOURS[phase.state]))
        parts.append(
            svg_text(x + width + 6, y + 12, f"{phase.seconds:.1f} s", font_size="11", fill=MUTED)
        )
        at += phase.seconds
    return svg_document(bottom + 28, parts, "Seconds per phase")


def topology(machines: Sequence[Row], virtual_ip: str, cluster: str) -> str:
    """Draw the machines on their hypervisors, under the address that clients use."""
    hypervisors = sorted({machine["hypervisor"] for machine in machines})
    if not hypervisors:
        return svg_document(
            40, [svg_text(16, 24, "No machines", font_size="13", fill=MUTED)], "Topology"
        )
    gap, box = 12, 46
    width = (WIDTH - gap * (len(hypervisors) + 1)) / len(hypervisors)
    held = {h: [m for m in machines if m["hypervisor"] == h] for h in hypervisors}
    tallest = max(len(found) for found in held.values())
    top = 92
    height = top + 34 + tallest * (box + 8) + 16
    parts = [
        svg_rectangle(WIDTH / 2 - 150, 14, 300, 38, "#eff6ff", f"stroke='{SERVER}'"),
        svg_text(
            WIDTH / 2, 38, f"{cluster} · https://{virtual_ip}:6443", font_size="13",
            text_anchor="middle", font_weight="600", fill=INK,
        ),
    ]  # fmt: skip
    for column, hypervisor in enumerate(hypervisors):
        x = gap + column * (width + gap)
        middle = x + width / 2
        parts.append(
            f"<path d='M{WIDTH / 2:.1f} 52 V72 H{middle:.1f} V{top}' fill='none' stroke='{LINE}'/>"
        )
        parts.append(svg_rectangle(x, top, width, height - top - 12, "#f9fafb", f"stroke='{LINE}'"))
        parts.append(
            svg_text(x + 12, top + 21, hypervisor, font_size="12", font_weight="600", fill=MUTED)
        )
        for index, machine in enumerate(held[hypervisor]):
            y = top + 34 + index * (box + 8)
            colour = SERVER if machine["role"] == "server" else WORKER
            parts.append(svg_rectangle(x + 10, y, width - 20, box, colour))
            parts.append(
                svg_text(
                    x + 20, y + 19, machine["name"], font_size="12", font_weight="600", fill=PAPER
                )
            )
            parts.append(
                svg_text(
                    x + 20, y + 36, f"{machine['address']} · {machine.get('state', '')}",
                    font_size="11", fill=PAPER,
                )
            )  # fmt: skip
    return svg_document(height, parts, f"Topology of {cluster}")


def as_data_uri(svg: str) -> str:
    """Return an SVG as a data URI, for a page that may not load other files."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
