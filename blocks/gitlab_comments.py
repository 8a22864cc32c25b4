"""What the product says in GitLab: one comment on a commit or merge request, kept up to date.

Promises that a comment with a marker is there once: it is changed in place, and of two writers that
were at it together the later finds the first's and removes its own. A comment on a commit can
neither be changed nor removed by the commits API, whose comments have no id
(https://gitlab.com/gitlab-org/gitlab/-/work_items/333000); the same note as a discussion can, by
its discussion's and its own id (https://docs.gitlab.com/api/discussions/#commits). The marker is an
HTML comment in the first line, which GitLab does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blocks.gitlab_transport import GitLabTransport
from domain.errors import NotFound

MOST_CHARACTERS = 900_000
"""GitLab's limit of a note is a million characters."""


@dataclass(frozen=True)
class Comment:
    """A comment that was written."""

    note_id: int
    is_changed: bool
    """False when it was there with this text already."""


@dataclass(frozen=True)
class MergeRequest:
    """A merge request as far as its comment depends on it."""

    iid: int
    state: str
    """`opened`, `closed`, `locked` or `merged`."""
    head: str
    """Its newest commit; the target project has it too when a fork is its source."""


class CommentCalls:
    """The part of a session that speaks to people."""

    http: GitLabTransport

    def comment_on_commit(self, project_id: int, commit: str, body: str) -> Comment:
        """Add a comment to a commit; each call adds one."""
        made = self.http.post(
            f"comment on the commit {commit[:12]} of {project_id}",
            _discussions(project_id, commit),
            {"body": body[:MOST_CHARACTERS]},
        )
        return Comment(int(made["notes"][0]["id"]), is_changed=True)

    def upsert_commit_comment(
        self, project_id: int, commit: str, marker: str, body: str
    ) -> Comment:
        """Make the commit have one comment of this marker, with this text."""
        path, text = _discussions(project_id, commit), _marked(marker, body)
        act = f"comment on the commit {commit[:12]} of {project_id}"
        found = self._commit_notes(act, path, marker)
        if not found:
            self.http.post(act, path, {"body": text})
            found = self._commit_notes(act, path, marker)
        (discussion, note), *doubles = found
        for other_discussion, double in doubles:
            self.http.delete(act, f"{path}/{other_discussion}/notes/{double['id']}")
        if note["body"] == text:
            return Comment(int(note["id"]), is_changed=False)
        self.http.put(act, f"{path}/{discussion}/notes/{note['id']}", {"body": text})
        return Comment(int(note["id"]), is_changed=True)

    def delete_commit_comment(self, project_id: int, commit: str, marker: str) -> int:
        """Remove the comments of this marker; returns how many there were."""
        path, act = _discussions(project_id, commit), f"remove a comment of {commit[:12]}"
        found = self._commit_notes(act, path, marker)
        for discussion, note in found:
            self.http.delete(act, f"{path}/{discussion}/notes/{note['id']}")
        return len(found)

    def _commit_notes(self, act: str, path: str, marker: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the notes with this marker, oldest first, each with its discussion's id."""
        found = [
            (str(discussion["id"]), note)
            for discussion in self.http.list_all(act, path)
            for note in discussion["notes"]
            if _has_marker(note, marker)
        ]
        return sorted(found, key=lambda each: int(each[1]["id"]))

    def upsert_merge_request_note(
        self, project_id: int, iid: int, marker: str, body: str
    ) -> Comment:
        """Make the merge request have one note of this marker, with this text."""
        path = f"/projects/{project_id}/merge_requests/{iid}/notes"
        act, text = f"comment on the merge request !{iid} of {project_id}", _marked(marker, body)

        def notes() -> list[dict[str, Any]]:
            found = [each for each in self.http.list_all(act, path) if _has_marker(each, marker)]
            return sorted(found, key=lambda each: int(each["id"]))

        found = notes()
        if not found:
            self.http.post(act, path, {"body": text})
            found = notes()
        note, *doubles = found
        for double in doubles:
            self.http.delete(act, f"{path}/{double['id']}")
        if note["body"] == text:
            return Comment(int(note["id"]), is_changed=False)
        self.http.put(act, f"{path}/{note['id']}", {"body": text})
        return Comment(int(note["id"]), is_changed=True)

    def merge_request_note(self, project_id: int, iid: int, marker: str) -> str | None:
        """Return the text of the note with this marker, without it; nothing if there is none."""
        act = f"read the notes of the merge request !{iid} of {project_id}"
        for note in self.http.list_all(act, f"/projects/{project_id}/merge_requests/{iid}/notes"):
            if _has_marker(note, marker):
                return str(note["body"]).removeprefix(_mark(marker)).lstrip("\n")
        return None

    def merge_request(self, project_id: int, iid: int) -> MergeRequest:
        """Return a merge request.

        Raises:
            NotFound: there is none.
        """
        found = self.http.get(
            f"read the merge request !{iid} of {project_id}",
            f"/projects/{project_id}/merge_requests/{iid}",
        )
        return MergeRequest(int(found["iid"]), str(found["state"]), str(found["sha"]))

    def open_merge_requests(self, project_id: int) -> list[int]:
        """Return the numbers of the merge requests that are open."""
        found = self.http.list_all(
            f"list the open merge requests of {project_id}",
            f"/projects/{project_id}/merge_requests",
            state="opened",
        )
        return [int(each["iid"]) for each in found]

    def merge_requests_of(self, project_id: int, commit: str) -> list[int]:
        """Return the numbers of the merge requests that a commit belongs to."""
        try:
            found = self.http.list_all(
                f"list the merge requests of {commit[:12]} of {project_id}",
                f"/projects/{project_id}/repository/commits/{commit}/merge_requests",
            )
        except NotFound:
            return []
        return [int(each["iid"]) for each in found]


def _discussions(project_id: int, commit: str) -> str:
    return f"/projects/{project_id}/repository/commits/{commit}/discussions"


def _mark(marker: str) -> str:
    return f"<!-- infraflows:{marker} -->"


def _marked(marker: str, body: str) -> str:
    # GitLab takes white space off the end of a note.
    return f"{_mark(marker)}\n{body}"[:MOST_CHARACTERS].rstrip()


def _has_marker(note: dict[str, Any], marker: str) -> bool:
    return not note.get("system") and str(note.get("body") or "").startswith(_mark(marker))
