"""Brings a stage back to the version that it ran before, and proves that this version serves again.

The tag is taken from the history of the GitOps repository, and the roll-back is a commit like any
other: Git stays the record of what ran when.
"""

from __future__ import annotations

from prefect import flow

from domain.onboarding.app_run_report import Way
from domain.onboarding.app_spec import AppName, Stage
from domain.spec_fields import Name
from flows.app_run import app_run
from flows.tag_phases import change_tag, check_before_change, record_change
from tasks.onboarding.journal import held_journal

NAME = "rollback-app"


@flow(
    name=NAME,
    flow_run_name="roll {name} back in {stage}",
    description="Reverts a stage to its previous image tag and proves that it serves again.",
    persist_result=False,
)
def rollback_app(environment: Name, name: AppName, stage: Stage, commit: str = "") -> None:
    """Roll a stage back.

    Args:
        environment: Environment that the application runs in; names its blocks.
        name: Name of the application.
        stage: Stage that goes back.
        commit: Commit that is told how it went; the tag, if it is a commit's.

    Raises:
        NotFound: the stage has only ever run one version. PermanentError: it does not serve.
    """
    with app_run(environment, name, Way.ROLLBACK, commit=commit) as run:
        change = check_before_change(run, stage, None)
        with held_journal(environment, name) as held:
            change_tag(run, change, held)
        record_change(run, change)
