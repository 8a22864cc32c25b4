"""States of OpenTofu on disk: every version kept, one lock per state.

What it promises: a version that was acknowledged is on disk; a kill leaves the last complete one.
A lock is taken by one caller only, whoever races. What it refuses: to write under another's lock.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.services.files import PRIVATE, private_directory, write_atomically

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class StateLocked(Exception):
    """Somebody else holds the lock; `holder` is the lock information they left."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(f"locked by {holder.get('Who', 'unknown')}")
        self.holder = holder


@dataclass(frozen=True)
class StateStore:
    directory: Path

    def read(self, name: str) -> bytes | None:
        """The newest version; None if there is none or it was deleted."""
        newest = self._newest(name)
        if newest is None or newest.suffix == ".deleted":
            return None
        return newest.read_bytes()

    def write(self, name: str, content: bytes, lock_id: str | None) -> int:
        """Add a version and return its number. The lock must be the caller's, or free."""
        self._refuse_under_foreign_lock(name, lock_id)
        return self._add(name, content, ".json")

    def delete(self, name: str, lock_id: str | None) -> None:
        """Forget the state; the versions before stay on disk for the lab's owner."""
        self._refuse_under_foreign_lock(name, lock_id)
        if self.read(name) is not None:
            self._add(name, b"", ".deleted")

    def lock(self, name: str, info: dict[str, Any]) -> None:
        """Take the lock; taking one's own again succeeds, so that a repeated request does."""
        path = self._lock_file(name)
        private_directory(path.parent)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".lock.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(info, file)
                file.flush()
                os.fsync(file.fileno())
            # A hard link appears at once and complete, and fails if the name is taken.
            os.link(temporary, path)
        except FileExistsError:
            holder = self.lock_holder(name)
            if holder is None or holder.get("ID") != info.get("ID"):
                raise StateLocked(holder or {}) from None
        finally:
            Path(temporary).unlink(missing_ok=True)

    def unlock(self, name: str, lock_id: str | None) -> None:
        """Let the lock go. Without an id it is broken by force, as `tofu force-unlock` does."""
        holder = self.lock_holder(name)
        if holder is None:
            return
        if lock_id is not None and holder.get("ID") != lock_id:
            raise StateLocked(holder)
        self._lock_file(name).unlink(missing_ok=True)

    def lock_holder(self, name: str) -> dict[str, Any] | None:
        try:
            data: dict[str, Any] = json.loads(self._lock_file(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return data

    def is_valid_name(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None

    def _lock_file(self, name: str) -> Path:
        return self.directory / name / "lock.json"

    def _versions(self, name: str) -> list[Path]:
        directory = self.directory / name / "versions"
        return sorted(directory.glob("[0-9]*.*")) if directory.is_dir() else []

    def _newest(self, name: str) -> Path | None:
        versions = self._versions(name)
        return versions[-1] if versions else None

    def _add(self, name: str, content: bytes, suffix: str) -> int:
        newest = self._newest(name)
        number = int(newest.stem) + 1 if newest else 1
        private_directory(self.directory / name)
        directory = private_directory(self.directory / name / "versions")
        write_atomically(directory / f"{number:08d}{suffix}", content, PRIVATE)
        return number

    def _refuse_under_foreign_lock(self, name: str, lock_id: str | None) -> None:
        holder = self.lock_holder(name)
        if holder is not None and holder.get("ID") != lock_id:
            raise StateLocked(holder)
