"""The report page of a run on one application."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from domain.onboarding.app_run_report import AppReport
from tasks.reports.pictures import as_data_uri, timing_plot
from tasks.reports.tasks import TEMPLATES


def report_markdown(report: AppReport) -> str:
    """Return the report as Markdown with its picture inside."""
    # Markdown and not HTML is made here, and the page that shows it cleans what it renders.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("onboarding.md.j2").render(
        report=report, timing=as_data_uri(timing_plot(report.phases))
    )


@task(name="publish the application's report", cache_policy=NO_CACHE, persist_result=False)
def publish_app_report(report: AppReport) -> None:
    """Create the artifact `app-<name>-report`."""
    create_markdown_artifact(
        key=f"app-{report.app}-report",
        markdown=report_markdown(report),
        description=f"{report.title}: {report.outcome}",
    )
