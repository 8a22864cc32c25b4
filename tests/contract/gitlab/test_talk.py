"""What the product relies on in GitLab's comments, webhooks, pipelines and commit statuses."""

from __future__ import annotations

import base64
import secrets
import threading
from typing import Any

import pytest

from blocks.gitlab_events import WantedHook
from blocks.gitlab_server import GitLabSession
from domain.errors import Unreachable

MARKER = "app.yaml"
WANTED = WantedHook(
    url="https://192.0.2.1/gitlab",
    events=frozenset({"push_events", "merge_requests_events"}),
    name="Infraflows",
)


def _merge_request(side: Any, project: int) -> int:
    action = {"action": "create", "file_path": "app.yaml", "content": "name: shop\n"}
    side.call(
        "POST",
        f"/projects/{project}/repository/commits",
        {
            "branch": "change",
            "start_branch": "main",
            "commit_message": "feat: change",
            "actions": [action],
        },
    )
    body = {"source_branch": "change", "target_branch": "main", "title": "Change"}
    return int(side.call("POST", f"/projects/{project}/merge_requests", body)["iid"])


def _commit_notes(side: Any, project: int, commit: str) -> list[str]:
    found = side.call("GET", f"/projects/{project}/repository/commits/{commit}/discussions")
    return [note["body"] for discussion in found for note in discussion["notes"]]


def test_a_commit_has_one_comment_which_is_changed_in_place(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    commit = gitlab.head(project, "main")
    gitlab.comment_on_commit(project, commit, "of somebody else")
    first = gitlab.upsert_commit_comment(project, commit, MARKER, "one\n")
    again = gitlab.upsert_commit_comment(project, commit, MARKER, "one\n")
    changed = gitlab.upsert_commit_comment(project, commit, MARKER, "two")
    assert (again.note_id, again.is_changed) == (first.note_id, False)
    assert (changed.note_id, changed.is_changed) == (first.note_id, True)
    notes = _commit_notes(side, project, commit)
    assert sorted(note.splitlines()[-1] for note in notes) == ["of somebody else", "two"]
    assert gitlab.delete_commit_comment(project, commit, MARKER) == 1
    assert _commit_notes(side, project, commit) == ["of somebody else"]


def test_two_writers_leave_one_comment(side: Any, gitlab: GitLabSession, project: int) -> None:
    commit = gitlab.head(project, "main")
    barrier = threading.Barrier(2)

    def write(text: str) -> None:
        with side.block().session(side.token) as other:
            barrier.wait(10)
            other.upsert_commit_comment(project, commit, MARKER, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    gitlab.upsert_commit_comment(project, commit, MARKER, "last")
    assert len(_commit_notes(side, project, commit)) == 1


def test_a_merge_request_has_one_note_which_is_changed_in_place(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    iid = _merge_request(side, project)
    assert gitlab.merge_request_note(project, iid, MARKER) is None
    first = gitlab.upsert_merge_request_note(project, iid, MARKER, "line 3: wrong")
    again = gitlab.upsert_merge_request_note(project, iid, MARKER, "line 3: wrong")
    changed = gitlab.upsert_merge_request_note(project, iid, MARKER, "all is right")
    assert (again.note_id, again.is_changed) == (first.note_id, False)
    assert (changed.note_id, changed.is_changed) == (first.note_id, True)
    assert gitlab.merge_request_note(project, iid, MARKER) == "all is right"
    commit = gitlab.head(project, "change")
    assert gitlab.merge_requests_of(project, commit) == [iid]


def test_a_webhook_is_there_once_and_exactly_as_wanted(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    key = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    made = gitlab.ensure_hook(project, WANTED, key)
    assert made.has_signing_token
    assert made.is_enabled
    assert made.events == WANTED.events
    assert gitlab.ensure_hook(project, WANTED) == made
    side.call(
        "PUT",
        f"/projects/{project}/hooks/{made.hook_id}",
        {"url": WANTED.url, "push_events": False},
    )
    assert gitlab.ensure_hook(project, WANTED).events == WANTED.events
    side.call("POST", f"/projects/{project}/hooks", {"url": WANTED.url})
    assert gitlab.ensure_hook(project, WANTED).hook_id == made.hook_id
    assert len(gitlab.hooks(project)) == 1
    assert gitlab.delete_hook(project, made.hook_id)
    assert not gitlab.delete_hook(project, made.hook_id)


def test_a_commit_without_a_pipeline_is_waited_for_no_longer_than_said(
    gitlab: GitLabSession, project: int
) -> None:
    commit = gitlab.head(project, "main")
    assert gitlab.pipelines(project, commit) == []
    with pytest.raises(Unreachable, match=r"within 0 s: it is not there"):
        gitlab.wait_for_pipeline(project, commit, 0.2)


def test_a_commit_status_may_be_set_twice(gitlab: GitLabSession, side: Any, project: int) -> None:
    commit = gitlab.head(project, "main")
    for state in ("running", "running", "success"):
        gitlab.set_commit_status(project, commit, "infraflows", state, "onboarding")
    found = side.call("GET", f"/projects/{project}/repository/commits/{commit}/statuses")
    assert [(each["name"], each["status"]) for each in found] == [("infraflows", "success")]
