"""Deploys one version of an application to one stage by a commit in the GitOps repository.

Changes one line and nothing else, waits until that version serves, and brings the former one back
if it does not. The way to production is the pipeline's manual job.
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from domain.onboarding.app_run_report import Way
from domain.onboarding.app_spec import AppName, Stage
from domain.spec_fields import Name
from flows.app_run import app_run
from flows.tag_phases import change_tag, check_before_change, record_change
from tasks.onboarding.journal import held_journal

NAME = "deploy-app"
ImageTag = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]


@flow(
    name=NAME,
    flow_run_name="deploy {name} {tag} to {stage}",
    description="Sets a stage's image tag in Git and proves that this version serves.",
    persist_result=False,
)
def deploy_app(
    environment: Name, name: AppName, stage: Stage, tag: ImageTag, commit: str = ""
) -> None:
    """Deploy a version.

    Args:
        environment: Environment that the application runs in; names its blocks.
        name: Name of the application.
        stage: Stage that gets the version.
        tag: Tag of the image, as the pipeline pushed it.
        commit: Commit that is told how it went; the tag, if it is a commit's.

    Raises:
        PermanentError: it does not serve; the text says which version does.
    """
    with app_run(environment, name, Way.DEPLOY, commit=commit) as run:
        change = check_before_change(run, stage, tag)
        with held_journal(environment, name) as held:
            change_tag(run, change, held)
        record_change(run, change)
