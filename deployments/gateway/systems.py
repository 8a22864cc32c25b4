"""The real systems behind the ports: OpenBao, GitLab and the journals of applications.

Each call logs in anew and out again: the gateway holds no token between two acts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from blocks.gitlab_server import GitLabServer, GitLabSession
from blocks.openbao import OpenBaoServer
from blocks.saga_journal import SagaJournals
from blocks.webhook_secrets import read_webhook_secrets
from deployments.gateway.ports import HeadFile, MergeRequestFile
from domain.errors import NotFound
from domain.webhooks.gitlab_events import APP_FILE

MARKER = "app-file"
"""Marks the comment about `app.yaml`, on a commit and on a merge request."""
OPEN = "opened"


class OpenBaoSecrets:
    """Reads secrets as the worker."""

    def __init__(self, server: OpenBaoServer) -> None:
        """Read from `server`."""
        self._server = server

    def read(self, path: str) -> Mapping[str, str]:
        """Return the values under a path, and during a replacement what goes before them."""
        with self._server.session() as bao:
            return read_webhook_secrets(bao, path)


class OnboardedApps:
    """Which applications are there, from their journals."""

    def __init__(self, server: OpenBaoServer, environment: str) -> None:
        """Read the journals of one environment."""
        self._server = server
        self._environment = environment

    def is_onboarded(self, name: str) -> bool:
        """True while an application has a journal, which is gone when nothing of it is left."""
        with self._server.session() as bao:
            return not SagaJournals(bao, self._environment).load(name).is_new


class GitLabProjects:
    """`app.yaml` and the comments about it."""

    def __init__(self, gitlab: GitLabServer, bao: OpenBaoServer) -> None:
        """Speak to `gitlab` with the token that its credential in `bao` holds."""
        self._gitlab = gitlab
        self._bao = bao

    @contextmanager
    def _session(self) -> Iterator[GitLabSession]:
        with self._bao.session() as bao:
            token = bao.read(self._gitlab.credential).get("token", "")
        with self._gitlab.session(token) as session:
            yield session

    def head_file(self, project_id: int) -> HeadFile:
        """Read `app.yaml` at the head of the default branch."""
        with self._session() as gitlab:
            project = gitlab.project(project_id)
            try:
                commit = gitlab.head(project_id, project.default_branch)
            except NotFound:
                return HeadFile(project.path, "", None)
            text = gitlab.file_or_none(project_id, APP_FILE, commit)
            return HeadFile(project.path, commit, text, _page(project.web_url, commit))

    def merge_request_file(self, project_id: int, iid: int) -> MergeRequestFile:
        """Read `app.yaml` at the head of a merge request, which a fork may hold."""
        with self._session() as gitlab:
            project = gitlab.project(project_id)
            found = gitlab.merge_request(project_id, iid)
            return MergeRequestFile(
                repository=project.path,
                is_open=found.state == OPEN,
                text=gitlab.file_or_none(project_id, APP_FILE, found.head),
                target_text=gitlab.file_or_none(project_id, APP_FILE, project.default_branch),
                page=_page(project.web_url, found.head),
                has_note=gitlab.merge_request_note(project_id, iid, MARKER) is not None,
            )

    def is_on_default_branch(self, project_id: int, commit: str) -> bool:
        """True when the default branch holds a commit, whatever a ref of its name says."""
        with self._session() as gitlab:
            project = gitlab.project(project_id)
            return project.default_branch in gitlab.branches_with(project_id, commit)

    def comment_on_commit(self, project_id: int, commit: str, body: str) -> None:
        """Make the commit have one comment of ours."""
        with self._session() as gitlab:
            gitlab.upsert_commit_comment(project_id, commit, MARKER, body)

    def comment_on_merge_request(self, project_id: int, iid: int, body: str) -> None:
        """Make the merge request have one comment of ours."""
        with self._session() as gitlab:
            gitlab.upsert_merge_request_note(project_id, iid, MARKER, body)


def _page(project_url: str, commit: str) -> str:
    return f"{project_url}/-/blob/{commit}/{APP_FILE}"
