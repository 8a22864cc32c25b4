"""The pages of a rotation run: its report, and the picture of what a leak reaches.

Promises pictures that show what a person can take in: beyond a number of secrets the rest is
counted, and the table beside the picture has them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from domain.rotation.blast_radius import BlastRadius, Edge
from domain.rotation.run_report import RotationReport
from tasks.reports.pictures import (
    INK,
    LINE,
    MUTED,
    PAPER,
    as_data_uri,
    svg_document,
    svg_rectangle,
    svg_text,
    timing_plot,
)
from tasks.reports.tasks import TEMPLATES

SHOWN_AT_MOST = 40
ROW, TOP, BOX = 26, 44, 20
RED, BLUE, GREEN = "#dc2626", "#2563eb", "#0d9488"
COLUMNS = ((16.0, 150.0, RED), (206.0, 330.0, BLUE), (576.0, 168.0, GREEN))
"""Left edge, width and colour: the leak, the secrets, their consumers."""


def report_markdown(report: RotationReport) -> str:
    """Return the report as Markdown with its picture inside."""
    # Markdown and not HTML is made here, and the page that shows it cleans what it renders.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("rotation.md.j2").render(
        report=report, timing=as_data_uri(timing_plot(report.phases))
    )


@task(name="publish the rotation's report", cache_policy=NO_CACHE, persist_result=False)
def publish_rotation_report(report: RotationReport) -> None:
    """Create the artifact `<environment>-rotation-report`."""
    create_markdown_artifact(
        key=f"{report.environment}-rotation-report",
        markdown=report_markdown(report),
        description=f"{report.title}: {report.outcome}",
    )


@task(name="show the blast radius", cache_policy=NO_CACHE, persist_result=False)
def publish_blast_radius(environment: str, radius: BlastRadius, unknown: Sequence[str]) -> None:
    """Create the artifact `<environment>-rotation-graph`: what the leak reaches, as a picture."""
    lines = [f"# What {radius.leak.label} reaches", "", _reach_summary(radius), ""]
    lines += [f"![Blast radius]({as_data_uri(leak_graph(radius))})", "", "## Arrows", ""]
    lines += ["| From | To | How |", "|---|---|---|"]
    lines += [f"| {edge.source} | {edge.target} | {edge.label} |" for edge in radius.edges]
    if unknown:
        lines += ["", "## Could not be found out", "", *(f"- {text}" for text in unknown)]
    create_markdown_artifact(
        key=f"{environment}-rotation-graph",
        markdown="\n".join(lines),
        description=f"Blast radius of {radius.leak.label}",
    )


def _reach_summary(radius: BlastRadius) -> str:
    hits, tokens = len(radius.hits), len(radius.accessors)
    by_hand = len(radius.by_hand)
    return (
        f"{hits} {'secret' if hits == 1 else 'secrets'}, {tokens} living "
        f"{'token' if tokens == 1 else 'tokens'} to revoke, {by_hand} to rotate by hand."
    )


def leak_graph(radius: BlastRadius) -> str:
    """Draw the leak, the secrets that it reaches and who uses them, as an SVG."""
    hits = radius.hits[:SHOWN_AT_MOST]
    paths = [f"path {hit.path}" for hit in hits]
    users = sorted({edge.target for edge in radius.edges if edge.source in paths} - set(paths))
    columns = [[radius.leak.label], paths, users[:SHOWN_AT_MOST]]
    place = {
        name: (number, TOP + row * ROW)
        for number, names in enumerate(columns)
        for row, name in enumerate(names)
    }
    height = TOP + ROW * max(len(names) for names in columns) + 34
    parts = [
        svg_text(COLUMNS[number][0], 28, title, font_size="13", font_weight="600", fill=INK)
        for number, title in enumerate(("Leaked", "Secrets", "Used by"))
    ]
    parts += [_arrow(edge, place) for edge in radius.edges if _is_shown(edge, place)]
    for name, (number, y) in place.items():
        x, width, colour = COLUMNS[number]
        label = name.removeprefix("path ")
        shown = label if len(label) <= width / 6.6 else label[: int(width / 6.6) - 1] + "…"
        parts.append(svg_rectangle(x, y, width, BOX, colour))
        parts.append(svg_text(x + 8, y + 14, shown, font_size="11", fill=PAPER))
    left = len(radius.hits) - len(hits)
    if left:
        parts.append(
            svg_text(206, height - 12, f"and {left} more secrets", font_size="12", fill=MUTED)
        )
    return svg_document(height, parts, f"What {radius.leak.label} reaches")


def _is_shown(edge: Edge, place: dict[str, tuple[int, int]]) -> bool:
    return edge.source in place and edge.target in place


def _arrow(edge: Edge, place: dict[str, tuple[int, int]]) -> str:
    """Return a line from the right of one box to the left of another, or around one column."""
    (start, y1), (end, y2) = place[edge.source], place[edge.target]
    x1 = COLUMNS[start][0] + COLUMNS[start][1]
    a, b = y1 + BOX / 2, y2 + BOX / 2
    if start == end:
        bend = x1 + 22
        path = f"M{x1:.1f} {a:.1f} C{bend:.1f} {a:.1f} {bend:.1f} {b:.1f} {x1:.1f} {b:.1f}"
        return f"<path d='{path}' fill='none' stroke='{RED}' stroke-opacity='0.5'/>"
    x2 = COLUMNS[end][0]
    middle = (x1 + x2) / 2
    path = f"M{x1:.1f} {a:.1f} C{middle:.1f} {a:.1f} {middle:.1f} {b:.1f} {x2:.1f} {b:.1f}"
    return f"<path d='{path}' fill='none' stroke='{LINE}'/>"
