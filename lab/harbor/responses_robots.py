"""Answers about robot accounts."""

from __future__ import annotations

from typing import Any

from lab.harbor.calls import Call, Reply, page_of
from lab.harbor.exceptions import BadRequest, NotFound
from lab.harbor.models_robots import shown

API = "/api/v2.0"


def _place(call: Call, robot: dict[str, Any]) -> str:
    if robot["level"] == "system":
        return "/"
    return str(call.harbor.projects.get(str(robot["project_id"]), "false")["name"])


def _robot(call: Call, action: str) -> dict[str, Any]:
    call.require_login()
    robot = call.harbor.robots.get(call.names["robot"])
    call.harbor.require(call, _place(call, robot), "robot", action)
    return robot


async def listed(call: Call) -> Reply:
    """GET /robots: those of the system, or with `q=Level=project,ProjectID=n` of one project."""
    call.require_login()
    conditions = call.conditions()
    level = conditions.pop("level", "system")
    if level == "project":
        number = conditions.pop("projectid", "")
        if not number.isdigit():
            raise BadRequest("must with project ID when to query project robots")
        project = call.harbor.projects.get(number, "false")
        call.harbor.require(call, project["name"], "robot", "list")
        robots = call.harbor.robots.of(int(number))
    elif level == "system":
        call.harbor.require(call, "/", "robot", "list")
        robots = call.harbor.robots.of(0)
    else:
        raise BadRequest(f"bad request error level input: {level}")
    name = conditions.pop("name", "")
    if conditions:
        raise BadRequest(f"invalid q: no condition {', '.join(conditions)}")
    return page_of(call, [shown(each) for each in robots if _is_named(each, name)])


def _is_named(robot: dict[str, Any], name: str) -> bool:
    base = robot["name"].partition("$")[2].rpartition("+")[2]
    if name.startswith("~"):
        return name[1:] in base
    return not name or base == name


async def create(call: Call) -> Reply:
    """POST /robots: the only answer that tells the secret."""
    call.require_login()
    given = call.object()
    level = given.get("level")
    if level not in ("project", "system"):
        raise BadRequest(f"bad request error level input: {level}")
    project = None
    if level == "project":
        permissions = given.get("permissions") or [{}]
        project = call.harbor.projects.named(str(permissions[0].get("namespace")))
        if project is None:
            raise NotFound(f"project {permissions[0].get('namespace')} not found")
    call.harbor.require(call, project["name"] if project else "/", "robot", "create")
    robot, secret = call.harbor.robots.create(given, project, call.caller.name)
    document = {
        "id": robot["id"],
        "name": robot["name"],
        "secret": secret,
        "creation_time": robot["creation_time"],
        "expires_at": robot["expires_at"],
    }
    return Reply(document, status=201, location=f"{API}/robots/{robot['id']}")


async def read(call: Call) -> Reply:
    """GET /robots/{robot}."""
    return Reply(shown(_robot(call, "read")))


async def update(call: Call) -> Reply:
    """PUT /robots/{robot}."""
    call.harbor.robots.update(_robot(call, "create"), call.object())
    return Reply()


async def refresh(call: Call) -> Reply:
    """PATCH /robots/{robot}: another secret, made here or by the caller."""
    robot = _robot(call, "create")
    secret = call.harbor.robots.refresh(robot, str(call.object().get("secret") or ""))
    return Reply({"secret": secret})


async def delete(call: Call) -> Reply:
    """DELETE /robots/{robot}."""
    call.harbor.robots.delete(_robot(call, "delete"))
    return Reply()
