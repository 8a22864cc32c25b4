"""Connecting a GitLab project with the gateway: one webhook, and the key that its deliveries bear.

Apart from the steps of the saga, because it comes before them and outlives them: a team whose first
`app.yaml` was refused mends it by a push, which must arrive. Promises that the key is made once,
lies in OpenBao before GitLab has it, and is written to GitLab each time, as GitLab never shows
which it has.

Rights in OpenBao: create, read and delete the project's path below `webhooks/`.
"""

from __future__ import annotations

import base64
import secrets

from blocks.gitlab_events import Hook, WantedHook
from blocks.gitlab_server import GitLabSession
from blocks.openbao import OpenBaoSession
from blocks.webhook_secrets import delete_webhook_secrets
from domain.errors import NotFound

KEY_BYTES = 32
EVENTS = frozenset(
    {
        "push_events",
        "tag_push_events",
        "merge_requests_events",
        "pipeline_events",
        "deployment_events",
    }
)
NAME = "Infraflows"


def secrets_path(environment: str, project_id: int) -> str:
    """Return the OpenBao path of a project's webhook secrets; the gateway reads the same."""
    return f"webhooks/{environment}/gitlab/{project_id}"


def connect(
    gitlab: GitLabSession, bao: OpenBaoSession, environment: str, project_id: int, address: str
) -> Hook:
    """Have GitLab deliver a project's events to the gateway at `address`, signed."""

    def make() -> dict[str, str]:
        key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
        return {"signing_key": f"whsec_{key}"}

    values = bao.read_or_create(secrets_path(environment, project_id), make)
    wanted = WantedHook(url=address, events=EVENTS, name=NAME)
    # Written each time: nobody can tell whether the key that GitLab has is this one.
    return gitlab.ensure_hook(project_id, wanted, values["signing_key"])


def disconnect(
    gitlab: GitLabSession, bao: OpenBaoSession, environment: str, project_id: int, address: str
) -> None:
    """Remove the webhook, and then its key; what is gone already is a success."""
    try:
        for hook in gitlab.hooks(project_id):
            if hook.url == address:
                gitlab.delete_hook(project_id, hook.hook_id)
    except NotFound:
        # The project is gone, and its webhooks with it.
        pass
    delete_webhook_secrets(bao, secrets_path(environment, project_id))
