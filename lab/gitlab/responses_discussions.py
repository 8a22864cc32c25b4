"""Discussions of commits: the only comments on a commit that can be changed or taken away.

A comment that was made by the older way, without a discussion, is shown as one of its own.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Missing
from lab.gitlab.instance import public_user, stamp
from lab.gitlab.responses_notes import add_note
from lab.hypervisor.store import Document


def _commit(call: Call) -> tuple[Document, str]:
    project = call.project(access.REPORTER)
    sha = call.gitlab.repository(project).resolve(call.path["sha"])
    if sha is None:
        raise Missing("Commit")
    return project, sha


def _identifier(row: Document) -> str:
    return hashlib.sha1(f"discussion-{row['id']}".encode(), usedforsecurity=False).hexdigest()


def _show_note(call: Call, row: Document) -> dict[str, Any]:
    author = call.gitlab.tables.users.get(row["author_id"])
    return {
        "id": row["id"],
        "type": "DiscussionNote",
        "body": row["body"],
        "author": public_user(call.gitlab, author) if author else {},
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "system": False,
        "noteable_id": None,
        "noteable_type": "Commit",
        "commit_id": row["commit_id"],
        "project_id": row["project_id"],
        "resolvable": False,
        "confidential": False,
        "internal": False,
    }


def _show(call: Call, row: Document) -> dict[str, Any]:
    return {"id": _identifier(row), "individual_note": False, "notes": [_show_note(call, row)]}


def listing(call: Call) -> Any:
    """GET /projects/:id/repository/commits/:sha/discussions."""
    project, sha = _commit(call)
    rows = call.gitlab.tables.notes.where(project_id=project["id"], commit_id=sha)
    return [_show(call, row) for row in rows]


def create(call: Call) -> Any:
    """POST /projects/:id/repository/commits/:sha/discussions."""
    project, sha = _commit(call)
    if not call.params["body"].strip():
        raise BadRequest('Note {:note=>["can\'t be blank"]}')
    return Answer(_show(call, add_note(call, project, call.params["body"].rstrip(), sha=sha)), 201)


def _note(call: Call, *, is_changed: bool) -> Document:
    project, sha = _commit(call)
    row = call.gitlab.tables.notes.get(call.number("note", "Note"))
    if row is None or (row["project_id"], row["commit_id"]) != (project["id"], sha):
        raise Missing("Note")
    if _identifier(row) != call.path["discussion"]:
        raise Missing("Discussion")
    if is_changed and row["author_id"] != call.user["id"]:
        level = access.project_level(call.gitlab, call.user, project)
        access.require_level(level, access.MAINTAINER)
    return row


def note_get(call: Call) -> Any:
    """GET .../discussions/:discussion_id/notes/:note_id."""
    return _show_note(call, _note(call, is_changed=False))


def note_edit(call: Call) -> Any:
    """PUT .../discussions/:discussion_id/notes/:note_id."""
    row = _note(call, is_changed=True)
    changed = {**row, "body": call.params["body"].rstrip(), "updated_at": stamp()}
    return _show_note(call, call.gitlab.tables.notes.save(changed))


def note_delete(call: Call) -> Any:
    """DELETE .../discussions/:discussion_id/notes/:note_id."""
    call.gitlab.tables.notes.remove(_note(call, is_changed=True)["id"])
    return NO_CONTENT
