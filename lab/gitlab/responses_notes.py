"""Comments of commits, statuses of commits, and notes of merge requests."""

from __future__ import annotations

import functools
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab import models_hooks as hooks
from lab.gitlab import payloads
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Missing
from lab.gitlab.instance import public_user, stamp
from lab.hypervisor.store import Document

STATES = ("pending", "running", "success", "failed", "canceled", "skipped")


def _commit(call: Call, level: int) -> tuple[Document, str]:
    project = call.project(level)
    sha = call.gitlab.repository(project).resolve(call.path["sha"])
    if sha is None:
        raise Missing("Commit")
    return project, sha


def _author(call: Call, row: Document) -> dict[str, Any]:
    user = call.gitlab.tables.users.get(row["author_id"])
    return public_user(call.gitlab, user) if user else {}


def add_note(
    call: Call,
    project: Document,
    body: str,
    *,
    sha: str | None = None,
    request: Document | None = None,
) -> Document:
    """Write a note and tell it."""
    written = call.gitlab.tables.notes.add(
        {
            "project_id": project["id"],
            "noteable_type": "Commit" if request is None else "MergeRequest",
            "noteable_id": None if request is None else request["id"],
            "commit_id": sha,
            "author_id": call.user["id"],
            "body": body,
            "created_at": stamp(),
            "updated_at": stamp(),
        }
    )
    if request is not None:
        part = payloads.merge_request_part(call.gitlab, project, request)
        target = {"merge_request": part}
    else:
        commit = call.gitlab.repository(project).commit(str(sha))
        target = {"commit": payloads.commit_part(call.gitlab, project, commit)}
    make = functools.partial(payloads.note, call.gitlab, project, call.user, written, target)
    hooks.fire(call.gitlab, project, "note_events", make)
    return written


def _show_comment(call: Call, row: Document) -> dict[str, Any]:
    return {
        "note": row["body"],
        "path": None,
        "line": None,
        "line_type": None,
        "author": _author(call, row),
        "created_at": row["created_at"],
    }


def comments(call: Call) -> Any:
    """GET /projects/:id/repository/commits/:sha/comments."""
    project, sha = _commit(call, access.REPORTER)
    rows = call.gitlab.tables.notes.where(project_id=project["id"], commit_id=sha)
    return [_show_comment(call, row) for row in rows]


def comment_create(call: Call) -> Any:
    """POST /projects/:id/repository/commits/:sha/comments."""
    project, sha = _commit(call, access.REPORTER)
    return _show_comment(call, add_note(call, project, call.params["note"], sha=sha))


def _show_status(call: Call, row: Document) -> dict[str, Any]:
    kept = ("id", "sha", "ref", "status", "name", "target_url", "description", "created_at",
            "started_at", "finished_at", "allow_failure", "coverage")  # fmt: skip
    return {**{key: row[key] for key in kept}, "author": _author(call, row)}


def statuses(call: Call) -> Any:
    """GET /projects/:id/repository/commits/:sha/statuses."""
    project, sha = _commit(call, access.REPORTER)
    rows = call.gitlab.tables.statuses.where(project_id=project["id"], sha=sha)
    if "name" in call.params:
        rows = [row for row in rows if row["name"] == call.params["name"]]
    if not call.params.get("all"):
        rows = list({row["name"]: row for row in rows}.values())
    return [_show_status(call, row) for row in rows]


def status_create(call: Call) -> Any:
    """POST /projects/:id/statuses/:sha."""
    project, sha = _commit(call, access.DEVELOPER)
    given = call.params
    if given["state"] not in STATES:
        raise BadRequest("state does not have a valid value")
    name = given.get("name") or given.get("context") or "default"
    row = {
        "project_id": project["id"],
        "sha": sha,
        "ref": given.get("ref") or project["default_branch"],
        "status": given["state"],
        "name": name,
        "target_url": given.get("target_url"),
        "description": given.get("description"),
        "coverage": None,
        "allow_failure": False,
        "author_id": call.user["id"],
        "created_at": stamp(),
        "started_at": stamp() if given["state"] == "running" else None,
        "finished_at": stamp() if given["state"] in ("success", "failed", "canceled") else None,
    }
    held = call.gitlab.tables.statuses.first(project_id=project["id"], sha=sha, name=name)
    if held is None or held["status"] in ("success", "failed", "canceled"):
        return _show_status(call, call.gitlab.tables.statuses.add(row))
    if held["status"] == given["state"] == "running":
        reason = 'Status cannot transition via "run"'
        raise BadRequest(
            f"Cannot transition status via :run from :{held['status']} (Reason(s): {reason})"
        )
    kept = {"created_at": held["created_at"], "id": held["id"]}
    return _show_status(call, call.gitlab.tables.statuses.save({**row, **kept}))


def _request(call: Call) -> tuple[Document, Document]:
    project = call.project(access.REPORTER)
    found = call.gitlab.tables.merge_requests.first(
        project_id=project["id"], iid=call.number("iid")
    )
    if found is None:
        raise Missing
    return project, found


def _show_note(call: Call, row: Document, request: Document) -> dict[str, Any]:
    return {
        "id": row["id"],
        "type": None,
        "body": row["body"],
        "author": _author(call, row),
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "system": False,
        "noteable_id": row["noteable_id"],
        "noteable_type": row["noteable_type"],
        "noteable_iid": request["iid"],
        "project_id": row["project_id"],
        "resolvable": False,
        "confidential": False,
        "internal": False,
    }


def notes(call: Call) -> Any:
    """GET /projects/:id/merge_requests/:iid/notes, newest first unless asked otherwise."""
    _, request = _request(call)
    rows = call.gitlab.tables.notes.where(noteable_type="MergeRequest", noteable_id=request["id"])
    key = call.params.get("order_by", "created_at")
    rows.sort(
        key=lambda row: (row["updated_at" if key == "updated_at" else "created_at"], row["id"])
    )
    if call.params.get("sort", "desc") == "desc":
        rows.reverse()
    return [_show_note(call, row, request) for row in rows]


def note_create(call: Call) -> Any:
    """POST /projects/:id/merge_requests/:iid/notes."""
    project, request = _request(call)
    written = add_note(call, project, call.params["body"], request=request)
    return Answer(_show_note(call, written, request), 201)


def _note(call: Call, *, is_own: bool) -> tuple[Document, Document]:
    project, request = _request(call)
    row = call.gitlab.tables.notes.get(call.number("note"))
    if row is None or row["noteable_id"] != request["id"]:
        raise Missing("Note")
    if is_own and row["author_id"] != call.user["id"]:
        level = access.project_level(call.gitlab, call.user, project)
        access.require_level(level, access.MAINTAINER)
    return row, request


def note_get(call: Call) -> Any:
    """GET /projects/:id/merge_requests/:iid/notes/:note_id."""
    return _show_note(call, *_note(call, is_own=False))


def note_edit(call: Call) -> Any:
    """PUT /projects/:id/merge_requests/:iid/notes/:note_id."""
    row, request = _note(call, is_own=True)
    changed = {**row, "body": call.params["body"], "updated_at": stamp()}
    return _show_note(call, call.gitlab.tables.notes.save(changed), request)


def note_delete(call: Call) -> Any:
    """DELETE /projects/:id/merge_requests/:iid/notes/:note_id."""
    call.gitlab.tables.notes.remove(_note(call, is_own=True)[0]["id"])
    return NO_CONTENT
