"""What the lab knows of one service, and the record it keeps of it while it runs.

A service is data: how it is prepared, the command, when it answers, what is settled once it
answers, and when it is healthy. The supervisor is the only one who acts on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.layout import Layout
from lab.services.files import write_atomically
from lab.services.processes import Identity


class ServiceFailed(Exception):
    """A service did not come up, or would not end. The text says which, why, and what to do."""


class BrokenOnPurpose(ServiceFailed):
    """A person set a fault that keeps the service down: trying again cannot help."""


@dataclass(frozen=True)
class Launch:
    """How one process is started. Never carries a secret in `command`: an argv is public."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    directory: Path | None = None
    is_inside_namespace: bool = True


def _nothing(_: Layout) -> None:
    return None


@dataclass(frozen=True)
class Service:
    """One supervised process.

    `answers` and `is_healthy` return None when all is well, else the reason why not.
    """

    name: str
    summary: str
    launch: Callable[[Layout], Launch]
    is_healthy: Callable[[Layout], str | None]
    needs: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    prepare: Callable[[Layout], None] = _nothing
    answers: Callable[[Layout], str | None] | None = None
    settle: Callable[[Layout], None] = _nothing
    start_timeout_seconds: float = 30.0
    stop_timeout_seconds: float = 10.0
    # The hypervisor's API starts guests that must outlive it, as real ones outlive pvedaemon.
    owns_descendants: bool = True


@dataclass
class Record:
    """The run-time facts of one service; lives in /run and ends with the boot."""

    name: str
    is_wanted: bool = False
    pid: int = 0
    start_ticks: int = 0
    boot: str = ""
    is_settled: bool = False
    started_at: float = 0.0
    restarts: int = 0
    failure: str = ""

    @property
    def identity(self) -> Identity | None:
        return Identity(self.pid, self.start_ticks, self.boot) if self.pid else None

    @property
    def is_alive(self) -> bool:
        identity = self.identity
        return identity is not None and identity.is_alive()

    def store(self, layout: Layout) -> None:
        write_atomically(layout.record_file(self.name), json.dumps(asdict(self)))


def read_record(layout: Layout, name: str) -> Record:
    """The service's record; an absent or broken one reads as never started."""
    try:
        data = json.loads(layout.record_file(name).read_text(encoding="utf-8"))
        return Record(**data)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return Record(name=name)
