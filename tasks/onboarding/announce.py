"""Telling a team on its commit what became of it.

Promises one comment for one application on one commit, changed in place however often a run is
repeated. That it cannot be written never fails the work: the run's own report has everything.
"""

from __future__ import annotations

from prefect import task
from prefect.logging import get_run_logger

from blocks.gitlab_server import gitlab_server
from blocks.openbao import openbao
from domain.errors import LifecycleError
from tasks.retry_rules import TEMPORARY


@task(name="comment on the commit", tags=["system:gitlab"], **TEMPORARY)
def _comment(environment: str, project_id: int, commit: str, marker: str, text: str) -> None:
    server = gitlab_server(environment)
    with openbao(environment).session() as bao:
        token = bao.read(server.credential)["token"]
    with server.session(token) as gitlab:
        gitlab.upsert_commit_comment(project_id, commit, marker, text)


def comment_on_commit(
    environment: str, project_id: int, commit: str, marker: str, text: str
) -> bool:
    """Write or change the comment; returns False, and logs why, when that was not possible."""
    try:
        _comment(environment, project_id, commit, marker, text)
    except LifecycleError as error:
        get_run_logger().warning("The commit has no comment. %s", error)
        return False
    return True
