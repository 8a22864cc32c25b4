"""Answers about API tokens and the access control list.

Why: a token that is rotated is made, given its rights, and removed by these routes alone. Promises
that a secret is told once, by the answer to the request that made it.
"""

from __future__ import annotations

from typing import Any

from lab.hypervisor.calls import Call
from lab.hypervisor.exceptions import ApiError, NotSimulated, ParameterError
from lab.hypervisor.parameters import split_list


def _names(call: Call) -> tuple[str, str]:
    return call.path["userid"], call.path["tokenid"]


def _details(call: Call) -> dict[str, Any]:
    if call.params.get("privsep", 1) == 0:
        raise NotSimulated("Parameter 'privsep' with the value 0")
    return {name: call.params[name] for name in ("comment", "expire") if name in call.params}


async def token_list(call: Call) -> Any:
    """GET /access/users/{userid}/token."""
    return call.hypervisor.access.tokens_of(call.path["userid"])


async def token_get(call: Call) -> Any:
    """GET /access/users/{userid}/token/{tokenid}."""
    return call.hypervisor.access.information(*_names(call))


async def token_create(call: Call) -> Any:
    """POST /access/users/{userid}/token/{tokenid}: tells the secret, this once."""
    user, name = _names(call)
    access = call.hypervisor.access
    secret = access.create(user, name, _details(call))
    return {
        "full-tokenid": f"{user}!{name}",
        "info": access.information(user, name),
        "value": secret,
    }


async def token_update(call: Call) -> Any:
    """PUT /access/users/{userid}/token/{tokenid}."""
    user, name = _names(call)
    details = _details(call)
    for setting in split_list(call.params.get("delete")):
        if setting != "comment":
            raise NotSimulated(f"Deleting the setting '{setting}'")
        details["comment"] = ""
    call.hypervisor.access.change(user, name, details)
    return call.hypervisor.access.information(user, name)


async def token_delete(call: Call) -> Any:
    """DELETE /access/users/{userid}/token/{tokenid}."""
    call.hypervisor.access.remove(*_names(call))


async def acl_get(call: Call) -> Any:
    """GET /access/acl: the entries that the caller might change."""
    entries = call.hypervisor.access.entries()
    return [entry for entry in entries if call.may(entry["path"], "Permissions.Modify")]


async def acl_put(call: Call) -> Any:
    """PUT /access/acl: for tokens."""
    for unsimulated in ("users", "groups"):
        if call.params.get(unsimulated):
            raise NotSimulated(f"Parameter '{unsimulated}'")
    if call.params.get("propagate", 1) == 0:
        raise NotSimulated("Parameter 'propagate' with the value 0")
    path = call.params["path"]
    if not path.startswith("/"):
        raise ParameterError({"path": f"invalid ACL path '{path}'"})
    call.require(path, "Permissions.Modify")
    tokens = split_list(call.params.get("tokens"))
    if not tokens:
        raise ApiError("either users, groups or tokens required")
    for token in tokens:
        call.hypervisor.access.grant(
            token,
            path,
            split_list(call.params["roles"]),
            is_removal=bool(call.params.get("delete")),
        )
