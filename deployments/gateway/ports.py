"""What the gateway needs of other systems, as small protocols; real ones are beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class SecretReader(Protocol):
    """Reads the values under an OpenBao path; blocking."""

    def read(self, path: str) -> Mapping[str, str]:
        """Return the values.

        Raises:
            NotFound: there are none. Other errors of the family: nobody knows.
        """
        ...


@dataclass(frozen=True)
class HeadFile:
    """`app.yaml` as it is at the head of the default branch."""

    repository: str
    """The project's path now."""
    commit: str
    """Empty while the project has no commit."""
    text: str | None
    """None when there is no such file."""
    page: str = ""
    """The file's page at this commit."""


@dataclass(frozen=True)
class MergeRequestFile:
    """`app.yaml` as it is at the head of a merge request."""

    repository: str
    is_open: bool
    text: str | None
    target_text: str | None
    """As it is on the default branch."""
    page: str = ""
    has_note: bool = False
    """True when we have commented before."""


class GitLabPort(Protocol):
    """What the dispatcher asks of GitLab; blocking."""

    def head_file(self, project_id: int) -> HeadFile:
        """Read `app.yaml` at the head of the default branch."""
        ...

    def merge_request_file(self, project_id: int, iid: int) -> MergeRequestFile:
        """Read `app.yaml` at the head of a merge request."""
        ...

    def is_on_default_branch(self, project_id: int, commit: str) -> bool:
        """True when the default branch holds a commit."""
        ...

    def comment_on_commit(self, project_id: int, commit: str, body: str) -> None:
        """Make the commit have one comment of ours, with this text."""
        ...

    def comment_on_merge_request(self, project_id: int, iid: int, body: str) -> None:
        """Make the merge request have one comment of ours, with this text."""
        ...


class RunState(StrEnum):
    """Where a run is, as far as the next one depends on it."""

    WAITING = "waiting"
    """Not begun, or waiting for a person: may be withdrawn."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    GONE = "gone"
    """Nobody knows of it any more."""


class FlowPort(Protocol):
    """What the dispatcher asks of the orchestrator."""

    async def start(self, deployment: str, parameters: Mapping[str, Any], key: str) -> str:
        """Start a deployment and return the run's id; the same key starts no second run."""
        ...

    async def find(self, deployment: str, key: str) -> str:
        """Return the id of the run that was started with a key; empty if there is none."""
        ...

    async def state(self, run_id: str) -> RunState:
        """Return where a run is."""
        ...

    async def withdraw(self, run_id: str) -> None:
        """Cancel a run that waits; one that has begun in the meantime is left alone."""
        ...


class JournalPort(Protocol):
    """What is known of applications; blocking."""

    def is_onboarded(self, name: str) -> bool:
        """True while anything of an application is there."""
        ...
