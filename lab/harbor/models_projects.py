"""Projects with their quotas, and the labels that mark them.

Why: a project is what keeps one application's images apart, in rights and in space. Promises that a
project and its quota are one document: they come and go together. Refuses names and metadata that
Harbor refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lab.harbor.exceptions import BadRequest, Conflict, NotFound
from lab.hypervisor.store import Store

NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
BOOLEAN_KEYS = (
    "public",
    "prevent_vul",
    "auto_scan",
    "auto_sbom_generation",
    "enable_content_trust",
    "enable_content_trust_cosign",
    "reuse_sys_cve_allowlist",
)
SEVERITIES = ("none", "low", "medium", "high", "critical")
UNLIMITED = -1


def now() -> str:
    """The time as Harbor prints it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Sequence:
    """Numbers that are never given twice, as a database's sequence."""

    def __init__(self, store: Store) -> None:
        """Go on after the last one in `store`."""
        self._store = store
        self._last = {key: int(body["last"]) for key, body in store.load("sequence").items()}

    def next(self, kind: str) -> int:
        """The next number of a kind."""
        self._last[kind] = self._last.get(kind, 0) + 1
        self._store.put("sequence", kind, {"last": self._last[kind]})
        return self._last[kind]


def checked_metadata(given: Mapping[str, Any]) -> dict[str, str]:
    """Metadata whose keys and values Harbor knows.

    Raises:
        BadRequest: naming the first that it does not.
    """
    found = {}
    for key, value in given.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if key in BOOLEAN_KEYS:
            if text not in ("true", "false"):
                raise BadRequest(f"invalid value: {text}")
        elif key == "severity":
            if text not in SEVERITIES:
                raise BadRequest(f"invalid value: {text}")
        else:
            raise BadRequest(f"invalid key: {key}")
        found[key] = text
    return found


class Projects:
    """All projects, by id."""

    def __init__(self, store: Store, sequence: Sequence) -> None:
        """Take up what is stored."""
        self._store = store
        self._sequence = sequence
        self._all = {int(key): body for key, body in store.load("project").items()}

    def all(self) -> list[dict[str, Any]]:
        """Every project, by id."""
        return [self._all[key] for key in sorted(self._all)]

    def named(self, name: str) -> dict[str, Any] | None:
        """The project of a name."""
        return next((each for each in self._all.values() if each["name"] == name), None)

    def get(self, name_or_id: str, is_name: str = "") -> dict[str, Any]:
        """The project of a path: a number is an id unless `X-Is-Resource-Name` says otherwise.

        Raises:
            NotFound: in Harbor's words.
        """
        found = None
        if name_or_id.isdigit() and is_name.lower() != "true":
            found = self._all.get(int(name_or_id))
        else:
            found = self.named(name_or_id)
        if found is None:
            raise NotFound(f"project {name_or_id} not found")
        return found

    def create(self, given: Mapping[str, Any], owner: str) -> dict[str, Any]:
        """Make a project with its quota.

        Raises:
            BadRequest, Conflict.
        """
        name = str(given.get("project_name") or "")
        if not NAME.fullmatch(name) or len(name) > 255:
            raise BadRequest(
                "project name is not in lower case or contains illegal characters"
                if name
                else "project name is empty"
            )
        if self.named(name) is not None:
            raise Conflict(f"The project named {name} already exists")
        metadata = {"public": "false"} | checked_metadata(
            {k: v for k, v in (given.get("metadata") or {}).items() if v is not None}
        )
        limit = given.get("storage_limit")
        limit = UNLIMITED if limit is None else checked_limit(limit)
        number, time = self._sequence.next("project"), now()
        project = {
            "project_id": number,
            "name": name,
            "owner_id": 1,
            "owner_name": owner,
            "creation_time": time,
            "update_time": time,
            "metadata": metadata,
            "storage_limit": limit,
        }
        self.put(project)
        return project

    def put(self, project: dict[str, Any]) -> None:
        """Store a project as it is now."""
        self._store.put("project", str(project["project_id"]), project)
        self._all[project["project_id"]] = project

    def change(self, project: dict[str, Any], **fields: Any) -> None:
        """Change fields of a project; nothing is shown before it is stored."""
        self.put(project | fields | {"update_time": now()})

    def delete(self, project: dict[str, Any]) -> None:
        """Remove a project and its quota."""
        self._store.delete("project", str(project["project_id"]))
        self._all.pop(project["project_id"], None)


def checked_limit(value: Any) -> int:
    """A quota: bytes, or -1 for no limit.

    Raises:
        BadRequest: it is neither.
    """
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or (value <= 0 and value != UNLIMITED):
        raise BadRequest(f"invalid hard limit for storage: {value}")
    return int(value)


class Labels:
    """Labels of projects (scope `p`); the global ones are not simulated."""

    def __init__(self, store: Store, sequence: Sequence) -> None:
        """Take up what is stored."""
        self._store = store
        self._sequence = sequence
        self._all = {int(key): body for key, body in store.load("label").items()}

    def of(self, project_id: int) -> list[dict[str, Any]]:
        """The labels of a project, by id."""
        return [self._all[k] for k in sorted(self._all) if self._all[k]["project_id"] == project_id]

    def get(self, label_id: str) -> dict[str, Any]:
        """One label.

        Raises:
            NotFound.
        """
        found = self._all.get(int(label_id)) if label_id.isdigit() else None
        if found is None:
            raise NotFound(f"label {label_id} not found")
        return found

    def create(self, given: Mapping[str, Any], project_id: int) -> dict[str, Any]:
        """Make a label of a project.

        Raises:
            BadRequest, Conflict.
        """
        name = str(given.get("name") or "")
        if not 1 <= len(name) <= 128:
            raise BadRequest("label name must be 1 to 128 characters long")
        if any(each["name"] == name for each in self.of(project_id)):
            raise Conflict(f"label {name} already exists")
        number, time = self._sequence.next("label"), now()
        label = {
            "id": number,
            "name": name,
            "description": str(given.get("description") or ""),
            "color": str(given.get("color") or ""),
            "scope": "p",
            "project_id": project_id,
            "creation_time": time,
            "update_time": time,
        }
        self._store.put("label", str(number), label)
        self._all[number] = label
        return label

    def delete(self, label: Mapping[str, Any]) -> None:
        """Remove a label."""
        self._store.delete("label", str(label["id"]))
        self._all.pop(label["id"], None)
