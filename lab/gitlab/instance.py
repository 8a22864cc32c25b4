"""One simulated GitLab: its tables, its repositories, and what runs in the background.

Promises: whatever was answered with success is there after SIGKILL; deliveries, pushes and
pipelines that were under way go on at the next start.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import uuid
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.gitlab.repository import Repository
from lab.gitlab.tables import Tables
from lab.hypervisor.store import Document, Store

logger = logging.getLogger(__name__)

VERSION = "19.0.0-ee"


@dataclass(frozen=True)
class Settings:
    """How this instance is set up."""

    directory: Path
    url: str
    """Under which people and programs reach it; without a slash at the end."""
    ca_file: str = ""
    """CA that webhook receivers and the registry are checked against; the system's if empty."""
    job_seconds: float = 1.0
    """How long a job of the stand-in runner takes besides its real work."""
    delivery_timeout_seconds: float = 10.0
    retry_seconds: float = 15.0
    """Wait before the first retry of a delivery that got no answer; the n-th adds n^4 seconds."""
    disable_seconds: float = 60.0
    """How long a hook is disabled after its 4th failure; doubles up to 24 hours."""


def now() -> dt.datetime:
    """The present, as GitLab counts: in UTC, to the millisecond."""
    return dt.datetime.now(dt.UTC)


def stamp(moment: dt.datetime | None = None) -> str:
    """A moment as the API writes it."""
    return f"{(moment or now()).strftime('%Y-%m-%dT%H:%M:%S.%f')[:-3]}Z"


def moment(text: str) -> dt.datetime:
    """Read what `stamp` wrote."""
    return dt.datetime.fromisoformat(text)


class GitLab:
    """The instance."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._store = Store(settings.directory / "gitlab.sqlite")
        self.tables = Tables(self._store)
        self.hooks_directory = settings.directory / "git-hooks"
        self.repositories = settings.directory / "repositories"
        self.pushes = settings.directory / "pushes"
        for directory in (self.hooks_directory, self.repositories, self.pushes):
            directory.mkdir(parents=True, exist_ok=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.pipeline_locks: dict[int, asyncio.Lock] = {}

    @property
    def url(self) -> str:
        """Base of all addresses that are told."""
        return self.settings.url

    def repository(self, project: Document) -> Repository:
        """The project's repository; named by id, so that a rename moves nothing."""
        return Repository(self.repositories / f"{project['id']}.git")

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background; its failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "Unable to finish work in the background: a mistake in the lab", exc_info=error
            )

    async def close(self) -> None:
        """Stop what runs; it goes on at the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._store.close()

    def append_trace(self, job_id: int, line: str) -> None:
        """Add a line to a job's trace."""
        self._store.append_line(f"job-{job_id}", line)

    def trace(self, job_id: int) -> list[str]:
        """The lines of a job's trace."""
        return [line for _, line in self._store.lines(f"job-{job_id}", 0, 0)[1]]

    def forget_trace(self, job_id: int) -> None:
        """Delete a job's trace."""
        self._store.delete_lines(f"job-{job_id}")

    def note_push(self, project: Document, user: Document, lines: list[str]) -> Path:
        """Write down what is about to move, so that a kill does not lose what a push fires."""
        path = self.pushes / f"{uuid.uuid4().hex}.json"
        path.write_text(
            json.dumps({"project": project["id"], "user": user["id"], "lines": lines}),
            encoding="utf-8",
        )
        return path


def public_user(gitlab: GitLab, user: Mapping[str, Any]) -> dict[str, Any]:
    """A user as the API shows it beside other things."""
    return {
        "id": user["id"],
        "username": user["username"],
        "public_email": "",
        "name": user["name"],
        "state": user.get("state", "active"),
        "locked": False,
        "avatar_url": None,
        "web_url": f"{gitlab.url}/{user['username']}",
    }
