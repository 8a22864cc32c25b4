"""Robot accounts: of one project, or of the system.

Why: robots are who pushes and pulls. Promises that a secret is told once, when it is made, and that
only its salted hash is kept. Refuses secrets and permissions that Harbor refuses, and renaming.
"""

from __future__ import annotations

import re
import secrets
import string
import time
from collections.abc import Mapping
from typing import Any

from lab.harbor.exceptions import BadRequest, Conflict, NotFound
from lab.harbor.models_access import hashed
from lab.harbor.models_projects import Sequence, now
from lab.hypervisor.store import Store

PREFIX = "robot$"
DAY_SECONDS = 86400
NEVER = -1
NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_RUD = ("read", "update", "delete")
_CRUDL = ("create", "list", *_RUD)
PROJECT_ACCESS = {
    "accessory": ("list",),
    "artifact": ("read", "delete", "list", "create"),
    "artifact-addition": ("read",),
    "artifact-label": ("create", "delete"),
    "label": _CRUDL,
    "log": ("list",),
    "metadata": _CRUDL,
    "project": _RUD,
    "quota": ("read",),
    "repository": ("pull", "push", "list", *_RUD),
    "robot": ("create", "read", "list", "delete"),
    "tag": ("create", "list", "delete"),
}
SYSTEM_ACCESS = {
    "label": _CRUDL,
    "project": ("create", "list"),
    "quota": ("read", "list", "update"),
    "robot": ("create", "read", "list", "delete"),
    "catalog": ("read",),
}
_SHOWN = (
    "id",
    "name",
    "description",
    "level",
    "duration",
    "expires_at",
    "disable",
    "permissions",
    "creation_time",
    "update_time",
    "creator_type",
    "creator_ref",
)
WEAK = (
    "the secret must be 8-128, inclusively, characters long with at least 1 uppercase letter, "
    "1 lowercase letter and 1 number"
)


def shown(robot: Mapping[str, Any]) -> dict[str, Any]:
    """What the API tells of a robot: never its secret."""
    return {key: robot[key] for key in _SHOWN} | {"editable": True}


def new_secret() -> str:
    """Random, with each kind of character that Harbor asks for."""
    letters = string.ascii_letters + string.digits
    while True:
        secret = "".join(secrets.choice(letters) for _ in range(32))
        if is_strong(secret):
            return secret


def is_strong(secret: str) -> bool:
    """Whether Harbor takes it."""
    kinds = (str.isupper, str.islower, str.isdigit)
    return 8 <= len(secret) <= 128 and all(any(kind(c) for c in secret) for kind in kinds)


def _checked_permissions(level: str, given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise BadRequest("bad request empty permission")
    if level == "project" and len(given) > 1:
        raise BadRequest("bad request permission")
    found = []
    for permission in given:
        kind, namespace = str(permission.get("kind")), str(permission.get("namespace") or "")
        if kind not in ("project", "system") or (level == "project" and kind != "project"):
            raise BadRequest("bad request permission kind")
        known = PROJECT_ACCESS if kind == "project" else SYSTEM_ACCESS
        access = permission.get("access") or []
        if not access:
            raise BadRequest("bad request empty access")
        for each in access:
            resource, action = str(each.get("resource")), str(each.get("action"))
            if action not in known.get(resource, ()):
                raise BadRequest(f"bad request permission: {resource}:{action}")
        kept = [{"resource": a["resource"], "action": a["action"]} for a in access]
        found.append({"kind": kind, "namespace": namespace, "access": kept})
    return found


def _checked_duration(given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or (given < 1 and given != NEVER):
        raise BadRequest(f"bad request error duration input: {given}")
    return given


class Robots:
    """All robots, by id."""

    def __init__(self, store: Store, sequence: Sequence) -> None:
        """Take up what is stored."""
        self._store = store
        self._sequence = sequence
        self._all = {int(key): body for key, body in store.load("robot").items()}

    def all(self) -> list[dict[str, Any]]:
        """Every robot, by id."""
        return [self._all[key] for key in sorted(self._all)]

    def of(self, project_id: int) -> list[dict[str, Any]]:
        """The robots of one project; 0 is the system."""
        return [each for each in self.all() if each["project_id"] == project_id]

    def get(self, robot_id: str) -> dict[str, Any]:
        """One robot.

        Raises:
            NotFound: in Harbor's words.
        """
        found = self._all.get(int(robot_id)) if robot_id.isdigit() else None
        if found is None:
            raise NotFound(f"robot {robot_id} not found")
        return found

    def create(
        self, given: Mapping[str, Any], project: Mapping[str, Any] | None, creator: str
    ) -> tuple[dict[str, Any], str]:
        """Make a robot of a project, or of the system; returns it with its secret.

        Raises:
            BadRequest, Conflict.
        """
        level = "project" if project else "system"
        base = str(given.get("name") or "")
        if not NAME.fullmatch(base) or len(base) > 255:
            raise BadRequest("robot name is not in lower case or contains illegal characters")
        name = f"{PREFIX}{project['name']}+{base}" if project else f"{PREFIX}{base}"
        if any(each["name"] == name for each in self._all.values()):
            raise Conflict(f"robot {base} already exists")
        duration = _checked_duration(given.get("duration"))
        secret = str(given.get("secret") or "") or new_secret()
        if not is_strong(secret):
            raise BadRequest(WEAK)
        salt, at = secrets.token_hex(16), now()
        robot = {
            "name": name,
            "description": str(given.get("description") or ""),
            "level": level,
            "project_id": project["project_id"] if project else 0,
            "duration": duration,
            "expires_at": _expiry(duration),
            "disable": bool(given.get("disable", False)),
            "permissions": _checked_permissions(level, given.get("permissions")),
            "creation_time": at,
            "update_time": at,
            "creator_type": "local",
            "creator_ref": 1,
            "creator": creator,
            "salt": salt,
            "hash": hashed(secret, salt),
        }
        robot = {"id": self._sequence.next("robot")} | robot
        self._put(robot)
        return robot, secret

    def update(self, robot: dict[str, Any], given: Mapping[str, Any]) -> None:
        """Change what may be changed of a robot.

        Raises:
            BadRequest: its name or level would change, or a value is wrong.
        """
        if given.get("name") != robot["name"] or given.get("level") != robot["level"]:
            raise BadRequest("cannot update the level or name of robot")
        duration = _checked_duration(given.get("duration", robot["duration"]))
        changed = {
            "description": str(given.get("description") or ""),
            "disable": bool(given.get("disable", False)),
            "permissions": _checked_permissions(robot["level"], given.get("permissions")),
            "duration": duration,
        }
        if duration != robot["duration"]:
            changed["expires_at"] = _expiry(duration)
        self._put(robot | changed | {"update_time": now()})

    def refresh(self, robot: dict[str, Any], wanted: str) -> str:
        """Give a robot another secret; returns it when it was made here, else nothing.

        Raises:
            BadRequest: the wanted secret is weak.
        """
        if wanted and not is_strong(wanted):
            raise BadRequest(WEAK)
        secret, salt = wanted or new_secret(), secrets.token_hex(16)
        self._put(robot | {"salt": salt, "hash": hashed(secret, salt), "update_time": now()})
        return "" if wanted else secret

    def delete(self, robot: Mapping[str, Any]) -> None:
        """Remove a robot."""
        self._store.delete("robot", str(robot["id"]))
        self._all.pop(robot["id"], None)

    def _put(self, robot: dict[str, Any]) -> None:
        self._store.put("robot", str(robot["id"]), robot)
        self._all[robot["id"]] = robot


def _expiry(duration_days: int) -> int:
    return NEVER if duration_days == NEVER else int(time.time()) + duration_days * DAY_SECONDS
