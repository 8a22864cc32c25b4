"""Writing files so that a kill at any instruction leaves the old content or the new, never half.

Refuses: a secret is never readable by others, not even for the moment between create and chmod.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PRIVATE = 0o600
PUBLIC = 0o644


def write_atomically(
    path: Path, content: str | bytes, mode: int = PUBLIC, group_id: int | None = None
) -> None:
    """Replace the file's content at once; the file is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if group_id is not None:
                os.fchown(file.fileno(), -1, group_id)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_if_changed(
    path: Path, content: str, mode: int = PUBLIC, group_id: int | None = None
) -> bool:
    """Write only what differs. Says whether it wrote."""
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return False
    write_atomically(path, content, mode, group_id)
    return True


def private_directory(path: Path) -> Path:
    """A directory that only root may enter."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def owned_directory(path: Path, user: str, mode: int = 0o700) -> Path:
    """A directory that belongs to a service's own user."""
    path.mkdir(parents=True, exist_ok=True)
    shutil.chown(path, user, user)
    path.chmod(mode)
    return path


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; an absent log has none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 200 * lines))
            return file.read().decode("utf-8", errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
