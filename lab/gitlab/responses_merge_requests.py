"""Merge requests, as the API shows and changes them."""

from __future__ import annotations

from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_merge_requests as models
from lab.gitlab import models_projects as projects
from lab.gitlab import models_pushes as pushes
from lab.gitlab.calls import NO_CONTENT, Call
from lab.gitlab.exceptions import BadRequest, Missing, Unauthorized
from lab.gitlab.instance import public_user, stamp
from lab.gitlab.responses_repository import show_commit, show_diff
from lab.hypervisor.store import Document


def _user(call: Call, identifier: int | None) -> dict[str, Any] | None:
    user = call.gitlab.tables.users.get(identifier or 0)
    return public_user(call.gitlab, user) if user else None


def show(call: Call, project: Document, request: Document) -> dict[str, Any]:
    """A merge request."""
    gitlab = call.gitlab
    path = projects.project_path(gitlab, project)
    kept = ("id", "iid", "project_id", "title", "description", "state", "created_at", "updated_at",
            "merged_at", "closed_at", "target_branch", "source_branch", "draft", "sha",
            "merge_status", "detailed_merge_status", "merge_commit_sha", "squash_commit_sha",
            "squash", "should_remove_source_branch")  # fmt: skip
    notes = gitlab.tables.notes.where(noteable_type="MergeRequest", noteable_id=request["id"])
    merger = _user(call, request["merge_user_id"])
    return {
        **{key: request[key] for key in kept},
        "merged_by": merger,
        "merge_user": merger,
        "closed_by": None,
        "user_notes_count": len(notes),
        "upvotes": 0,
        "downvotes": 0,
        "author": _user(call, request["author_id"]),
        "assignees": [],
        "assignee": None,
        "reviewers": [],
        "source_project_id": project["id"],
        "target_project_id": project["id"],
        "labels": [],
        "work_in_progress": request["draft"],
        "milestone": None,
        "merge_when_pipeline_succeeds": False,
        "force_remove_source_branch": request["should_remove_source_branch"],
        "reference": f"!{request['iid']}",
        "references": {
            "short": f"!{request['iid']}",
            "relative": f"!{request['iid']}",
            "full": f"{path}!{request['iid']}",
        },
        "web_url": f"{projects.web_url(gitlab, project)}/-/merge_requests/{request['iid']}",
        "has_conflicts": request["detailed_merge_status"] == "conflict",
        "blocking_discussions_resolved": True,
    }


def _found(call: Call, level: int = access.REPORTER) -> tuple[Document, Document]:
    project = call.project(level)
    request = call.gitlab.tables.merge_requests.first(
        project_id=project["id"], iid=call.number("iid")
    )
    if request is None:
        raise Missing
    return project, models.refresh(call.gitlab, project, request)


def listing(call: Call) -> Any:
    """GET /projects/:id/merge_requests, newest first."""
    project, given = call.project(access.REPORTER), call.params
    rows = call.gitlab.tables.merge_requests.where(project_id=project["id"])
    if given.get("state", "all") != "all":
        rows = [row for row in rows if row["state"] == given["state"]]
    for name in ("source_branch", "target_branch"):
        if name in given:
            rows = [row for row in rows if row[name] == given[name]]
    if "iids" in given:
        wanted = {int(iid) for iid in given["iids"]}
        rows = [row for row in rows if row["iid"] in wanted]
    if "search" in given:
        word = given["search"].lower()
        rows = [row for row in rows if word in f"{row['title']} {row['description']}".lower()]
    for name, is_late in (("updated_after", True), ("updated_before", False)):
        if name in given:
            rows = [r for r in rows if (r["updated_at"] > given[name]) is is_late]
    key = given.get("order_by", "created_at")
    key = key if key in ("created_at", "updated_at", "title", "merged_at") else "created_at"
    rows.sort(key=lambda r: (r[key] or "", r["id"]), reverse=given.get("sort", "desc") == "desc")
    return [show(call, project, models.refresh(call.gitlab, project, row)) for row in rows]


def of_commit(call: Call) -> Any:
    """GET /projects/:id/repository/commits/:sha/merge_requests: those that brought the commit."""
    project = call.project(access.REPORTER)
    repository = call.gitlab.repository(project)
    sha = repository.resolve(call.path["sha"])
    if sha is None:
        raise Missing("Commit")
    found = []
    for row in call.gitlab.tables.merge_requests.where(project_id=project["id"]):
        if sha in (row["merge_commit_sha"], row["squash_commit_sha"], row["sha"]):
            found.append(row)
        elif row["sha"]:
            base = models.base_sha(call.gitlab, project, row)
            inside = repository.log(row["sha"], more=[f"^{base}"] if base else [])
            if any(commit.sha == sha for commit in inside):
                found.append(row)
    return [show(call, project, row) for row in found]


def get(call: Call) -> Any:
    """GET /projects/:id/merge_requests/:iid."""
    project, request = _found(call)
    base = models.base_sha(call.gitlab, project, request)
    runs = call.gitlab.tables.pipelines.where(project_id=project["id"], sha=request["sha"])
    last = runs[-1] if runs else None
    head = None if last is None else {
        key: last[key] for key in ("id", "iid", "project_id", "sha", "ref", "status", "source")
    }  # fmt: skip
    return {
        **show(call, project, request),
        "diff_refs": {"base_sha": base, "head_sha": request["sha"], "start_sha": base},
        "changes_count": str(len(_diffs(call, project, request))) if request["sha"] else None,
        "head_pipeline": head,
        "pipeline": head,
        "merge_error": None,
        "user": {"can_merge": _may_merge(call, project, request)},
    }


def create(call: Call) -> Any:
    """POST /projects/:id/merge_requests."""
    project = call.project(access.DEVELOPER)
    if call.params.get("target_project_id", project["id"]) != project["id"]:
        raise BadRequest("Merge requests between projects are not simulated by the lab's GitLab")
    return show(call, project, models.create(call.gitlab, project, call.user, call.params))


def edit(call: Call) -> Any:
    """PUT /projects/:id/merge_requests/:iid."""
    project, request = _found(call, access.DEVELOPER)
    given = call.given("title", "description", "target_branch", "squash")
    if "remove_source_branch" in call.params:
        given["should_remove_source_branch"] = call.params["remove_source_branch"]
    changes = {
        key: {"previous": request[key], "current": value}
        for key, value in given.items()
        if request[key] != value
    }
    request = {**request, **given, "updated_at": stamp()}
    request["draft"] = request["title"].lower().startswith(("draft:", "[draft]", "(draft)"))
    action = "update"
    match call.params.get("state_event"):
        case "close" if request["state"] == "opened":
            request |= {"state": "closed", "closed_at": stamp()}
            action = "close"
        case "reopen" if request["state"] == "closed":
            request |= {"state": "opened", "closed_at": None}
            action = "reopen"
    request = call.gitlab.tables.merge_requests.save(request)
    request = models.refresh(call.gitlab, project, request)
    models.fire(call.gitlab, project, call.user, request, action, changes)
    return show(call, project, request)


def delete(call: Call) -> Any:
    """DELETE /projects/:id/merge_requests/:iid, for owners."""
    _, request = _found(call, access.OWNER)
    for note in call.gitlab.tables.notes.where(noteable_id=request["id"]):
        call.gitlab.tables.notes.remove(note["id"])
    call.gitlab.tables.merge_requests.remove(request["id"])
    return NO_CONTENT


def _may_merge(call: Call, project: Document, request: Document) -> bool:
    level = access.project_level(call.gitlab, call.user, project)
    rules = pushes.protection(call.gitlab, project, request["target_branch"])
    if not rules:
        return level >= access.DEVELOPER
    allowed = [rule[kind] for rule in rules for kind in ("merge_access_level", "push_access_level")]
    return any(needed and level >= needed for needed in allowed)


def merge(call: Call) -> Any:
    """PUT /projects/:id/merge_requests/:iid/merge."""
    project, request = _found(call, access.REPORTER)
    if not _may_merge(call, project, request):
        raise Unauthorized  # which is what GitLab answers here
    merged = models.merge(call.gitlab, project, call.user, request, call.params)
    return show(call, project, merged)


def _diffs(call: Call, project: Document, request: Document) -> list[dict[str, Any]]:
    base = models.base_sha(call.gitlab, project, request)
    repository = call.gitlab.repository(project)
    return [show_diff(change) for change in repository.differences(base, request["sha"])]


def changes(call: Call) -> Any:
    """GET /projects/:id/merge_requests/:iid/changes."""
    project, request = _found(call)
    found = _diffs(call, project, request)
    return {**get(call), "changes": found, "overflow": False}


def diffs(call: Call) -> Any:
    """GET /projects/:id/merge_requests/:iid/diffs."""
    return _diffs(call, *_found(call))


def commits(call: Call) -> Any:
    """GET /projects/:id/merge_requests/:iid/commits, newest first."""
    project, request = _found(call)
    base = models.base_sha(call.gitlab, project, request)
    found = call.gitlab.repository(project).log(request["sha"], more=[f"^{base}"] if base else [])
    return [show_commit(call, project, commit) for commit in found]


def pipelines(call: Call) -> Any:
    """GET /projects/:id/merge_requests/:iid/pipelines."""
    project, request = _found(call)
    rows = call.gitlab.tables.pipelines.where(project_id=project["id"])
    wanted = [
        row
        for row in rows
        if row["merge_request_id"] == request["id"] or row["sha"] == request["sha"]
    ]
    kept = ("id", "iid", "project_id", "sha", "ref", "status", "source", "created_at", "updated_at")
    return [{key: row[key] for key in kept} for row in reversed(wanted)]
