"""Connects a GitLab project with the gateway: from then on its `app.yaml` is acted on.

The form that an operator fills in once for each project. Promises one webhook and one key, made
once; running it again mends the webhook and changes no key. Renaming or moving the project keeps
the connection, which is by the project's id.
"""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from domain.spec_fields import Name
from tasks.onboarding.webhooks import connect_project_webhook, disconnect_project_webhook
from tasks.runs.pause_switch import refuse_if_paused


@flow(
    name="connect-project",
    flow_run_name="connect {project} in {environment}",
    description="Makes the webhook by which a GitLab project's app.yaml is acted on.",
    persist_result=False,
)
def connect_project(environment: Name, project: str) -> None:
    """Connect a project.

    Args:
        environment: Environment whose gateway takes the events; names its blocks.
        project: Path of the project, as storefront/shop, or its id.

    Raises:
        NotFound: there is no such project, or the product's user is no member of it.
    """
    refuse_if_paused(environment)
    made = connect_project_webhook(environment, project.strip().strip("/"))
    create_markdown_artifact(
        key=f"{environment}-project-{made.project_id}-webhook",
        markdown=(
            f"Project **{made.repository}** (id {made.project_id}) is connected; its webhook is "
            f"{made.state}.\n\nA push to the default branch that changes `app.yaml` is acted on, "
            "and a merge request that changes it is answered with what is wrong in it."
        ),
        description=f"Webhook of {made.repository}",
    )


@flow(
    name="disconnect-project",
    flow_run_name="disconnect project {project_id} in {environment}",
    description="Removes a GitLab project's webhook and its key.",
    persist_result=False,
)
def disconnect_project(environment: Name, project_id: int) -> None:
    """Disconnect a project; what was onboarded stays.

    Args:
        environment: Environment whose gateway took the events; names its blocks.
        project_id: Id of the project.
    """
    refuse_if_paused(environment)
    disconnect_project_webhook(environment, project_id)
