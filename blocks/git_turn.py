"""Taking turns at one branch: writers of this machine commit one after the other.

Exists because of what a lost race costs: every loser reads and writes anew, so that twenty writers
would push two hundred times. Promises that the turn ends with its holder, however it ends, and that
nobody waits for ever. It is a courtesy and no guard: writers elsewhere do not know of it, and a
turn that does not come in time is not waited for. What makes a push safe is the server.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blocks.private_directory import base_directory

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05


@contextmanager
def turn(url: str, branch: str) -> Iterator[bool]:
    """Hold the turn at a branch; yields False when it did not come in time."""
    name = hashlib.sha256(f"{url}\n{branch}".encode()).hexdigest()[:16]
    path = base_directory() / f"infraflows-turn-{os.getuid()}-{name}"
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        # The kernel releases the lock when the file is closed, also by a killed process's end.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            is_held = _wait(descriptor, deadline)
            if is_held and not _is_in_place(descriptor, path):
                # Its last holder has removed it: the others wait at a new one.
                continue
            try:
                yield is_held
            finally:
                if is_held:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_in_place(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.lstat().st_ino
    except FileNotFoundError:
        return False


def _wait(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
