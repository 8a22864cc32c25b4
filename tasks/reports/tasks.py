"""Publishing a run's report as an artifact."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from domain.run_report import RunReport
from tasks.reports.pictures import as_data_uri, timing_plot, topology

TEMPLATES = Path(__file__).parent / "templates"


def report_markdown(report: RunReport) -> str:
    """Return the report as Markdown with its pictures inside."""
    # Markdown and not HTML is made here, and the page that shows it cleans what it renders.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.md.j2").render(
        report=report,
        timing=as_data_uri(timing_plot(report.phases)),
        topology=as_data_uri(topology(report.machines, report.virtual_ip, report.cluster)),
    )


@task(name="publish the report", cache_policy=NO_CACHE, persist_result=False)
def publish_report(report: RunReport) -> None:
    """Create the artifacts `<cluster>-report` and, if there are machines, `<cluster>-nodes`."""
    create_markdown_artifact(
        key=f"{report.cluster}-report",
        markdown=report_markdown(report),
        description=f"{report.title}: {report.outcome}",
    )
    if report.machines:
        create_table_artifact(
            key=f"{report.cluster}-nodes",
            table=[dict(machine) for machine in report.machines],
            description=f"Machines of {report.cluster}",
        )
