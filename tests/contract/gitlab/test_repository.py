"""What the product relies on in GitLab's projects, branches and files."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from blocks.gitlab_repository import Protection
from blocks.gitlab_server import GitLabSession
from domain.errors import NotFound, PermanentError

OPEN = Protection(push_level=30, merge_level=30)
CLOSED = Protection(push_level=40, merge_level=30)


def test_a_project_is_found_by_its_id_and_by_its_path(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    facts = gitlab.project(project)
    assert facts.project_id == project
    assert facts.default_branch == "main"
    assert facts.web_url == f"{side.url}/{facts.path}"
    assert facts.http_url == f"{facts.web_url}.git"
    assert gitlab.project(facts.path) == facts


def test_a_renamed_project_is_found_by_its_former_path(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    before = gitlab.project(project)
    side.call("PUT", f"/projects/{project}", {"path": f"{before.path.rpartition('/')[2]}-new"})
    after = gitlab.project(project)
    assert after.path == f"{before.path}-new"
    assert gitlab.project(before.path) == after


def test_a_project_that_is_not_there_is_told_as_such(gitlab: GitLabSession) -> None:
    with pytest.raises(NotFound, match=r"^Unable to read the project nobody/nothing: "):
        gitlab.project("nobody/nothing")


def test_a_project_without_a_commit_has_a_branch_to_commit_to(
    gitlab: GitLabSession, side: Any
) -> None:
    empty = side.project(is_empty=True)
    assert gitlab.project(empty).default_branch == "main"
    with pytest.raises(NotFound):
        gitlab.head(empty, "main")
    made = gitlab.commit_files(empty, "main", "feat: begin", {"a.txt": "a\n"})
    assert made.is_changed
    assert gitlab.head(empty, "main") == made.sha


def test_files_are_committed_together_and_only_if_one_differs(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    wanted = {"a.txt": "a\n", "deep/folder/b c.txt": "ä\n", "README.md": None}
    made = gitlab.commit_files(project, "main", "feat: files", wanted)
    assert made.is_changed
    assert gitlab.file(project, "a.txt", made.sha) == "a\n"
    assert gitlab.file(project, "deep/folder/b c.txt", "main") == "ä\n"
    assert gitlab.file_or_none(project, "README.md", "main") is None

    again = gitlab.commit_files(project, "main", "feat: files", wanted)
    assert (again.sha, again.is_changed) == (made.sha, False)
    changed = gitlab.commit_files(project, "main", "feat: one", {**wanted, "a.txt": "b\n"})
    assert gitlab.file(project, "a.txt", changed.sha) == "b\n"
    assert side.commits(project) == ["feat: one", "feat: files", "feat: begin"]


def test_two_writers_at_once_both_succeed(side: Any, project: int) -> None:
    problems: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with side.block().session(side.token) as gitlab:
                for number in range(3):
                    text = f"{name} {number}\n"
                    gitlab.commit_files(project, "main", "feat: x", {f"{name}.txt": text})
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert len(side.commits(project)) == 7


def test_a_file_that_changed_since_it_was_read_is_not_overwritten(
    gitlab: GitLabSession, side: Any, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gitlab.commit_files(project, "main", "feat: a", {"a.txt": "a\n"})
    read = GitLabSession._difference
    times = []

    def read_then_other_writes(self: Any, number: int, branch: str, files: Any) -> Any:
        found = read(self, number, branch, files)
        times.append(found)
        if len(times) == 1:
            action = {"action": "update", "file_path": "a.txt", "content": "theirs\n"}
            side.call(
                "POST",
                f"/projects/{number}/repository/commits",
                {"branch": branch, "commit_message": "feat: theirs", "actions": [action]},
            )
        return found

    monkeypatch.setattr(GitLabSession, "_difference", read_then_other_writes)
    gitlab.commit_files(project, "main", "feat: ours", {"a.txt": "ours\n"})
    assert len(times) == 2
    assert side.commits(project)[:2] == ["feat: ours", "feat: theirs"]


def test_settings_are_changed_and_read_back(gitlab: GitLabSession, project: int) -> None:
    wanted = {"only_allow_merge_if_pipeline_succeeds": True, "merge_method": "ff"}
    gitlab.change_settings(project, wanted)
    assert gitlab.settings(project, *wanted) == wanted
    assert gitlab.settings(project, "no_such_setting") == {}


def test_a_branch_is_protected_as_wanted_whatever_it_was_before(
    gitlab: GitLabSession, project: int
) -> None:
    for wanted in (OPEN, CLOSED, CLOSED):
        gitlab.protect(project, "main", wanted)
        assert gitlab.protections(project)["main"] == wanted
    assert gitlab.unprotect(project, "main")
    assert not gitlab.unprotect(project, "main")
    assert "main" not in gitlab.protections(project)


def test_tags_are_protected_as_wanted(gitlab: GitLabSession, project: int) -> None:
    for level in (30, 40, 40):
        gitlab.protect_tags(project, "v*", level)
        assert gitlab.tag_protections(project) == {"v*": level}
    assert gitlab.unprotect_tags(project, "v*")
    assert not gitlab.unprotect_tags(project, "v*")


def test_a_branch_that_nobody_may_push_to_refuses_with_the_reason(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    gitlab.protect(project, "main", Protection(push_level=0, merge_level=40))
    member = side.call(
        "POST",
        f"/projects/{project}/access_tokens",
        {
            "name": "maintainer",
            "scopes": ["api"],
            "access_level": 40,
            "expires_at": (datetime.now(UTC) + timedelta(days=30)).date().isoformat(),
        },
    )
    with (
        side.block().session(member["token"]) as other,
        pytest.raises(PermanentError, match=r"^Unable to commit to main of \d+: .*allowed"),
    ):
        other.commit_files(project, "main", "feat: x", {"x.txt": "x\n"})
