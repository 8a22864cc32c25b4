"""Answers about projects, their metadata, quotas and labels."""

from __future__ import annotations

from typing import Any

from lab.harbor.calls import Call, Reply, matches, page_of
from lab.harbor.exceptions import (
    BadRequest,
    Forbidden,
    NotFound,
    NotSimulated,
    PreconditionFailed,
    Unprocessable,
)
from lab.harbor.models_projects import checked_limit, checked_metadata

API = "/api/v2.0"
IN_USE = "the project contains repositories, can not be deleted"
_PROJECT_FIELDS = {"project_name", "metadata", "public", "storage_limit", "registry_id"}


def _shown(call: Call, project: dict[str, Any]) -> dict[str, Any]:
    hidden = {"storage_limit"}
    return {key: value for key, value in project.items() if key not in hidden} | {
        "deleted": False,
        "repo_count": len(call.harbor.artifacts.repositories(project["project_id"])),
        "cve_allowlist": {"project_id": project["project_id"], "items": []},
    }


def _only(given: dict[str, Any], known: set[str]) -> None:
    for name, value in given.items():
        if name == "cve_allowlist" or (name == "registry_id" and value is not None):
            raise NotSimulated(f"{name} of a project")
        if name not in known:
            raise Unprocessable(f"{name} in body is a forbidden property")


async def create(call: Call) -> Reply:
    """POST /projects."""
    call.require_login()
    call.harbor.require(call, "/", "project", "create")
    given = dict(call.object())
    _only(given, _PROJECT_FIELDS)
    if given.pop("public", None) is True:
        given["metadata"] = {"public": "true"} | (given.get("metadata") or {})
    if given.get("storage_limit") is not None and not call.caller.is_administrator:
        raise Forbidden
    project = call.harbor.projects.create(given, call.harbor.logins.administrator_name)
    return Reply(status=201, location=f"{API}/projects/{project['project_id']}")


async def listed(call: Call) -> Reply:
    """GET /projects."""
    conditions = call.conditions()
    for name in ("name", "owner"):
        if call.query.get(name):
            conditions[name] = f"~{call.query[name]}" if name == "name" else call.query[name]
    if call.query.get("public"):
        conditions["public"] = call.query["public"]
    found = []
    for project in call.harbor.projects.all():
        is_public = project["metadata"].get("public") == "true"
        is_seen = call.caller.may("/", "project", "list") or is_public
        if not is_seen and not call.caller.may(project["name"], "project", "read"):
            continue
        values = {"name": project["name"], "owner": project["owner_name"], "public": is_public}
        wanted = {k: v.capitalize() if k == "public" else v for k, v in conditions.items()}
        if matches(wanted, values):
            found.append(_shown(call, project))
    return page_of(call, found)


async def exists(call: Call) -> Reply:
    """HEAD /projects?project_name=."""
    call.require_login()
    name = call.query.get("project_name", "")
    if call.harbor.projects.named(name) is None:
        raise NotFound(f"project {name} not found")
    return Reply()


async def read(call: Call) -> Reply:
    """GET /projects/{project}."""
    return Reply(_shown(call, call.harbor.project_of(call, "project", "read")))


async def update(call: Call) -> Reply:
    """PUT /projects/{project}."""
    project = call.harbor.project_of(call, "project", "update")
    given = call.object()
    _only(given, _PROJECT_FIELDS)
    changed: dict[str, Any] = {}
    if given.get("metadata"):
        kept = {key: value for key, value in given["metadata"].items() if value is not None}
        changed["metadata"] = project["metadata"] | checked_metadata(kept)
    if given.get("storage_limit") is not None:
        if not call.caller.is_administrator:
            raise Forbidden
        changed["storage_limit"] = checked_limit(given["storage_limit"])
    call.harbor.projects.change(project, **changed)
    return Reply()


async def delete(call: Call) -> Reply:
    """DELETE /projects/{project}."""
    project = call.harbor.project_of(call, "project", "delete")
    if call.harbor.artifacts.repositories(project["project_id"]):
        raise PreconditionFailed(IN_USE)
    call.harbor.delete_project(project)
    return Reply()


async def deletable(call: Call) -> Reply:
    """GET /projects/{project}/_deletable."""
    project = call.harbor.project_of(call, "project", "delete")
    if call.harbor.artifacts.repositories(project["project_id"]):
        return Reply({"deletable": False, "message": IN_USE})
    return Reply({"deletable": True})


async def summary(call: Call) -> Reply:
    """GET /projects/{project}/summary."""
    project = call.harbor.project_of(call, "project", "read")
    quota = _quota(call, project)
    return Reply(
        {
            "repo_count": len(call.harbor.artifacts.repositories(project["project_id"])),
            "project_admin_count": 1,
            "quota": {"hard": quota["hard"], "used": quota["used"]},
        }
    )


# --- metadata --------------------------------------------------------------------------------


async def metadata(call: Call) -> Reply:
    """GET /projects/{project}/metadatas."""
    return Reply(call.harbor.project_of(call, "metadata", "list")["metadata"])


async def metadata_add(call: Call) -> Reply:
    """POST /projects/{project}/metadatas."""
    project = call.harbor.project_of(call, "metadata", "create")
    given = checked_metadata(call.object())
    if len(given) != 1:
        raise BadRequest("only allow one key/value pair")
    call.harbor.projects.change(project, metadata=project["metadata"] | given)
    return Reply()


def _one(call: Call, action: str) -> tuple[dict[str, Any], str]:
    project, key = call.harbor.project_of(call, "metadata", action), call.names["key"]
    if key not in project["metadata"]:
        raise NotFound(f"metadata {key} not found")
    return project, key


async def metadata_read(call: Call) -> Reply:
    """GET /projects/{project}/metadatas/{key}."""
    project, key = _one(call, "read")
    return Reply({key: project["metadata"][key]})


async def metadata_update(call: Call) -> Reply:
    """PUT /projects/{project}/metadatas/{key}."""
    project, key = _one(call, "update")
    given = checked_metadata(call.object())
    if set(given) != {key}:
        raise BadRequest(f"the key in the body is not {key}")
    call.harbor.projects.change(project, metadata=project["metadata"] | given)
    return Reply()


async def metadata_delete(call: Call) -> Reply:
    """DELETE /projects/{project}/metadatas/{key}."""
    project, key = _one(call, "delete")
    left = {name: value for name, value in project["metadata"].items() if name != key}
    call.harbor.projects.change(project, metadata=left)
    return Reply()


# --- quotas ----------------------------------------------------------------------------------


def _quota(call: Call, project: dict[str, Any]) -> dict[str, Any]:
    number = project["project_id"]
    reference = {"id": number, "name": project["name"], "owner_name": project["owner_name"]}
    return {
        "id": number,
        "ref": reference,
        "hard": {"storage": project["storage_limit"]},
        "used": {"storage": call.harbor.artifacts.used_bytes(number)},
        "creation_time": project["creation_time"],
        "update_time": project["update_time"],
    }


async def quotas(call: Call) -> Reply:
    """GET /quotas."""
    call.harbor.require(call, "/", "quota", "list")
    if call.query.get("reference", "project") != "project":
        raise BadRequest(f"quota reference {call.query['reference']} not supported")
    wanted = call.query.get("reference_id", "")
    found = [
        _quota(call, project)
        for project in call.harbor.projects.all()
        if wanted in ("", str(project["project_id"]))
    ]
    return page_of(call, found)


def _quota_project(call: Call) -> dict[str, Any]:
    text = call.names["quota"]
    try:
        return call.harbor.projects.get(text, "false")
    except NotFound:
        raise NotFound(f"quota {text} not found") from None


async def quota_read(call: Call) -> Reply:
    """GET /quotas/{quota}."""
    call.harbor.require(call, "/", "quota", "read")
    return Reply(_quota(call, _quota_project(call)))


async def quota_update(call: Call) -> Reply:
    """PUT /quotas/{quota}."""
    call.harbor.require(call, "/", "quota", "update")
    project = _quota_project(call)
    hard = call.object().get("hard")
    if not isinstance(hard, dict) or set(hard) != {"storage"}:
        raise BadRequest("hard limit of storage is required")
    call.harbor.projects.change(project, storage_limit=checked_limit(hard["storage"]))
    return Reply()


# --- labels ----------------------------------------------------------------------------------


def _label_project(call: Call, scope: Any, project_id: Any, action: str) -> dict[str, Any]:
    if scope != "p":
        raise NotSimulated(f"a label of scope {scope!r}")
    project = call.harbor.projects.get(str(project_id), "false")
    call.harbor.require(call, project["name"], "label", action)
    return project


async def labels(call: Call) -> Reply:
    """GET /labels."""
    scope, project_id = call.query.get("scope"), call.query.get("project_id", "0")
    project = _label_project(call, scope, project_id, "list")
    name = call.query.get("name", "")
    found = [x for x in call.harbor.labels.of(project["project_id"]) if name in x["name"]]
    return page_of(call, found)


async def label_create(call: Call) -> Reply:
    """POST /labels."""
    given = call.object()
    project = _label_project(call, given.get("scope"), given.get("project_id", 0), "create")
    label = call.harbor.labels.create(given, project["project_id"])
    return Reply(status=201, location=f"{API}/labels/{label['id']}")


async def label_read(call: Call) -> Reply:
    """GET /labels/{label}."""
    label = call.harbor.labels.get(call.names["label"])
    _label_project(call, label["scope"], label["project_id"], "read")
    return Reply(label)


async def label_delete(call: Call) -> Reply:
    """DELETE /labels/{label}."""
    label = call.harbor.labels.get(call.names["label"])
    _label_project(call, label["scope"], label["project_id"], "delete")
    call.harbor.labels.delete(label)
    return Reply()
