"""Versions of OpenBao's KV secrets: writes that only win if nobody wrote meanwhile.

Exists for records that several workers may go on with. Promises check-and-set on every write, and
that destroyed versions are gone from the storage. Refuses to overwrite a version it has not read.
API: https://openbao.org/api-docs/secret/kv/kv-v2/
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from blocks.openbao import OpenBaoSession
from domain.errors import NotFound


@dataclass(frozen=True)
class Versioned:
    """What lies under a path now."""

    version: int
    """Zero when the path has never been written."""
    values: Mapping[str, str] | None
    """None when there is no live version."""


class VersionedSecrets:
    """The KV mount of one session, by versions."""

    def __init__(self, session: OpenBaoSession) -> None:
        """Speak by `session`."""
        self._session = session
        self._mount = session.server.kv_mount

    def read(self, path: str) -> Versioned:
        """Return the live values under a path and the number that the next write must name."""
        try:
            answer = self._session.call("read the secret", "GET", f"{self._mount}/data/{path}")
        except NotFound:
            return Versioned(self._newest(path), None)
        data = answer["data"]
        values = {str(key): str(value) for key, value in (data["data"] or {}).items()}
        return Versioned(int(data["metadata"]["version"]), values)

    def _newest(self, path: str) -> int:
        return int(self.metadata(path).get("current_version", 0))

    def write(self, path: str, values: Mapping[str, str], version: int) -> int:
        """Write over `version` and return the new number.

        Raises:
            Conflict: another writer was first.
        """
        body = {"data": dict(values), "options": {"cas": version}}
        answer = self._session.call("write the secret", "POST", f"{self._mount}/data/{path}", body)
        return int(answer["data"]["version"])

    def metadata(self, path: str) -> dict[str, Any]:
        """Return what OpenBao keeps about a path; empty when it does not exist."""
        try:
            answer = self._session.call(
                "read the metadata of", "GET", f"{self._mount}/metadata/{path}"
            )
        except NotFound:
            return {}
        return dict(answer.get("data") or {})

    def describe(self, path: str, custom: Mapping[str, str], versions_kept: int = 0) -> None:
        """Set the custom metadata of a path, and how many versions are kept (0: the mount's)."""
        body: dict[str, Any] = {"custom_metadata": dict(custom), "max_versions": versions_kept}
        self._session.call("write the metadata of", "POST", f"{self._mount}/metadata/{path}", body)

    def written_at(self, path: str) -> datetime | None:
        """Return when the newest version was written, by OpenBao's clock."""
        metadata = self.metadata(path)
        entry = (metadata.get("versions") or {}).get(str(metadata.get("current_version")))
        return moment(str(entry["created_time"])) if entry else None

    def destroy_older(self, path: str) -> int:
        """Destroy every version but the newest; returns how many there were."""
        metadata = self.metadata(path)
        newest = int(metadata.get("current_version", 0))
        older = [
            int(number)
            for number, entry in (metadata.get("versions") or {}).items()
            if int(number) < newest and not entry.get("destroyed")
        ]
        if older:
            self._session.call(
                "destroy old versions of",
                "PUT",
                f"{self._mount}/destroy/{path}",
                {"versions": sorted(older)},
            )
        return len(older)

    def hmac(self, payload: bytes) -> str:
        """Return an HMAC made by OpenBao, with a key that never leaves it."""
        server = self._session.server
        answer = self._session.call(
            "fingerprint with",
            "POST",
            f"{server.transit_mount}/hmac/{server.rotation_key}/sha2-256",
            {"input": base64.b64encode(payload).decode()},
        )
        return str(answer["data"]["hmac"])


def moment(text: str) -> datetime | None:
    """Read a time as Go prints it, with nanoseconds; None for the zero time or none."""
    if not text or text.startswith("0001-"):
        return None
    whole, _, fraction = text.rstrip("Z").partition(".")
    micro = fraction[:6].ljust(6, "0") if fraction else "000000"
    return datetime.fromisoformat(f"{whole}.{micro}").replace(tzinfo=UTC)
