"""Answers about Harbor itself: health, version, the own user."""

from __future__ import annotations

import httpx

from lab.harbor.calls import Call, Reply
from lab.harbor.exceptions import BadGateway, PreconditionFailed
from lab.harbor.harbor import VERSION
from lab.harbor.models_projects import now


async def health(call: Call) -> Reply:
    """GET /health: the registry is asked, the rest lives as long as this process."""
    try:
        answer: httpx.Response | None = await call.harbor.behind("GET", "/v2/")
    except BadGateway:
        answer = None
    is_up = answer is not None and answer.status_code == 200
    states = {"core": True, "database": True, "registry": is_up}
    components = [
        {"name": name, "status": "healthy"}
        if state
        else {"name": name, "status": "unhealthy", "error": "the registry does not answer"}
        for name, state in states.items()
    ]
    return Reply({"status": "healthy" if is_up else "unhealthy", "components": components})


async def ping(call: Call) -> Reply:
    """GET /ping."""
    del call
    return Reply("Pong")


async def system_info(call: Call) -> Reply:
    """GET /systeminfo: more for those who are logged in."""
    found: dict[str, object] = {
        "auth_mode": "db_auth",
        "banner_message": "",
        "harbor_version": VERSION,
        "self_registration": False,
    }
    if call.caller.is_authenticated:
        url = call.harbor.settings.external_url
        found |= {
            "registry_url": url.partition("://")[2],
            "external_url": url,
            "has_ca_root": True,
            "project_creation_restriction": "adminonly",
            "read_only": False,
            "registry_storage_provider_name": "filesystem",
            "current_time": now(),
        }
    return Reply(found)


async def current_user(call: Call) -> Reply:
    """GET /users/current; a robot is no user."""
    call.require_login()
    if call.caller.is_robot:
        raise PreconditionFailed("get user info is not supported for a robot account")
    return Reply(
        {
            "user_id": call.caller.user_id,
            "username": call.caller.name,
            "realname": "lab administrator",
            "email": "admin@lab.infraflows.internal",
            "sysadmin_flag": call.caller.is_administrator,
            "admin_role_in_auth": False,
            "comment": "",
        }
    )
