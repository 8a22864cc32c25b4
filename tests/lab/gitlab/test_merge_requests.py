"""Merge requests as python-gitlab sees them."""

from __future__ import annotations

from typing import Any

import gitlab
import pytest


def _branch(project: Any, name: str, path: str, content: str = "x\n", start: str = "main") -> None:
    project.commits.create(
        {
            "branch": name,
            "start_branch": start,
            "commit_message": f"change {path}",
            "actions": [{"action": "create", "file_path": path, "content": content}],
        }
    )


def _open(project: Any, source: str = "topic", **more: Any) -> Any:
    request = {"source_branch": source, "target_branch": "main", "title": "Add it", **more}
    return project.mergerequests.create(request)


def test_a_merge_request_shows_its_difference_and_merges_by_a_merge_commit(project: Any) -> None:
    _branch(project, "topic", "a.txt")
    request = _open(project)
    assert (request.iid, request.detailed_merge_status) == (1, "mergeable")
    (change,) = request.changes()["changes"]
    assert (change["new_path"], change["new_file"], change["diff"]) == (
        "a.txt",
        True,
        "@@ -0,0 +1 @@\n+x\n",
    )
    assert [commit.title for commit in request.commits()] == ["change a.txt"]
    request.merge()
    merged = project.mergerequests.get(1)
    assert (merged.state, merged.merge_user["username"]) == ("merged", "infraflows")
    commit = project.commits.get("main")
    assert (commit.id, len(commit.parent_ids)) == (merged.merge_commit_sha, 2)
    assert commit.message.endswith(f"See merge request {project.path_with_namespace}!1")
    assert [m["iid"] for m in commit.merge_requests()] == [1]
    assert [branch.name for branch in project.branches.list(get_all=True)] == ["main"]


def test_a_conflict_and_a_draft_are_not_merged(project: Any) -> None:
    _branch(project, "topic", "a.txt", "one\n")
    _branch(project, "other", "a.txt", "two\n")
    first, second = _open(project), _open(project, "other")
    first.merge()
    assert project.mergerequests.get(second.iid).detailed_merge_status == "conflict"
    with pytest.raises(gitlab.GitlabMRClosedError) as caught:
        second.merge()
    assert caught.value.response_code in (405, 422)
    _branch(project, "third", "c.txt")
    draft = _open(project, "third", title="Draft: later")
    assert draft.draft is True
    with pytest.raises(gitlab.GitlabMRClosedError):
        draft.merge()


def test_a_head_that_moved_is_a_conflict_409(project: Any) -> None:
    _branch(project, "topic", "a.txt")
    request = _open(project)
    with pytest.raises(gitlab.GitlabError) as caught:
        project.manager.gitlab.http_put(
            f"/projects/{project.id}/merge_requests/{request.iid}/merge",
            post_data={"sha": "0" * 40},
        )
    assert caught.value.response_code == 409


def test_a_second_request_of_the_same_branches_is_409_and_of_no_branch_422(project: Any) -> None:
    _branch(project, "topic", "a.txt")
    _open(project)
    for source, status in (("topic", 409), ("none", 422)):
        with pytest.raises(gitlab.GitlabCreateError) as caught:
            _open(project, source)
        assert caught.value.response_code == status


def test_a_squash_and_a_fast_forward_leave_one_line_of_history(project: Any) -> None:
    project.merge_method = "ff"
    project.save()
    _branch(project, "topic", "a.txt")
    _open(project, title="feat: one").merge(squash=True)
    commit = project.commits.get("main")
    assert (commit.title, len(commit.parent_ids)) == ("feat: one", 1)


def test_a_developer_does_not_merge_into_a_branch_of_maintainers(server: Any, project: Any) -> None:
    _branch(project, "topic", "a.txt")
    request = _open(project)
    seen = server.client("mira").projects.get(project.id).mergerequests.get(request.iid)
    with pytest.raises(gitlab.GitlabAuthenticationError):
        seen.merge()


def test_notes_are_written_changed_and_deleted_by_those_who_may(server: Any, project: Any) -> None:
    _branch(project, "topic", "a.txt")
    request = _open(project)
    note = request.notes.create({"body": "first"})
    request.notes.create({"body": "second"})
    assert [n.body for n in request.notes.list(get_all=True)] == ["second", "first"]
    note.body = "first, better"
    note.save()
    assert request.notes.get(note.id).body == "first, better"
    foreign = server.client("mira").projects.get(project.id).mergerequests.get(request.iid)
    with pytest.raises(gitlab.GitlabUpdateError):
        foreign.notes.update(note.id, {"body": "no"})
    note.delete()
    assert len(request.notes.list(get_all=True)) == 1


def test_a_closed_request_is_opened_again(project: Any) -> None:
    _branch(project, "topic", "a.txt")
    request = _open(project)
    for event, state in (("close", "closed"), ("reopen", "opened")):
        request.state_event = event
        request.save()
        assert project.mergerequests.get(request.iid).state == state
    assert [r.iid for r in project.mergerequests.list(state="opened", get_all=True)] == [1]
