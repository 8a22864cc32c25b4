"""Who holds a state's lock, as OpenTofu's error about it tells.

Promises to read the holder of any backend's lock. Refuses to take another error for one about a
lock, as what is read here may be broken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class LockInfo:
    """The holder of a state's lock."""

    lock_id: str
    who: str
    age_seconds: float

    @property
    def host(self) -> str:
        """The machine that the holder runs on."""
        return self.who.rpartition("@")[2]


def lock_info(text: str) -> LockInfo | None:
    """Read who holds a lock from the error about it; None when it is no such error."""
    if "state lock" not in text.lower():
        return None
    found = {
        key: match.group(1)
        for key in ("ID", "Who", "Created")
        if (match := re.search(rf"\b{key}:\s+(\S+(?: \S+)?)", text))
    }
    lock_id = found.get("ID", "").split(" ")[0]
    if not re.fullmatch(r"[0-9A-Za-z-]{8,64}", lock_id):
        return None
    created = re.match(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)", found.get("Created", ""))
    age = 0.0
    if created:
        since = datetime.fromisoformat(f"{created.group(1)}T{created.group(2)}+00:00")
        age = max(0.0, (datetime.now(UTC) - since).total_seconds())
    return LockInfo(lock_id, found.get("Who", "unknown").split(" ")[0], age)
