"""A directory in memory for what must not outlive one act: keys, tokens, an engine's scratch files.

Promises a fresh directory of mode 0700 on a tmpfs, removed when its owner leaves it and, if the
owner was killed first, by whoever opens the next one. Refuses a parent directory that another
user could write to or that is not kept in memory.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain.errors import PermanentError

PREFIX = "infraflows-private-"
OWNER_FILE = "owner"
ENVIRONMENT_VARIABLE = "INFRAFLOWS_PRIVATE_DIRECTORY"
GRACE_SECONDS = 60.0
"""A directory without an owner file is younger than this only while it is being made."""


def base_directory() -> Path:
    """Return the tmpfs under which private directories are made."""
    wanted = [os.environ.get(ENVIRONMENT_VARIABLE), os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]  # noqa: S108 - the kernel's shared memory file system, not a guessable file
    for candidate in filter(None, wanted):
        path = Path(candidate)
        if path.is_dir() and os.access(path, os.W_OK | os.X_OK) and _file_system(path) == "tmpfs":
            return path
    raise PermanentError(
        "Unable to keep secrets in memory: none of "
        f"{', '.join(filter(None, wanted))} is a writable tmpfs. "
        f"Mount one and name it in {ENVIRONMENT_VARIABLE}."
    )


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`, by the longest mount point above it."""
    resolved = path.resolve()
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount_point = left.split()[4].replace("\\040", " ")
        if resolved.is_relative_to(mount_point) and len(mount_point) >= len(best):
            best, kind = mount_point, right.split()[0]
    return kind


def _start_ticks(pid: int) -> str | None:
    """Return when `pid` started, so that a reused number is not taken for the owner."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _owner_is_alive(directory: Path) -> bool:
    try:
        pid, ticks = (directory / OWNER_FILE).read_text().split()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # No owner yet, or one that is just being written by another thread.
        try:
            return time.time() - directory.lstat().st_mtime < GRACE_SECONDS
        except FileNotFoundError:
            return False
    return _start_ticks(int(pid)) == ticks


def wipe(directory: Path) -> None:
    """Remove `directory` and all below it; what is absent is success."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        # A process that is being ended may still have written a file during the first pass.
        shutil.rmtree(directory)


def sweep(base: Path | None = None) -> list[Path]:
    """Remove the directories of this user whose owners no longer run; return them."""
    removed = []
    for directory in sorted((base or base_directory()).glob(PREFIX + "*")):
        try:
            details = directory.lstat()
        except FileNotFoundError:
            continue
        if details.st_uid != os.getuid() or not stat.S_ISDIR(details.st_mode):
            continue
        if not _owner_is_alive(directory):
            wipe(directory)
            removed.append(directory)
    return removed


@contextmanager
def private_directory(purpose: str, base: Path | None = None) -> Iterator[Path]:
    """Yield a new private directory for `purpose` and remove it afterwards, whatever happened.

    `purpose` becomes part of the name; keep it short, because sockets are made below it and the
    kernel allows 107 characters for a socket's path.
    """
    parent = base or base_directory()
    sweep(parent)
    pid = os.getpid()
    directory = parent / f"{PREFIX}{purpose[:16]}-{pid}-{os.urandom(3).hex()}"
    directory.mkdir(mode=0o700)
    try:
        write_private(directory / OWNER_FILE, f"{pid} {_start_ticks(pid)}")
        yield directory
    finally:
        wipe(directory)


def write_private(path: Path, text: str) -> Path:
    """Write `text` to a new file that only its owner can read, never readable in between."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return path
