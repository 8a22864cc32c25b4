"""Makes up for what webhooks lost: GitLab gives up on a delivery, and in the end on the webhook.

Runs by the clock. Promises that for each connected project the webhook delivers again, that what
GitLab could not deliver is sent once more, and that the gateway compares the head with what was
onboarded. Decides nothing itself: the gateway does, as for every event.
"""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from domain.errors import PermanentError, PolicyViolation
from domain.spec_fields import Name
from tasks.onboarding.webhooks import (
    ProjectWebhook,
    connected_projects,
    reconcile_project_webhook,
)
from tasks.runs.pause_switch import refuse_if_paused

PROJECTS_AT_ONCE = 8


@flow(
    name="reconcile-deliveries",
    flow_run_name="reconcile the webhooks of {environment}",
    description="Mends webhooks and makes up for deliveries that were lost.",
    task_runner=ThreadPoolTaskRunner(max_workers=PROJECTS_AT_ONCE),  # type: ignore[arg-type]
    persist_result=False,
)
def reconcile_deliveries(environment: Name) -> None:
    """Reconcile every connected project.

    Args:
        environment: Environment whose projects are looked at; names its blocks.

    Raises:
        PermanentError: a project could not be reconciled; names each of them.
    """
    try:
        refuse_if_paused(environment)
    except PolicyViolation as reason:
        get_run_logger().info("%s", reason)
        return
    projects = connected_projects(environment)
    futures = [(each, reconcile_project_webhook.submit(environment, each)) for each in projects]
    rows: list[ProjectWebhook] = []
    problems: list[str] = []
    for project_id, future in futures:
        found = future.result(raise_on_failure=False)
        if isinstance(found, ProjectWebhook):
            rows.append(found)
        else:
            problems.append(f"{project_id}: {found}")
    create_table_artifact(
        key=f"{environment}-webhooks",
        table=[
            {
                "project": row.repository or "?",
                "id": row.project_id,
                "webhook": row.state,
                "sent again": row.resent,
            }
            for row in rows
        ],
        description=f"Webhooks of the connected projects in {environment}",
    )
    if problems:
        raise PermanentError(
            f"Unable to reconcile {len(problems)} of {len(projects)} projects: "
            f"{'; '.join(problems)}. Run again, and look into GitLab and the gateway."
        )
