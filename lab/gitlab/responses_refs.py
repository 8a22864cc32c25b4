"""Branches and tags, as the API shows and makes them."""

from __future__ import annotations

import fnmatch
import time
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_projects as projects
from lab.gitlab import models_pushes as pushes
from lab.gitlab.calls import NO_CONTENT, Call
from lab.gitlab.exceptions import BadRequest, Forbidden, Missing
from lab.gitlab.repository import ZERO, GitError, Repository
from lab.gitlab.responses_repository import show_commit
from lab.hypervisor.store import Document


def _open(call: Call, level: int = access.REPORTER) -> tuple[Document, Repository]:
    project = call.project(level)
    return project, call.gitlab.repository(project)


def show_branch(call: Call, project: Document, name: str, sha: str) -> dict[str, Any]:
    """A branch."""
    rules = pushes.protection(call.gitlab, project, name)
    level = access.project_level(call.gitlab, call.user, project)
    return {
        "name": name,
        "commit": show_commit(call, project, call.gitlab.repository(project).commit(sha)),
        "merged": False,
        "protected": bool(rules),
        "developers_can_push": any(rule["push_access_level"] == access.DEVELOPER for rule in rules),
        "developers_can_merge": any(
            rule["merge_access_level"] == access.DEVELOPER for rule in rules
        ),
        "can_push": level >= access.DEVELOPER
        and pushes.may_push(call.gitlab, call.user, project, name),
        "default": name == project["default_branch"],
        "web_url": f"{projects.web_url(call.gitlab, project)}/-/tree/{name}",
    }


def branches(call: Call) -> Any:
    """GET /projects/:id/repository/branches."""
    project, repository = _open(call)
    word = call.params.get("search", "")
    return [
        show_branch(call, project, name, sha)
        for name, sha in sorted(repository.references("refs/heads").items())
        if word in name
    ]


def branch_get(call: Call) -> Any:
    """GET and HEAD /projects/:id/repository/branches/:branch."""
    project, repository = _open(call)
    sha = repository.reference(f"refs/heads/{call.path['branch']}")
    if sha is None:
        raise Missing("Branch")
    return show_branch(call, project, call.path["branch"], sha)


def branch_create(call: Call) -> Any:
    """POST /projects/:id/repository/branches."""
    project, repository = _open(call, access.DEVELOPER)
    name = call.params["branch"]
    if repository.reference(f"refs/heads/{name}") is not None:
        raise BadRequest("Branch already exists")
    try:
        repository.run("check-ref-format", "--branch", name)
    except GitError as error:
        raise BadRequest("Branch name is invalid") from error
    sha = repository.resolve(call.params["ref"])
    if sha is None:
        raise BadRequest("Invalid reference name: " + call.params["ref"])
    if not pushes.may_push(call.gitlab, call.user, project, name):
        raise Forbidden
    pushes.push(call.gitlab, project, call.user, (ZERO, sha, f"refs/heads/{name}"))
    return show_branch(call, project, name, sha)


def branch_delete(call: Call) -> Any:
    """DELETE /projects/:id/repository/branches/:branch."""
    project, repository = _open(call, access.DEVELOPER)
    name = call.path["branch"]
    sha = repository.reference(f"refs/heads/{name}")
    if sha is None:
        raise Missing("Branch")
    if name == project["default_branch"]:
        raise BadRequest("Cannot remove HEAD branch")
    if pushes.protection(call.gitlab, project, name):
        raise Forbidden("Branch is protected")
    pushes.push(call.gitlab, project, call.user, (sha, ZERO, f"refs/heads/{name}"))
    return NO_CONTENT


def show_tag(call: Call, project: Document, name: str, sha: str) -> dict[str, Any]:
    """A tag."""
    repository = call.gitlab.repository(project)
    return {
        "name": name,
        "message": repository.tag_message(name),
        "target": repository.reference(f"refs/tags/{name}"),
        "commit": show_commit(call, project, repository.commit(sha)),
        "release": None,
        "protected": pushes.is_protected_ref(call.gitlab, project, f"refs/tags/{name}"),
        "created_at": None,
    }


def tags(call: Call) -> Any:
    """GET /projects/:id/repository/tags."""
    project, repository = _open(call)
    word = call.params.get("search", "")
    found = repository.references("refs/tags").items()
    return [
        show_tag(call, project, name, sha)
        for name, sha in sorted(found, reverse=True)
        if word in name
    ]


def _tag(call: Call, level: int) -> tuple[Document, str, str]:
    project, repository = _open(call, level)
    name = call.path["tag"]
    sha = repository.references("refs/tags").get(name)
    if sha is None:
        raise Missing("Tag")
    return project, name, sha


def tag_get(call: Call) -> Any:
    """GET /projects/:id/repository/tags/:tag."""
    return show_tag(call, *_tag(call, access.REPORTER))


def tag_create(call: Call) -> Any:
    """POST /projects/:id/repository/tags."""
    project, repository = _open(call, access.DEVELOPER)
    name = call.params["tag_name"]
    if repository.reference(f"refs/tags/{name}") is not None:
        raise BadRequest(f"Tag {name} already exists")
    sha = repository.resolve(call.params["ref"])
    if sha is None:
        raise BadRequest(f"Target {call.params['ref']} is invalid")
    _require_tag_right(call, project, name)
    target = sha
    if message := call.params.get("message"):
        target = _annotated(call, repository, name, sha, message)
    pushes.push(call.gitlab, project, call.user, (ZERO, target, f"refs/tags/{name}"))
    return show_tag(call, project, name, sha)


def _annotated(call: Call, repository: Repository, name: str, sha: str, message: str) -> str:
    tagger = f"{call.user['name']} <{call.user['email']}> {int(time.time())} +0000"
    text = f"object {sha}\ntype commit\ntag {name}\ntagger {tagger}\n\n{message}\n"
    return repository.run("mktag", given=text.encode()).decode().strip()


def _require_tag_right(call: Call, project: Document, name: str) -> None:
    level = access.project_level(call.gitlab, call.user, project)
    for rule in call.gitlab.tables.protected_tags.where(project_id=project["id"]):
        if fnmatch.fnmatchcase(name, rule["name"]):
            needed = rule["create_access_level"]
            if not needed or level < needed:
                raise BadRequest("You are not allowed to create this tag as it is protected.")


def tag_delete(call: Call) -> Any:
    """DELETE /projects/:id/repository/tags/:tag."""
    project, name, _ = _tag(call, access.DEVELOPER)
    if pushes.is_protected_ref(call.gitlab, project, f"refs/tags/{name}"):
        access.require_level(
            access.project_level(call.gitlab, call.user, project), access.MAINTAINER
        )
    target = call.gitlab.repository(project).reference(f"refs/tags/{name}") or ZERO
    pushes.push(call.gitlab, project, call.user, (target, ZERO, f"refs/tags/{name}"))
    return NO_CONTENT
