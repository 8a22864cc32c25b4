"""Answers about repositories, artifacts and tags."""

from __future__ import annotations

from typing import Any

from lab.harbor.calls import Call, Reply, page_of
from lab.harbor.exceptions import BadRequest, NotSimulated

API = "/api/v2.0"


def _name(call: Call) -> str:
    return f"{call.names['project']}/{call.names['repository']}"


def _tags(artifact: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": entry["id"],
            "name": name,
            "artifact_id": artifact["id"],
            "push_time": entry["push_time"],
            "immutable": False,
        }
        for name, entry in sorted(artifact["tags"].items())
    ]


def _shown(artifact: dict[str, Any]) -> dict[str, Any]:
    kept = ("id", "type", "digest", "media_type", "manifest_media_type", "size", "project_id")
    times = ("push_time", "pull_time")
    return {key: artifact[key] for key in (*kept, *times)} | {
        "repository_name": artifact["repository"],
        "tags": _tags(artifact) or None,
        "references": [{"child_digest": digest} for digest in artifact["children"]] or None,
    }


async def repositories(call: Call) -> Reply:
    """GET /projects/{project}/repositories."""
    project = call.harbor.project_of(call, "repository", "list")
    await call.harbor.settle_pushes()
    held = call.harbor.artifacts
    found = [
        each | {"artifact_count": len(held.of(each["name"]))}
        for each in held.repositories(project["project_id"])
    ]
    return page_of(call, found)


async def repository(call: Call) -> Reply:
    """GET /projects/{project}/repositories/{repository}."""
    call.harbor.project_of(call, "repository", "read")
    held = call.harbor.artifacts
    found = held.repository(_name(call))
    return Reply(found | {"artifact_count": len(held.of(found["name"]))})


async def repository_delete(call: Call) -> Reply:
    """DELETE /projects/{project}/repositories/{repository}."""
    call.harbor.project_of(call, "repository", "delete")
    await call.harbor.settle_pushes()
    name = call.harbor.artifacts.repository(_name(call))["name"]
    for artifact in call.harbor.artifacts.of(name):
        await call.harbor.delete_artifact(artifact)
    call.harbor.artifacts.delete_repository(name)
    return Reply()


async def artifacts(call: Call) -> Reply:
    """GET /projects/{project}/repositories/{repository}/artifacts."""
    call.harbor.project_of(call, "artifact", "list")
    if call.query.get("q"):
        raise NotSimulated("q of artifacts")
    await call.harbor.settle_pushes()
    name = call.harbor.artifacts.repository(_name(call))["name"]
    return page_of(call, [_shown(each) for each in call.harbor.artifacts.of(name)])


def _artifact(call: Call, resource: str, action: str) -> dict[str, Any]:
    call.harbor.project_of(call, resource, action)
    return call.harbor.artifacts.get(_name(call), call.names["reference"])


async def artifact(call: Call) -> Reply:
    """GET .../artifacts/{reference}."""
    return Reply(_shown(_artifact(call, "artifact", "read")))


async def artifact_delete(call: Call) -> Reply:
    """DELETE .../artifacts/{reference}."""
    await call.harbor.delete_artifact(_artifact(call, "artifact", "delete"))
    return Reply()


async def tags(call: Call) -> Reply:
    """GET .../artifacts/{reference}/tags."""
    return page_of(call, _tags(_artifact(call, "tag", "list")))


async def tag_create(call: Call) -> Reply:
    """POST .../artifacts/{reference}/tags."""
    found, name = _artifact(call, "tag", "create"), str(call.object().get("name") or "")
    if not name:
        raise BadRequest("tag name is required")
    call.harbor.artifacts.tag(found, name)
    return Reply(status=201, location=f"{call.path}/{name}")


async def tag_delete(call: Call) -> Reply:
    """DELETE .../artifacts/{reference}/tags/{tag}."""
    call.harbor.artifacts.untag(_artifact(call, "tag", "delete"), call.names["tag"])
    return Reply()
