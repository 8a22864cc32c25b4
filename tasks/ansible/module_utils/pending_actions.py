"""Remembers on the host which restarts are still owed, so that a killed run does not forget them.

Ansible's handlers live in the run's memory: a run that ends between "file written" and "service
restarted" leaves the file in place, and the next run sees nothing to do. Here the debt is written
to disk before the file is, and removed after the act.
"""

from __future__ import annotations

import os
from pathlib import Path

DIRECTORY = Path("/var/lib/infraflows/pending-actions")


def _path(name: str) -> Path:
    if not name.replace("-", "").isalnum():
        raise ValueError(f"{name!r} is not the name of an action")
    return DIRECTORY / name


def owe(name: str) -> None:
    """Write down that the action `name` has to be done."""
    DIRECTORY.mkdir(parents=True, exist_ok=True, mode=0o755)
    descriptor = os.open(_path(name), os.O_WRONLY | os.O_CREAT, 0o644)
    os.fsync(descriptor)
    os.close(descriptor)
    directory = os.open(DIRECTORY, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def is_owed(name: str) -> bool:
    """Return whether the action `name` has to be done."""
    return _path(name).exists()


def settle(name: str) -> None:
    """Forget the action `name`, which has been done."""
    _path(name).unlink(missing_ok=True)
