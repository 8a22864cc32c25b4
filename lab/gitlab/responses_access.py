"""Users, tokens, namespaces and members, as the API shows them."""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_projects as projects
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Conflict, Missing, ParameterErrors
from lab.gitlab.instance import VERSION, now, public_user
from lab.hypervisor.store import Document

LONGEST_TOKEN_DAYS = 400
LEVELS = (access.GUEST, 15, access.REPORTER, access.DEVELOPER, access.MAINTAINER, access.OWNER)


def version(_: Call) -> Any:
    """GET /version."""
    return {
        "version": VERSION,
        "revision": "simulated",
        "kas": {"enabled": False},
        "enterprise": True,
    }


def _full_user(call: Call, user: Document) -> dict[str, Any]:
    shown = {
        **public_user(call.gitlab, user),
        "created_at": user["created_at"],
        "bot": user["is_bot"],
    }
    if call.identity.is_administrator or user["id"] == call.user["id"]:
        shown |= {"email": user["email"], "commit_email": user["email"], "external": False}
        shown |= {
            "is_admin": user["is_admin"],
            "can_create_project": True,
            "can_create_group": True,
        }
        namespace = call.gitlab.tables.namespaces.first(kind="user", user_id=user["id"])
        shown["namespace_id"] = namespace["id"] if namespace else None
    return shown


def current_user(call: Call) -> Any:
    """GET /user."""
    return _full_user(call, call.user)


def users(call: Call) -> Any:
    """GET /users."""
    found = list(call.gitlab.tables.users)
    if "username" in call.params:
        found = [user for user in found if user["username"] == call.params["username"]]
    if "search" in call.params:
        word = call.params["search"].lower()
        found = [u for u in found if word in u["username"].lower() or word in u["name"].lower()]
    return [_full_user(call, user) for user in reversed(found)]


def _user(call: Call) -> Document:
    user = call.gitlab.tables.users.get(call.number("user", "User"))
    if user is None:
        raise Missing("User")
    return user


def user_get(call: Call) -> Any:
    """GET /users/:id."""
    return _full_user(call, _user(call))


def user_create(call: Call) -> Any:
    """POST /users, for administrators. There is no login by password: passwords are not kept."""
    call.require_administrator()
    given = call.params
    if call.gitlab.tables.users.first(username=given["username"]) is not None:
        raise Conflict("Username has already been taken")
    if call.gitlab.tables.users.first(email=given["email"]) is not None:
        raise Conflict("Email has already been taken")
    details = {
        "name": given["name"],
        "email": given["email"],
        "is_admin": given.get("admin", False),
    }
    return _full_user(call, access.define_user(call.gitlab, given["username"], **details))


def user_delete(call: Call) -> Any:
    """DELETE /users/:id, for administrators."""
    call.require_administrator()
    user, tables = _user(call), call.gitlab.tables
    for table in (tables.tokens, tables.members):
        for row in table.where(user_id=user["id"]):
            table.remove(row["id"])
    for namespace in tables.namespaces.where(kind="user", user_id=user["id"]):
        for project in tables.projects.where(namespace_id=namespace["id"]):
            projects.delete_project(call.gitlab, project)
        tables.namespaces.remove(namespace["id"])
    tables.users.save({**user, "state": "deleted", "username": f"ghost-{user['id']}"})
    return NO_CONTENT


def _expiry(call: Call) -> str | None:
    text = call.params.get("expires_at")
    if text is None:
        return None
    try:
        day = dt.date.fromisoformat(text)
    except ValueError as error:
        raise ParameterErrors(["expires_at is invalid"]) from error
    if day <= now().date():
        raise BadRequest("Expiration date must be in the future")
    if day > now().date() + dt.timedelta(days=LONGEST_TOKEN_DAYS):
        raise BadRequest("Expiration date is too far away")
    return day.isoformat()


def _check_scopes(scopes: list[str]) -> None:
    if not scopes or set(scopes) - set(access.PERSONAL_SCOPES):
        raise BadRequest("Scopes can only contain available scopes")


def show_token(row: Document, **more: Any) -> dict[str, Any]:
    """A token without its value."""
    kept = (
        "id",
        "name",
        "revoked",
        "created_at",
        "scopes",
        "user_id",
        "last_used_at",
        "expires_at",
    )
    is_active = not row["revoked"] and not access.is_expired(row)
    return {**{key: row[key] for key in kept}, "description": None, "active": is_active, **more}


def user_token_create(call: Call) -> Any:
    """POST /users/:id/personal_access_tokens, for administrators."""
    call.require_administrator()
    _check_scopes(call.params["scopes"])
    token, value = access.make_token(
        call.gitlab,
        _user(call),
        name=call.params["name"],
        scopes=call.params["scopes"],
        expires_at=_expiry(call),
    )
    return show_token(token, token=value)


def own_token(call: Call) -> Any:
    """GET /personal_access_tokens/self."""
    if call.identity.token is None:
        raise Missing("Token")
    return show_token(call.identity.token)


def _project_token(call: Call) -> Document:
    project = call.project(access.MAINTAINER)
    token = call.gitlab.tables.tokens.get(call.number("token"))
    if token is None or token["project_id"] != project["id"] or token["revoked"]:
        raise Missing("Project Access Token")
    return token


def _token_level(call: Call, token: Document) -> int:
    member = call.gitlab.tables.members.first(
        source="project", source_id=token["project_id"], user_id=token["user_id"]
    )
    return int(member["access_level"]) if member else 0


def project_tokens(call: Call) -> Any:
    """GET /projects/:id/access_tokens."""
    project = call.project(access.MAINTAINER)
    rows = call.gitlab.tables.tokens.where(project_id=project["id"])
    shown = [show_token(row, access_level=_token_level(call, row)) for row in rows]
    if "revoked" in call.params:
        shown = [each for each in shown if each["revoked"] == call.params["revoked"]]
    if "state" in call.params:
        shown = [each for each in shown if each["active"] == (call.params["state"] == "active")]
    return shown


def project_token_get(call: Call) -> Any:
    """GET /projects/:id/access_tokens/:token_id."""
    token = _project_token(call)
    return show_token(token, access_level=_token_level(call, token))


def project_token_create(call: Call) -> Any:
    """POST /projects/:id/access_tokens: a bot user with one token."""
    project = call.project(access.MAINTAINER)
    _check_scopes(call.params["scopes"])
    level = call.params.get("access_level", access.MAINTAINER)
    if level not in LEVELS:
        raise ParameterErrors(["access_level does not have a valid value"])
    if level > access.project_level(call.gitlab, call.user, project):
        raise BadRequest("Access level of the token can't be greater the access level of the user")
    expires_at = _expiry(call) or (now().date() + dt.timedelta(days=365)).isoformat()
    name = f"project_{project['id']}_bot_{secrets.token_hex(16)}"
    bot = access.define_user(call.gitlab, name, name=call.params["name"], is_bot=True)
    projects.add_member(call.gitlab, "project", project["id"], bot, level)
    token, value = access.make_token(
        call.gitlab, bot, name=call.params["name"], scopes=call.params["scopes"],
        expires_at=expires_at, project_id=project["id"],
    )  # fmt: skip
    return show_token(token, access_level=level, token=value)


def project_token_revoke(call: Call) -> Any:
    """DELETE /projects/:id/access_tokens/:token_id."""
    token = _project_token(call)
    call.gitlab.tables.tokens.save({**token, "revoked": True})
    return NO_CONTENT


def project_token_rotate(call: Call) -> Any:
    """POST /projects/:id/access_tokens/:token_id/rotate: the old one ends at once."""
    old = _project_token(call)
    level, user = _token_level(call, old), call.gitlab.tables.users.get(old["user_id"])
    if user is None:
        raise Missing("Project Access Token")
    expires_at = _expiry(call) or (now().date() + dt.timedelta(days=7)).isoformat()
    call.gitlab.tables.tokens.save({**old, "revoked": True})
    token, value = access.make_token(
        call.gitlab, user, name=old["name"], scopes=old["scopes"],
        expires_at=expires_at, project_id=old["project_id"],
    )  # fmt: skip
    return Answer(show_token(token, access_level=level, token=value), 200)


def _namespace(call: Call, found: Document) -> dict[str, Any]:
    path = projects.full_path(call.gitlab, found["id"])
    return {
        "id": found["id"],
        "name": found["name"],
        "path": found["path"],
        "kind": found["kind"],
        "full_path": path,
        "parent_id": found["parent_id"],
        "avatar_url": None,
        "web_url": f"{call.gitlab.url}/{'groups/' if found['kind'] == 'group' else ''}{path}",
    }


def namespaces(call: Call) -> Any:
    """GET /namespaces: those that the user owns or is a member of."""
    word = call.params.get("search", "").lower()
    return [
        _namespace(call, each)
        for each in call.gitlab.tables.namespaces
        if access.group_level(call.gitlab, call.user, each) >= access.GUEST
        and word in projects.full_path(call.gitlab, each["id"]).lower()
    ]


def namespace_get(call: Call) -> Any:
    """GET /namespaces/:id."""
    wanted = call.path["namespace"]
    for each in call.gitlab.tables.namespaces:
        path = projects.full_path(call.gitlab, each["id"])
        if wanted in (str(each["id"]), path) and access.group_level(call.gitlab, call.user, each):
            return _namespace(call, each)
    raise Missing("Namespace")


def _source(call: Call, level: int) -> tuple[str, Document]:
    if "project" in call.path:
        return "project", call.project(level)
    return "group", call.group(level)


def _show_member(call: Call, member: Document) -> dict[str, Any]:
    user = call.gitlab.tables.users.get(member["user_id"]) or {}
    return {
        **public_user(call.gitlab, user),
        "access_level": member["access_level"],
        "created_at": member["created_at"],
        "expires_at": member["expires_at"],
        "membership_state": "active",
    }


def _inherited(call: Call) -> list[Document]:
    source, thing = _source(call, access.GUEST)
    namespace_id = thing["namespace_id"] if source == "project" else thing["id"]
    sources = [(source, thing["id"])]
    sources += [("group", each["id"]) for each in access.ancestors(call.gitlab, namespace_id)]
    best: dict[int, Document] = {}
    for member in call.gitlab.tables.members:
        held = best.get(member["user_id"])
        if (member["source"], member["source_id"]) in sources and (
            held is None or held["access_level"] < member["access_level"]
        ):
            best[member["user_id"]] = member
    return list(best.values())


def members(call: Call) -> Any:
    """GET .../members."""
    source, thing = _source(call, access.GUEST)
    rows = call.gitlab.tables.members.where(source=source, source_id=thing["id"])
    return [_show_member(call, row) for row in rows]


def members_all(call: Call) -> Any:
    """GET .../members/all: inherited ones too."""
    return [_show_member(call, row) for row in _inherited(call)]


def member_get(call: Call) -> Any:
    """GET .../members/:user_id."""
    return _show_member(call, _member(call, access.GUEST))


def member_get_all(call: Call) -> Any:
    """GET .../members/all/:user_id."""
    for row in _inherited(call):
        if row["user_id"] == call.number("user"):
            return _show_member(call, row)
    raise Missing


def _member(call: Call, level: int) -> Document:
    source, thing = _source(call, level)
    found = call.gitlab.tables.members.first(
        source=source, source_id=thing["id"], user_id=call.number("user")
    )
    if found is None:
        raise Missing
    return found


def member_add(call: Call) -> Any:
    """POST .../members."""
    source, thing = _source(call, access.MAINTAINER if "project" in call.path else access.OWNER)
    user = call.gitlab.tables.users.get(call.params["user_id"])
    if user is None:
        raise Missing("User")
    if call.params["access_level"] not in LEVELS:
        raise ParameterErrors(["access_level does not have a valid value"])
    held = call.gitlab.tables.members.first(
        source=source, source_id=thing["id"], user_id=user["id"]
    )
    if held is not None:
        raise Conflict("Member already exists")
    made = projects.add_member(
        call.gitlab,
        source,
        thing["id"],
        user,
        call.params["access_level"],
        call.params.get("expires_at"),
    )
    return Answer(_show_member(call, made), 201)


def member_edit(call: Call) -> Any:
    """PUT .../members/:user_id."""
    member = _member(call, access.MAINTAINER)
    if call.params["access_level"] not in LEVELS:
        raise ParameterErrors(["access_level does not have a valid value"])
    return _show_member(
        call,
        call.gitlab.tables.members.save({**member, **call.given("access_level", "expires_at")}),
    )


def member_remove(call: Call) -> Any:
    """DELETE .../members/:user_id."""
    call.gitlab.tables.members.remove(_member(call, access.MAINTAINER)["id"])
    return NO_CONTENT
