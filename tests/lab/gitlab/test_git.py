"""Git over HTTP, by git itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.bare_gitlab import BareGitLab


@pytest.fixture
def git(server: BareGitLab, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return how git is run: as nobody in particular, trusting the server's CA."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "GIT_SSL_CAINFO": server.ca_file,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Mira",
        "GIT_AUTHOR_EMAIL": "mira@example.org",
        "GIT_COMMITTER_NAME": "Mira",
        "GIT_COMMITTER_EMAIL": "mira@example.org",
    }

    def run(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def work(server: BareGitLab, project: Any, git: Any, tmp_path: Path) -> Path:
    """A developer's clone."""
    done = git("clone", "-q", server.git_url(project.path_with_namespace), "work")
    assert done.returncode == 0, done.stderr
    return tmp_path / "work"


def _commit(git: Any, work: Path, name: str) -> str:
    (work / name).write_text(name)
    git("add", name, cwd=work)
    git("commit", "-q", "-m", f"add {name}", cwd=work)
    return str(git("rev-parse", "HEAD", cwd=work).stdout.strip())


def test_a_pushed_branch_is_seen_by_the_api_and_fires_its_hook(
    project: Any, work: Path, git: Any, receiver: Any
) -> None:
    project.hooks.create({"url": receiver.url})
    git("switch", "-q", "-c", "topic", cwd=work)
    shas = [_commit(git, work, name) for name in ("a", "b")]
    done = git("push", "-q", "origin", "topic", cwd=work)
    assert done.returncode == 0, done.stderr
    assert project.branches.get("topic").commit["id"] == shas[1]
    payload = receiver.wait(1)[0].payload
    assert (payload["before"], payload["after"], payload["ref"]) == (
        "0" * 40,
        shas[1],
        "refs/heads/topic",
    )
    assert [commit["id"] for commit in payload["commits"]] == shas
    assert payload["user_username"] == "mira"


def test_a_push_to_a_protected_branch_is_refused_in_the_vendors_words(
    project: Any, work: Path, git: Any, receiver: Any
) -> None:
    project.hooks.create({"url": receiver.url})
    head = project.commits.get("main").id
    _commit(git, work, "a")
    done = git("push", "-q", "origin", "main", cwd=work)
    assert done.returncode != 0
    assert (
        "GitLab: You are not allowed to push code to protected branches on this project."
        in done.stderr
    )
    assert project.commits.get("main").id == head
    assert receiver.deliveries == []


def test_nobody_rewrites_a_protected_branch(
    server: BareGitLab, project: Any, git: Any, tmp_path: Path
) -> None:
    git("clone", "-q", server.git_url(project.path_with_namespace, "infraflows"), "owner")
    work = tmp_path / "owner"
    git("commit", "-q", "--amend", "-m", "another history", cwd=work)
    done = git("push", "-q", "--force", "origin", "main", cwd=work)
    assert "not allowed to force push code to a protected branch" in done.stderr
    assert (
        "can only delete protected branches"
        in git("push", "-q", "origin", ":main", cwd=work).stderr
    )
    assert project.commits.get("main").title == "Initial commit"


def test_a_stranger_a_wrong_token_and_nobody_do_not_get_in(
    server: BareGitLab, project: Any, git: Any
) -> None:
    url = server.git_url(project.path_with_namespace)
    wrong = url.replace(server.tokens["mira"], "glpat-wrong")
    nobody = url.replace(f"mira:{server.tokens['mira']}@", "")
    for address in (wrong, nobody):
        done = git("ls-remote", address)
        assert done.returncode != 0
        assert server.tokens["mira"] not in done.stderr
    assert git("ls-remote", url.replace(project.path, "none")).returncode != 0


def test_a_deploy_token_fetches_its_project_and_nothing_else(
    server: BareGitLab, project: Any, make_project: Callable[..., Any], git: Any
) -> None:
    other = make_project(initialize_with_readme=True)
    token = project.deploytokens.create({"name": "pull", "scopes": ["read_repository"]})
    login = f"https://{token.username}:{token.token}@127.0.0.1:{server.port}"
    assert (
        "refs/heads/main" in git("ls-remote", f"{login}/{project.path_with_namespace}.git").stdout
    )
    assert git("ls-remote", f"{login}/{other.path_with_namespace}.git").returncode != 0
    git("clone", "-q", f"{login}/{project.path_with_namespace}.git", "pulled")
    done = git("-C", "pulled", "push", "-q", "origin", "HEAD:refs/heads/x")
    assert done.returncode != 0
    token.delete()
    assert git("ls-remote", f"{login}/{project.path_with_namespace}.git").returncode != 0


def test_an_old_path_still_leads_to_the_repository(project: Any, work: Path, git: Any) -> None:
    project.path = f"{project.path}-new"
    project.save()
    assert git("fetch", "origin", cwd=work).returncode == 0


def test_a_pushed_annotated_tag_fires_its_hook_with_its_message(
    project: Any, work: Path, git: Any, receiver: Any
) -> None:
    project.hooks.create({"url": receiver.url, "push_events": False, "tag_push_events": True})
    git("tag", "-a", "v1.2.3-main", "-m", "the first", cwd=work)
    assert git("push", "-q", "origin", "v1.2.3-main", cwd=work).returncode == 0
    payload = receiver.wait(1)[0].payload
    assert (payload["ref"], payload["message"]) == ("refs/tags/v1.2.3-main", "the first")
    assert payload["checkout_sha"] == project.commits.get("main").id != payload["after"]


def test_a_push_is_told_although_the_server_was_killed_in_or_right_after_it(
    server: BareGitLab, project: Any, work: Path, git: Any, receiver: Any
) -> None:
    """The moment is made by leaving what the server and git's hook had written by then."""
    project.hooks.create({"url": receiver.url})
    git("switch", "-q", "-c", "topic", cwd=work)
    sha = _commit(git, work, "a")
    bare = server.directory / "state" / "repositories" / f"{project.id}.git"
    server.kill()
    git("push", "-q", str(bare), "HEAD:refs/heads/topic", cwd=work)
    user = {"project": project.id, "user": project.creator_id, "lines": []}
    note = server.directory / "state" / "pushes" / "left.json"
    note.write_text(json.dumps(user))
    note.with_name("left.json.offered").write_text(f"{'0' * 40} {sha} refs/heads/topic\n")
    server.start()
    assert receiver.wait(1)[0].payload["after"] == sha
    assert list(note.parent.iterdir()) == []
