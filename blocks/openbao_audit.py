"""OpenBao's audit log, read from its end: who used what lately.

Exists because OpenBao itself does not keep when a credential was used. Promises whole entries only,
oldest first, and to read no more of a large file than the time that is asked for. Refuses to show
values: the device hashes them, and what it does not hash is left to the caller's choice of fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from domain.errors import Unauthorized

BLOCK_BYTES = 1 << 20


class AuditLog:
    """The file of one audit device."""

    def __init__(self, file: Path) -> None:
        """Read `file`; it may be rotated away and begin anew."""
        self._file = file

    def since(self, moment: datetime) -> list[dict[str, Any]]:
        """Return the entries that were written after `moment`.

        Raises:
            Unauthorized: the file cannot be read.
        """
        found: list[dict[str, Any]] = []
        try:
            for line in self._lines_backwards():
                entry = _entry(line)
                if entry is None:
                    continue
                if (written_at(entry) or moment) <= moment:
                    break
                found.append(entry)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise Unauthorized(
                f"Unable to read OpenBao's audit log {self._file}: {reason}. "
                "Let the worker read it, or leave audit_file empty."
            ) from error
        return found[::-1]

    def _lines_backwards(self) -> Iterator[bytes]:
        with self._file.open("rb") as log:
            position, rest = log.seek(0, 2), b""
            while position > 0:
                size = min(BLOCK_BYTES, position)
                position -= size
                log.seek(position)
                lines = (log.read(size) + rest).split(b"\n")
                rest = lines[0]
                yield from reversed(lines[1:])
            yield rest


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return a line as an entry; None for the last one while it is being written."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def written_at(entry: dict[str, Any]) -> datetime | None:
    """Return when an entry was written."""
    text = str(entry.get("time") or "")
    whole, _, fraction = text.rstrip("Z").partition(".")
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError:
        return None
    return moment.replace(microsecond=int(fraction[:6].ljust(6, "0") or 0), tzinfo=UTC)
