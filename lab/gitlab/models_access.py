"""Who asks and what they may: users, tokens, scopes and roles.

Promises: a token's value is told once and kept only as a digest; a thing that a user may not see
is missing, not forbidden, as in GitLab.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.gitlab.exceptions import Forbidden, InsufficientScope, InvalidToken, Unauthorized
from lab.gitlab.instance import GitLab, now, stamp
from lab.hypervisor.store import Document

NONE, GUEST, REPORTER, DEVELOPER, MAINTAINER, OWNER = 0, 10, 20, 30, 40, 50
ADMINISTRATOR = 60
LEVEL_NAMES = {
    0: "No one",
    GUEST: "Guest",
    15: "Planner",
    REPORTER: "Reporter",
    DEVELOPER: "Developers + Maintainers",
    MAINTAINER: "Maintainers",
    OWNER: "Owner",
    ADMINISTRATOR: "Admin",
}
PERSONAL_SCOPES = ("api", "read_api", "read_user", "read_repository", "write_repository")
READING_SCOPES = {"api", "read_api"}
FETCHING_SCOPES = {"api", "read_repository", "write_repository"}
PUSHING_SCOPES = {"api", "write_repository"}


@dataclass(frozen=True)
class Identity:
    """A user by one of its tokens."""

    user: Document
    scopes: frozenset[str]
    token: Document | None = None

    @property
    def is_administrator(self) -> bool:
        """True for the instance's administrators."""
        return bool(self.user.get("is_admin"))

    def require_scope(self, method: str) -> None:
        """403 when the token's scopes do not cover a request of the API."""
        if "api" in self.scopes:
            return
        if method in ("GET", "HEAD") and "read_api" in self.scopes:
            return
        raise InsufficientScope("api read_api" if method in ("GET", "HEAD") else "api")


def digest(value: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(value.encode()).hexdigest()


def define_user(gitlab: GitLab, username: str, **details: Any) -> Document:
    """The user of this name with its own namespace; made if it is not there."""
    user = gitlab.tables.users.first(username=username)
    if user is None:
        user = gitlab.tables.users.add(
            {
                "username": username,
                "name": username,
                "email": f"{username}@lab.infraflows.internal",
                "state": "active",
                "is_admin": False,
                "is_bot": False,
                "created_at": stamp(),
            }
        )
    changed = {**user, **details}
    if changed != user:
        user = gitlab.tables.users.save(changed)
    if (
        not user["is_bot"]
        and gitlab.tables.namespaces.first(kind="user", user_id=user["id"]) is None
    ):
        gitlab.tables.namespaces.add(
            {
                "kind": "user",
                "user_id": user["id"],
                "name": user["name"],
                "path": username,
                "parent_id": None,
                "visibility": "private",
                "description": "",
                "created_at": stamp(),
            }
        )
    return user


def define_token(gitlab: GitLab, user: Document, value: str) -> None:
    """A token whose value was decided elsewhere; an earlier one of this kind ends."""
    for token in gitlab.tables.tokens.where(user_id=user["id"], name="set-up"):
        if token["digest"] == digest(value):
            return
        gitlab.tables.tokens.remove(token["id"])
    _store_token(gitlab, user, value, name="set-up", scopes=["api", "write_repository"], days=None)


def make_token(
    gitlab: GitLab,
    user: Document,
    *,
    name: str,
    scopes: Sequence[str],
    expires_at: str | None,
    project_id: int | None = None,
) -> tuple[Document, str]:
    """A new token and its value, which is told this once."""
    value = f"glpat-{secrets.token_urlsafe(20)}"
    token = _store_token(
        gitlab, user, value, name=name, scopes=list(scopes), days=expires_at, project_id=project_id
    )
    return token, value


def _store_token(
    gitlab: GitLab,
    user: Document,
    value: str,
    *,
    name: str,
    scopes: list[str],
    days: str | None,
    project_id: int | None = None,
) -> Document:
    return gitlab.tables.tokens.add(
        {
            "user_id": user["id"],
            "name": name,
            "scopes": scopes,
            "digest": digest(value),
            "revoked": False,
            "expires_at": days,
            "project_id": project_id,
            "created_at": stamp(),
            "last_used_at": None,
        }
    )


def is_expired(token: Document) -> bool:
    """True from the day on which a token ends."""
    end = token["expires_at"]
    return end is not None and dt.date.fromisoformat(end) <= now().date()


def identify(gitlab: GitLab, value: str) -> Identity:
    """The identity behind a token's value, or 401."""
    held = digest(value)
    for token in gitlab.tables.tokens:
        if hmac.compare_digest(token["digest"], held):
            if token["revoked"]:
                raise InvalidToken("Token was revoked. You have to re-authorize from the user.")
            if is_expired(token):
                raise InvalidToken(
                    "Token is expired. You can either do re-authorization or token refresh."
                )
            user = gitlab.tables.users.get(token["user_id"])
            if user is None or user["state"] != "active":
                raise Unauthorized
            return Identity(user, frozenset(token["scopes"]), token)
    raise Unauthorized


def basic_login(header: str) -> tuple[str, str] | None:
    """User name and password of a basic authorisation header, or None."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return name, password


def ancestors(gitlab: GitLab, namespace_id: int | None) -> list[Document]:
    """A namespace and those above it."""
    chain = []
    while namespace_id is not None and (found := gitlab.tables.namespaces.get(namespace_id)):
        chain.append(found)
        namespace_id = found["parent_id"]
    return chain


def member_level(gitlab: GitLab, user: Document, sources: Sequence[tuple[str, int]]) -> int:
    """The highest role of a user in any of these groups and projects."""
    levels = [
        member["access_level"]
        for member in gitlab.tables.members.where(user_id=user["id"])
        if (member["source"], member["source_id"]) in sources
        and not (member["expires_at"] and is_expired(member))
    ]
    return max(levels, default=NONE)


def group_level(gitlab: GitLab, user: Document, group: Document) -> int:
    """A user's role in a group or a personal namespace."""
    if user.get("is_admin"):
        return ADMINISTRATOR
    if group["kind"] == "user":
        return OWNER if group["user_id"] == user["id"] else NONE
    chain = ancestors(gitlab, group["id"])
    return member_level(gitlab, user, [("group", each["id"]) for each in chain])


def project_level(gitlab: GitLab, user: Document, project: Document) -> int:
    """A user's role in a project."""
    if user.get("is_admin"):
        return ADMINISTRATOR
    chain = ancestors(gitlab, project["namespace_id"])
    if any(each["kind"] == "user" and each["user_id"] == user["id"] for each in chain):
        return OWNER
    sources = [("project", project["id"]), *(("group", each["id"]) for each in chain)]
    return member_level(gitlab, user, sources)


def can_read(gitlab: GitLab, user: Document, project: Document) -> bool:
    """True when the user may know of the project."""
    if project["visibility"] in ("public", "internal"):
        return True
    return project_level(gitlab, user, project) >= GUEST


def require_level(level: int, needed: int) -> None:
    """403 unless the role reaches so far."""
    if level < needed:
        raise Forbidden
