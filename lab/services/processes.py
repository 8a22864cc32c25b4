"""Processes, told apart even after a reboot or a reused pid.

Why it exists: a pid alone does not name a process. After a crash a pid file may name a stranger,
and a lab that kills strangers is worse than one that leaks.

What it promises: an `Identity` matches one process of one boot only. Everything that a service
started can be found again by a mark in its environment, also when its pid file is lost.

What it refuses: it never signals its own ancestors, nor a process it cannot identify.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SERVICE_MARK = "INFRAFLOWS_LAB_SERVICE"
_POLL_SECONDS = 0.05


@cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True)
class Identity:
    """One process: its pid, when it started (clock ticks since boot), and which boot."""

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a living process; None if there is none."""
        fields = _stat_fields(pid)
        if fields is None or fields.state in "ZX":
            return None
        return cls(pid=pid, start_ticks=fields.start_ticks, boot=boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return self.boot == boot_id() and Identity.of(self.pid) == self


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    session: int
    start_ticks: int


def _stat_fields(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command name is in parentheses and may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return _Stat(
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
    )


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def ancestors(pid: int | None = None) -> set[int]:
    """This process and everything above it: never to be signalled."""
    found: set[int] = set()
    current = pid or os.getpid()
    while current > 0 and current not in found:
        found.add(current)
        fields = _stat_fields(current)
        current = fields.parent if fields else 0
    return found


def tree(pid: int) -> list[int]:
    """The process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for candidate in all_pids():
        fields = _stat_fields(candidate)
        if fields is not None:
            children.setdefault(fields.parent, []).append(candidate)
    found: list[int] = []
    queue = [pid]
    while queue:
        current = queue.pop(0)
        found.append(current)
        queue.extend(children.get(current, ()))
    return found


def in_session(session: int) -> list[int]:
    """Every process whose session is the given one."""
    return [
        pid
        for pid in all_pids()
        if (fields := _stat_fields(pid)) is not None and fields.session == session
    ]


def marked(mark_prefix: str) -> list[int]:
    """Living processes whose environment carries a service mark that begins so."""
    needle = f"{SERVICE_MARK}={mark_prefix}".encode()
    found = []
    for pid in all_pids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(variable.startswith(needle) for variable in variables):
            found.append(pid)
    return found


def marked_exactly(mark: str) -> list[int]:
    needle = f"{SERVICE_MARK}={mark}".encode()
    return [pid for pid in marked(mark) if needle in _environment(pid)]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself: what was wanted


def end(pids: Iterable[int], grace_seconds: float) -> list[int]:
    """TERM, wait, KILL, wait. Returns the pids that are still there."""
    protected = ancestors()
    identities = [
        identity for pid in pids if pid not in protected and (identity := Identity.of(pid))
    ]
    if grace_seconds > 0:
        send((i.pid for i in identities if i.is_alive()), signal.SIGTERM)
        _wait_until_gone(identities, grace_seconds)
    send((i.pid for i in identities if i.is_alive()), signal.SIGKILL)
    _wait_until_gone(identities, 5.0)
    return [i.pid for i in identities if i.is_alive()]


def _wait_until_gone(identities: list[Identity], limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline and any(i.is_alive() for i in identities):
        time.sleep(_POLL_SECONDS)


def resident_mib(pids: Iterable[int]) -> float:
    """Proportional memory of the processes (shared pages counted once), in MiB."""
    total_kib = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("Pss:"):
                total_kib += int(line.split()[1])
    return total_kib / 1024
