"""The API as python-gitlab sees it."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from typing import Any

import gitlab
import httpx
import pytest

from lab.bare_gitlab import GROUP, BareGitLab


def _refused(status: int, act: Callable[[], Any]) -> str:
    with pytest.raises(gitlab.GitlabError) as caught:
        act()
    assert caught.value.response_code == status
    return str(caught.value.error_message)


def _raw(server: BareGitLab, path: str, token: str = "", method: str = "GET") -> httpx.Response:
    headers = {"PRIVATE-TOKEN": token} if token else {}
    with httpx.Client(
        verify=ssl.create_default_context(cafile=server.ca_file), trust_env=False
    ) as client:
        return client.request(method, f"{server.url}/api/v4{path}", headers=headers)


def test_a_request_without_a_good_token_is_401(server: BareGitLab) -> None:
    for token in ("", "glpat-wrong"):
        answer = _raw(server, "/user", token)
        assert (answer.status_code, answer.json()) == (401, {"message": "401 Unauthorized"})


def test_what_is_not_simulated_is_501_and_named(server: BareGitLab, project: Any) -> None:
    token = server.tokens["infraflows"]
    answer = _raw(server, f"/projects/{project.id}/issues", token)
    assert answer.status_code == 501
    assert f"GET /api/v4/projects/{project.id}/issues is not simulated" in answer.json()["message"]
    answer = _raw(server, f"/projects/{project.id}/hooks?zebra=1", token)
    assert answer.status_code == 501
    assert "Parameter 'zebra' of GET /projects/{project}/hooks" in answer.json()["message"]


def test_a_project_is_found_by_its_id_and_by_its_path(client: Any, project: Any) -> None:
    assert project.path_with_namespace == f"{GROUP}/{project.path}"
    assert client.projects.get(project.path_with_namespace).id == project.id
    assert client.projects.get(project.id).default_branch == "main"


def test_a_foreign_private_project_is_missing_not_forbidden(
    server: BareGitLab, project: Any
) -> None:
    root = server.client("root")
    stranger = root.users.create(
        {"username": f"u{project.id}", "name": "S", "email": f"u{project.id}@example.org",
         "force_random_password": True}
    )  # fmt: skip
    token = stranger.personal_access_tokens.create({"name": "t", "scopes": ["api"]})
    foreign = gitlab.Gitlab(server.url, private_token=token.token, ssl_verify=server.ca_file)
    assert _refused(404, lambda: foreign.projects.get(project.id)) == "404 Project Not Found"


def test_a_developer_may_not_do_what_maintainers_do(server: BareGitLab, project: Any) -> None:
    seen = server.client("mira").projects.get(project.id)
    assert _refused(403, seen.hooks.list) == "403 Forbidden"
    assert _refused(403, lambda: seen.variables.create({"key": "A", "value": "b"}))
    assert _refused(403, seen.delete)


def test_a_taken_path_and_missing_parameters_are_400(client: Any, project: Any) -> None:
    group = client.groups.get(GROUP)
    text = _refused(
        400, lambda: client.projects.create({"name": project.path, "namespace_id": group.id})
    )
    assert "has already been taken" in text
    assert "branch is missing, commit_message is missing" in _refused(
        400,
        lambda: client.http_post(
            f"/projects/{project.id}/repository/commits", post_data={"actions": []}
        ),
    )


def test_lists_are_paged_with_the_vendors_headers(server: BareGitLab, project: Any) -> None:
    for number in range(5):
        project.branches.create({"branch": f"b{number}", "ref": "main"})
    path = f"/projects/{project.id}/repository/branches?per_page=2&page=2"
    answer = _raw(server, path, server.tokens["infraflows"])
    held = {
        name: answer.headers[name]
        for name in ("x-total", "x-total-pages", "x-next-page", "x-prev-page")
    }
    assert held == {"x-total": "6", "x-total-pages": "3", "x-next-page": "3", "x-prev-page": "1"}
    assert 'page=3&per_page=2>; rel="next"' in answer.headers["link"]
    assert len(project.branches.list(per_page=2, iterator=True)) == 6
    assert len({branch.name for branch in project.branches.list(per_page=2, get_all=True)}) == 6


def test_a_renamed_and_moved_project_keeps_id_and_data_and_old_paths_lead_to_it(
    server: BareGitLab, client: Any, project: Any
) -> None:
    old, name = project.path_with_namespace, project.path
    project.name = project.path = f"{name}-new"
    project.save()
    group = server.client("root").groups.create(
        {"name": f"g{project.id}", "path": f"g{project.id}"}
    )
    group.members.create({"user_id": client.http_get("/user")["id"], "access_level": 50})
    project.transfer(group.id)
    assert client.projects.get(project.id).path_with_namespace == f"g{project.id}/{name}-new"
    answer = _raw(server, f"/projects/{old.replace('/', '%2F')}/hooks", server.tokens["infraflows"])
    assert answer.status_code == 302
    assert answer.headers["location"] == f"{server.url}/api/v4/projects/{project.id}/hooks"
    moved = client.projects.get(old)
    assert moved.id == project.id
    assert moved.files.get("README.md", ref="main").decode()
    fresh = client.projects.create({"name": name, "namespace_id": client.groups.get(GROUP).id})
    assert client.projects.get(old).id == fresh.id, "the old path was taken by another project"


def test_a_deleted_project_is_gone_with_its_repository_and_its_id_is_not_given_again(
    client: Any, project: Any, make_project: Callable[..., Any]
) -> None:
    project.delete()
    assert _refused(404, lambda: client.projects.get(project.id)) == "404 Project Not Found"
    assert make_project().id > project.id


def test_settings_are_kept_and_bad_ones_refused(client: Any, project: Any) -> None:
    project.only_allow_merge_if_pipeline_succeeds = True
    project.merge_method = "ff"
    project.topics = ["infraflows"]
    project.save()
    kept = client.projects.get(project.id)
    assert (kept.only_allow_merge_if_pipeline_succeeds, kept.merge_method) == (True, "ff")
    assert [p.id for p in client.projects.list(topic="infraflows", search=project.path)] == [
        project.id
    ]
    project.merge_method = "magic"
    assert "is not included in the list" in _refused(400, project.save)


def test_one_commit_carries_many_actions(project: Any) -> None:
    made = project.commits.create(
        {
            "branch": "main",
            "commit_message": "feat: several\n\nat once",
            "author_name": "Ida",
            "author_email": "ida@example.org",
            "actions": [
                {"action": "create", "file_path": "app/a.txt", "content": "one\ntwo\n"},
                {"action": "create", "file_path": "b.bin", "encoding": "base64",
                 "content": base64.b64encode(b"\x00\xff").decode()},
                {"action": "update", "file_path": "README.md", "content": "new\n"},
            ],
        }
    )  # fmt: skip
    assert (made.title, made.author_name, made.stats["additions"]) == ("feat: several", "Ida", 3)
    assert project.files.get("app/a.txt", ref="main").decode() == b"one\ntwo\n"
    assert project.files.raw("b.bin", ref="main") == b"\x00\xff"
    assert {entry["path"] for entry in project.repository_tree(recursive=True)} >= {
        "app",
        "app/a.txt",
    }
    project.commits.create(
        {
            "branch": "main",
            "commit_message": "move and delete",
            "actions": [
                {"action": "move", "file_path": "app/c.txt", "previous_path": "app/a.txt"},
                {"action": "delete", "file_path": "b.bin"},
                {"action": "chmod", "file_path": "README.md", "execute_filemode": True},
            ],
        }
    )
    assert [entry["path"] for entry in project.repository_tree("app")] == ["app/c.txt"]
    assert project.files.get("README.md", ref="main").execute_filemode is True
    diffs = project.commits.get("main").diff(get_all=True)
    assert {(d["old_path"], d["new_path"]) for d in diffs if d["renamed_file"]} == {
        ("app/a.txt", "app/c.txt")
    }


def test_a_file_that_is_there_is_not_created_and_one_that_is_not_is_not_updated(
    project: Any,
) -> None:
    data = {"branch": "main", "commit_message": "m", "content": "x"}
    text = _refused(400, lambda: project.files.create({**data, "file_path": "README.md"}))
    assert text == "A file with this name already exists"
    text = _refused(400, lambda: project.files.update("none.txt", data))
    assert text == "A file with this name doesn't exist"
    assert _refused(404, lambda: project.files.get("none.txt", ref="main")) == "404 File Not Found"
    stale = project.commits.list(get_all=False)[0].id
    project.files.update("README.md", {**data, "last_commit_id": stale})
    assert "has changed since" in _refused(
        400, lambda: project.files.update("README.md", {**data, "last_commit_id": stale})
    )


def test_an_empty_repository_gets_its_branch_by_the_first_commit(
    make_project: Callable[..., Any],
) -> None:
    project = make_project()
    assert project.default_branch is None
    assert _refused(404, project.repository_tree) == "404 Tree Not Found"
    project.files.create(
        {"file_path": "a", "branch": "main", "content": "1", "commit_message": "first"}
    )
    assert [b.name for b in project.branches.list(get_all=True)] == ["main"]
    assert [rule.name for rule in project.protectedbranches.list(get_all=True)] == ["main"]


def test_a_protected_branch_takes_commits_of_those_who_may(
    server: BareGitLab, project: Any
) -> None:
    seen = server.client("mira").projects.get(project.id)
    commit = {"branch": "main", "commit_message": "m",
              "actions": [{"action": "create", "file_path": "x", "content": "y"}]}  # fmt: skip
    assert "not allowed to push into this branch" in _refused(
        403, lambda: seen.commits.create(commit)
    )
    project.protectedbranches.delete("main")
    project.protectedbranches.create(
        {"name": "main", "push_access_level": 30, "merge_access_level": 40}
    )
    assert seen.commits.create(commit).title == "m"
    assert _refused(409, lambda: project.protectedbranches.create({"name": "main"}))
    rule = project.protectedbranches.get("main")
    assert rule.push_access_levels[0]["access_level"] == 30
    project.protectedbranches.update("main", {"allow_force_push": True})
    assert project.protectedbranches.get("main").allow_force_push is True


def test_variables_have_scopes_and_masked_ones_a_form(project: Any) -> None:
    project.variables.create({"key": "A", "value": "one", "environment_scope": "staging"})
    project.variables.create(
        {"key": "A", "value": "two", "environment_scope": "production", "protected": True}
    )
    assert "multiple variables" in _refused(409, lambda: project.variables.get("A"))
    chosen = {"environment_scope": "production"}
    assert project.variables.get("A", filter=chosen).value == "two"
    project.variables.update("A", {"value": "three", "filter": chosen})
    assert project.variables.get("A", filter=chosen).value == "three"
    assert "(A) has already been taken" in str(
        _refused(
            400,
            lambda: project.variables.create(
                {"key": "A", "value": "x", "environment_scope": "staging"}
            ),
        )
    )
    assert "is invalid" in str(
        _refused(
            400, lambda: project.variables.create({"key": "B", "value": "short", "masked": True})
        )
    )
    project.variables.create({"key": "C", "value": "hidden-value", "masked_and_hidden": True})
    assert project.variables.get("C").value is None
    project.variables.delete("A", filter=chosen)
    assert project.variables.get("A").value == "one"
    assert _refused(404, lambda: project.variables.get("Z")) == "404 Variable Not Found"


def test_tokens_work_until_they_are_revoked_and_only_within_their_scopes(
    server: BareGitLab, project: Any
) -> None:
    token = project.access_tokens.create(
        {"name": "bot", "scopes": ["read_api"], "access_level": 40, "expires_at": "2027-06-01"}
    )
    bot = gitlab.Gitlab(server.url, private_token=token.token, ssl_verify=server.ca_file)
    assert bot.projects.get(project.id).id == project.id
    with pytest.raises(gitlab.GitlabError) as caught:
        bot.projects.get(project.id).variables.create({"key": "A", "value": "b"})
    assert (caught.value.response_code, caught.value.error_message) == (403, "insufficient_scope")
    bot.projects.get(project.id)
    fresh = project.access_tokens.rotate(token.id)
    with pytest.raises(gitlab.GitlabAuthenticationError):
        bot.projects.get(project.id)
    bot = gitlab.Gitlab(server.url, private_token=fresh["token"], ssl_verify=server.ca_file)
    bot.projects.get(project.id)
    project.access_tokens.delete(fresh["id"])
    with pytest.raises(gitlab.GitlabAuthenticationError):
        bot.projects.get(project.id)


def test_a_deploy_token_is_told_once(project: Any) -> None:
    made = project.deploytokens.create({"name": "pull", "scopes": ["read_repository"]})
    assert made.token.startswith("gldt-")
    seen = project.deploytokens.get(made.id)
    assert not hasattr(seen, "token")
    assert (seen.username, seen.revoked) == (f"gitlab+deploy-token-{made.id}", False)
    project.deploytokens.delete(made.id)
    assert project.deploytokens.list(get_all=True) == []


def test_commits_carry_comments_and_statuses(project: Any) -> None:
    commit = project.commits.get("main")
    commit.comments.create({"note": "| a | b |\n|---|---|\n| 1 | 2 |"})
    assert [c.note for c in commit.comments.list(get_all=True)] == [
        "| a | b |\n|---|---|\n| 1 | 2 |"
    ]
    commit.statuses.create(
        {"state": "running", "name": "onboarding", "target_url": "https://x.example"}
    )
    commit.statuses.create({"state": "success", "name": "onboarding", "description": "done"})
    (status,) = commit.statuses.list(get_all=True)
    assert (status.status, status.description) == ("success", "done")


def test_tags_are_made_and_protected_ones_only_by_those_who_may(
    server: BareGitLab, project: Any
) -> None:
    project.protectedtags.create({"name": "v*", "create_access_level": 40})
    made = project.tags.create({"tag_name": "v1.0.0", "ref": "main", "message": "first"})
    assert (made.message, made.commit["id"]) == ("first", project.commits.get("main").id)
    seen = server.client("mira").projects.get(project.id)
    assert "protected" in _refused(400, lambda: seen.tags.create({"tag_name": "v2", "ref": "main"}))
    assert seen.tags.create({"tag_name": "try", "ref": "main"}).message == ""
    assert {tag.name for tag in project.tags.list(get_all=True)} == {"v1.0.0", "try"}


def test_members_come_from_the_group_and_the_project(server: BareGitLab, project: Any) -> None:
    root = server.client("root").http_get("/user")
    member = {"user_id": root["id"], "access_level": 30}
    project.members.create(member)
    assert _refused(409, lambda: project.members.create(member)) == "Member already exists"
    names = {
        member.username: member.access_level for member in project.members_all.list(get_all=True)
    }
    assert (names["infraflows"], names["mira"]) == (50, 30)


def test_nothing_that_was_answered_is_lost_by_a_kill(
    server: BareGitLab, client: Any, project: Any
) -> None:
    hook = project.hooks.create({"url": "http://127.0.0.1:1/x", "push_events": False})
    project.variables.create({"key": "KEPT", "value": "yes"})
    project.files.create(
        {"file_path": "k", "branch": "main", "content": "1", "commit_message": "k"}
    )
    server.kill()
    server.start()
    again = client.projects.get(project.id)
    assert again.variables.get("KEPT").value == "yes"
    assert again.files.get("k", ref="main").decode() == b"1"
    assert again.hooks.get(hook.id).push_events is False
