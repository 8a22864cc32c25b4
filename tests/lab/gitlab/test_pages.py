"""The pages for people."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lab.bare_gitlab import BareGitLab


@pytest.fixture
def page(server: BareGitLab) -> Callable[..., httpx.Response]:
    """Return how a page is read."""
    verify = ssl.create_default_context(cafile=server.ca_file)

    def read(path: str) -> httpx.Response:
        return httpx.get(f"{server.url}{path}", verify=verify, trust_env=False, timeout=10)

    return read


def test_every_page_of_a_busy_project_is_there(
    project: Any, page: Any, receiver: Any, wait_until: Any
) -> None:
    path = f"/{project.path_with_namespace}"
    hook = project.hooks.create({"url": receiver.url})
    config = "deploy: {script: [echo], environment: staging}\n"
    for branch, name, text in (("main", ".gitlab-ci.yml", config), ("topic", "docs/a.md", "# A\n")):
        action = {"action": "create", "file_path": name, "content": text}
        start = {"start_branch": "main"} if branch == "topic" else {}
        project.commits.create(
            {"branch": branch, "commit_message": f"add {name}", "actions": [action], **start}
        )
    sha = project.commits.get("main").id
    request = project.mergerequests.create(
        {"source_branch": "topic", "target_branch": "main", "title": "Add <docs>"}
    )
    request.notes.create({"body": "| step | seconds |\n|---|---|\n| dns | 2 |"})
    wait_until(lambda: project.deployments.list(get_all=True))
    (run,) = project.pipelines.list(sha=sha, get_all=True)
    (job,) = run.jobs.list(get_all=True)
    wait_until(
        lambda: project.manager.gitlab.http_list(f"/projects/{project.id}/hooks/{hook.id}/events")
    )
    found = {
        place: page(f"{path}{place}")
        for place in (
            "", "/-/commits", f"/-/commit/{sha}", "/-/merge_requests", "/-/merge_requests/1",
            "/-/pipelines", f"/-/pipelines/{run.id}", f"/-/jobs/{job.id}", "/-/environments",
            "/-/hooks", "/-/blob/main/README.md", "/-/blob/topic/docs",
        )
    }  # fmt: skip
    assert {place: answer.status_code for place, answer in found.items()} == dict.fromkeys(
        found, 200
    )
    shown = found["/-/merge_requests/1"].text
    assert "<td>dns</td>" in shown
    assert "Add &lt;docs&gt;" in shown
    assert "scripts are not executed here" in found[f"/-/jobs/{job.id}"].text
    assert path.strip("/") in page("/").text


def test_a_comment_cannot_bring_its_own_html(project: Any, page: Any) -> None:
    commit = project.commits.get("main")
    commit.comments.create({"note": "<script>alert(1)</script> [x](javascript:alert(1))"})
    text = page(f"/{project.path_with_namespace}/-/commit/{commit.id}").text
    assert "<script>alert" not in text
    assert 'href="javascript' not in text


def test_an_old_address_leads_to_the_new_one_and_an_unknown_one_nowhere(
    project: Any, page: Any
) -> None:
    old = f"/{project.path_with_namespace}/-/commits"
    project.path = f"{project.path}-new"
    project.save()
    answer = page(old)
    assert answer.status_code == 302
    assert answer.headers["location"].endswith(f"{project.path}/-/commits")
    assert page("/no/such").status_code == 404
    assert page(f"/{project.path_with_namespace}/-/wikis").status_code == 501
