"""Protected branches and tags, CI variables, deploy tokens, as the API shows and changes them."""

from __future__ import annotations

import re
import secrets
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Conflict, Missing, ParameterErrors
from lab.gitlab.instance import now, stamp
from lab.hypervisor.store import Document

BRANCH_LEVELS = (0, access.DEVELOPER, access.MAINTAINER, access.ADMINISTRATOR)
MASKABLE = re.compile(r"[A-Za-z0-9_:@=/+.~-]{8,}")
MASKABLE_RAW = re.compile(r"\S{8,}")
"""Of a variable that is not expanded."""
KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
DEPLOY_SCOPES = (
    "read_repository", "read_registry", "write_registry", "read_package_registry",
    "write_package_registry", "read_virtual_registry", "write_virtual_registry",
)  # fmt: skip


def _levels(identifier: int, level: int) -> list[dict[str, Any]]:
    return [
        {
            "id": identifier,
            "access_level": level,
            "access_level_description": access.LEVEL_NAMES[level],
            "user_id": None,
            "group_id": None,
            "deploy_key_id": None,
        }
    ]


def _level(call: Call, name: str) -> int:
    level = call.params.get(name, access.MAINTAINER)
    if level not in BRANCH_LEVELS:
        raise ParameterErrors([f"{name} does not have a valid value"])
    return int(level)


def _show_branch(row: Document) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "push_access_levels": _levels(row["id"] * 2, row["push_access_level"]),
        "merge_access_levels": _levels(row["id"] * 2 + 1, row["merge_access_level"]),
        "allow_force_push": row["allow_force_push"],
        "inherited": False,
    }


def branches(call: Call) -> Any:
    """GET /projects/:id/protected_branches."""
    project = call.project(access.DEVELOPER)
    word = call.params.get("search", "")
    rows = call.gitlab.tables.protected_branches.where(project_id=project["id"])
    return [_show_branch(row) for row in rows if word in row["name"]]


def _branch(call: Call, level: int) -> Document:
    project = call.project(level)
    row = call.gitlab.tables.protected_branches.first(
        project_id=project["id"], name=call.path["branch"]
    )
    if row is None:
        raise Missing
    return row


def branch_get(call: Call) -> Any:
    """GET /projects/:id/protected_branches/:name."""
    return _show_branch(_branch(call, access.DEVELOPER))


def branch_protect(call: Call) -> Any:
    """POST /projects/:id/protected_branches."""
    project, name = call.project(access.MAINTAINER), call.params["name"]
    rows = call.gitlab.tables.protected_branches
    if rows.first(project_id=project["id"], name=name) is not None:
        raise Conflict(f"Protected branch '{name}' already exists")
    return _show_branch(
        rows.add(
            {
                "project_id": project["id"],
                "name": name,
                "push_access_level": _level(call, "push_access_level"),
                "merge_access_level": _level(call, "merge_access_level"),
                "allow_force_push": call.params.get("allow_force_push", False),
            }
        )
    )


def branch_edit(call: Call) -> Any:
    """PATCH /projects/:id/protected_branches/:name."""
    row = _branch(call, access.MAINTAINER)
    changed = {**row, **call.given("allow_force_push")}
    return _show_branch(call.gitlab.tables.protected_branches.save(changed))


def branch_unprotect(call: Call) -> Any:
    """DELETE /projects/:id/protected_branches/:name."""
    call.gitlab.tables.protected_branches.remove(_branch(call, access.MAINTAINER)["id"])
    return NO_CONTENT


def _show_tag(row: Document) -> dict[str, Any]:
    return {
        "name": row["name"],
        "create_access_levels": _levels(row["id"], row["create_access_level"]),
    }


def tags(call: Call) -> Any:
    """GET /projects/:id/protected_tags."""
    project = call.project(access.DEVELOPER)
    rows = call.gitlab.tables.protected_tags.where(project_id=project["id"])
    return [_show_tag(row) for row in rows]


def _tag(call: Call, level: int) -> Document:
    project = call.project(level)
    row = call.gitlab.tables.protected_tags.first(project_id=project["id"], name=call.path["tag"])
    if row is None:
        raise Missing
    return row


def tag_get(call: Call) -> Any:
    """GET /projects/:id/protected_tags/:name."""
    return _show_tag(_tag(call, access.DEVELOPER))


def tag_protect(call: Call) -> Any:
    """POST /projects/:id/protected_tags."""
    project, name = call.project(access.MAINTAINER), call.params["name"]
    rows = call.gitlab.tables.protected_tags
    if rows.first(project_id=project["id"], name=name) is not None:
        raise Conflict(f"Protected tag '{name}' already exists")
    level = _level(call, "create_access_level")
    return _show_tag(
        rows.add({"project_id": project["id"], "name": name, "create_access_level": level})
    )


def tag_unprotect(call: Call) -> Any:
    """DELETE /projects/:id/protected_tags/:name."""
    call.gitlab.tables.protected_tags.remove(_tag(call, access.MAINTAINER)["id"])
    return NO_CONTENT


def _show_variable(row: Document) -> dict[str, Any]:
    kept = ("variable_type", "key", "hidden", "protected", "masked", "raw", "environment_scope",
            "description")  # fmt: skip
    return {"value": None if row["hidden"] else row["value"], **{key: row[key] for key in kept}}


def variables(call: Call) -> Any:
    """GET /projects/:id/variables."""
    project = call.project(access.MAINTAINER)
    rows = call.gitlab.tables.variables.where(project_id=project["id"])
    return [_show_variable(row) for row in rows]


def _variable(call: Call) -> Document:
    project = call.project(access.MAINTAINER)
    rows = call.gitlab.tables.variables.where(project_id=project["id"], key=call.path["key"])
    scope = call.params.get("filter[environment_scope]")
    if scope is not None:
        rows = [row for row in rows if row["environment_scope"] == scope]
    if not rows:
        raise Missing("Variable")
    if len(rows) > 1:
        text = "There are multiple variables with provided parameters."
        raise Conflict(f"{text} Please use 'filter[environment_scope]'")
    return rows[0]


def variable_get(call: Call) -> Any:
    """GET /projects/:id/variables/:key."""
    return _show_variable(_variable(call))


def _check_variable(call: Call, row: Document) -> None:
    problems: dict[str, list[str]] = {}
    if not KEY.fullmatch(row["key"]):
        problems["key"] = ["can contain only letters, digits and '_'."]
    if row["variable_type"] not in ("env_var", "file"):
        raise ParameterErrors(["variable_type does not have a valid value"])
    if row["masked"] and not (MASKABLE_RAW if row["raw"] else MASKABLE).fullmatch(row["value"]):
        problems["value"] = ["is invalid"]
    for other in call.gitlab.tables.variables.where(project_id=row["project_id"], key=row["key"]):
        if other["environment_scope"] == row["environment_scope"] and other["id"] != row.get("id"):
            problems["key"] = [f"({row['key']}) has already been taken"]
    if problems:
        raise BadRequest(problems)


def variable_create(call: Call) -> Any:
    """POST /projects/:id/variables."""
    project, given = call.project(access.MAINTAINER), call.params
    is_hidden = given.get("masked_and_hidden", False)
    row = {
        "project_id": project["id"],
        "key": given["key"],
        "value": given["value"],
        "variable_type": given.get("variable_type", "env_var"),
        "masked": is_hidden or given.get("masked", False),
        "hidden": is_hidden,
        "protected": given.get("protected", False),
        "raw": given.get("raw", False),
        "environment_scope": given.get("environment_scope", "*"),
        "description": given.get("description"),
    }
    _check_variable(call, row)
    return Answer(_show_variable(call.gitlab.tables.variables.add(row)), 201)


def variable_edit(call: Call) -> Any:
    """PUT /projects/:id/variables/:key."""
    row = _variable(call)
    names = (
        "value",
        "variable_type",
        "masked",
        "protected",
        "raw",
        "environment_scope",
        "description",
    )
    changed = {**row, **call.given(*names)}
    _check_variable(call, changed)
    return _show_variable(call.gitlab.tables.variables.save(changed))


def variable_delete(call: Call) -> Any:
    """DELETE /projects/:id/variables/:key."""
    call.gitlab.tables.variables.remove(_variable(call)["id"])
    return NO_CONTENT


def _show_deploy_token(row: Document, **more: Any) -> dict[str, Any]:
    kept = ("id", "name", "username", "expires_at", "scopes", "revoked")
    end = row["expires_at"]
    return {**{key: row[key] for key in kept}, "expired": bool(end and end <= stamp()), **more}


def deploy_tokens(call: Call) -> Any:
    """GET /projects/:id/deploy_tokens."""
    project = call.project(access.MAINTAINER)
    rows = call.gitlab.tables.deploy_tokens.where(project_id=project["id"])
    if call.params.get("active"):
        rows = [row for row in rows if not row["revoked"]]
    return [_show_deploy_token(row) for row in rows]


def _deploy_token(call: Call) -> Document:
    project = call.project(access.MAINTAINER)
    row = call.gitlab.tables.deploy_tokens.get(call.number("token"))
    if row is None or row["project_id"] != project["id"]:
        raise Missing("DeployToken")
    return row


def deploy_token_get(call: Call) -> Any:
    """GET /projects/:id/deploy_tokens/:token_id."""
    return _show_deploy_token(_deploy_token(call))


def deploy_token_create(call: Call) -> Any:
    """POST /projects/:id/deploy_tokens."""
    project, given = call.project(access.MAINTAINER), call.params
    if not given["scopes"] or set(given["scopes"]) - set(DEPLOY_SCOPES):
        raise ParameterErrors(["scopes does not have a valid value"])
    end = given.get("expires_at")
    if end is not None and end <= now().date().isoformat():
        raise BadRequest("Expires at can't be in the past")
    value = f"gldt-{secrets.token_urlsafe(20)}"
    row = call.gitlab.tables.deploy_tokens.add(
        {
            "project_id": project["id"],
            "name": given["name"],
            "username": given.get("username") or "",
            "scopes": given["scopes"],
            "expires_at": end,
            "revoked": False,
            "digest": access.digest(value),
            "created_at": stamp(),
        }
    )
    if not row["username"]:
        named = {**row, "username": f"gitlab+deploy-token-{row['id']}"}
        row = call.gitlab.tables.deploy_tokens.save(named)
    return Answer(_show_deploy_token(row, token=value), 201)


def deploy_token_delete(call: Call) -> Any:
    """DELETE /projects/:id/deploy_tokens/:token_id."""
    call.gitlab.tables.deploy_tokens.remove(_deploy_token(call)["id"])
    return NO_CONTENT
