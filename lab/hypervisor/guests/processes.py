"""Processes that outlive the one that started them, named so that a reused pid is not mistaken.

Why: guests go on when the API's process dies. Whoever comes next finds them by files, and a file
that holds a bare pid may name a stranger an hour later.

Promises: an identity is (pid, start time), and a zombie counts as dead.
Refuses: to signal a process whose start time is another one.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, for good: pids come again, (pid, start time) does not."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """True while this very process runs."""
        fields = stat_fields(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.start_ticks

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; a process that is gone is fine."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on, or None for no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, which may itself hold anything.
    return text.rpartition(")")[2].split()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process."""
    fields = stat_fields(pid)
    return None if fields is None else ProcessIdentity(pid, int(fields[19]))


def save_identity(path: Path, pid: int) -> None:
    """Write a process's identity in one step."""
    identity = identify(pid)
    if identity is not None:
        write_atomically(path, f"{identity.pid} {identity.start_ticks}\n")


def load_identity(path: Path) -> ProcessIdentity | None:
    """The identity in a file, or None when there is none."""
    try:
        pid, start_ticks = path.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return ProcessIdentity(int(pid), int(start_ticks))


def init_of(nspawn_pid: int) -> int | None:
    """The child of nspawn that is pid 1 inside, or None while there is none."""
    try:
        children = Path(f"/proc/{nspawn_pid}/task/{nspawn_pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for child in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{child}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[2:] == ["1"]:
                    return int(child)
    return None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content so that no reader ever sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
