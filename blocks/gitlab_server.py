"""GitLab: where applications' repositories, pipelines and webhooks live.

Exists so that steps and the gateway deal in projects, files and comments and never in requests.
Promises typed answers, changes that are read back, and that every method may be repeated after a
kill. Refuses to speak without TLS verification, and to follow a redirect with its token to another
host. The token needs the scope `api` and the role of maintainer in each project that is onboarded.
API: https://docs.gitlab.com/api/rest/
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from blocks.documents import document
from blocks.gitlab_access import AccessCalls
from blocks.gitlab_comments import CommentCalls
from blocks.gitlab_events import EventCalls
from blocks.gitlab_repository import RepositoryCalls
from blocks.gitlab_transport import GitLabTransport


class GitLabSession(RepositoryCalls, AccessCalls, CommentCalls, EventCalls):
    """A client of one GitLab with one token; made by `GitLabServer.session`."""

    def version(self) -> str:
        """Return the server's version; also shows that the token is accepted."""
        return str(self.http.get("read the version of GitLab", "/version")["version"])


class GitLabServer(Block):
    """How to reach GitLab."""

    _block_type_name: ClassVar[str] = "GitLab server"
    _block_type_slug: ClassVar[str] = "infraflows-gitlab"
    _description: ClassVar[str] = "GitLab's API, reached with TLS and a token of the product's own."

    url: str = Field(description="Address, as https://gitlab.example.org.")
    ca_file: str = Field(default="", description="CA of the server; the system's if empty.")
    credential: str = Field(description="OpenBao path of the token.")
    timeout_seconds: float = Field(default=20.0, gt=0, description="How long one request may take.")

    @contextmanager
    def session(self, token: str) -> Iterator[GitLabSession]:
        """Yield a client that holds `token`.

        Raises:
            Unauthorized: there is no token.
        """
        http = GitLabTransport(self.url, self.ca_file, token, self.timeout_seconds)
        try:
            yield GitLabSession(http)
        finally:
            http.close()


def gitlab_server(environment: str) -> GitLabServer:
    """Return the GitLab of an environment, by its block document.

    Raises:
        NotFound: `infraflows setup` has not been run for this environment.
    """
    return document(GitLabServer, environment)
