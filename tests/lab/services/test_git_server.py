"""Git over HTTP: what a push sends arrives; the record of the main branch cannot be rewritten."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.services.git_http import ensure_repository

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "T",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "T",
    "GIT_COMMITTER_EMAIL": "t@example.org",
}


def git(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        cwd=directory,
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def url_of(site: Any, login: tuple[str, str] | None = None) -> str:
    user, password = login or site.login
    return site.url.replace("http://", f"http://{user}:{password}@") + "/git/infrastructure.git"


@pytest.fixture
def clone(site: Any, tmp_path: Path) -> Path:
    target = tmp_path / "clone"
    done = git(tmp_path, "clone", url_of(site), str(target))
    assert done.returncode == 0, done.stderr
    return target


def commit(clone: Path, name: str, content: bytes) -> None:
    (clone / name).write_bytes(content)
    git(clone, "add", ".")
    assert git(clone, "commit", "-m", f"Add {name}").returncode == 0


def test_a_new_repository_has_a_first_commit_on_main(clone: Path) -> None:
    assert git(clone, "rev-parse", "--abbrev-ref", "HEAD").stdout.strip() == "main"
    assert (clone / "README.md").read_text().startswith("# Infrastructure")


def test_a_large_push_arrives_whole(site: Any, clone: Path, tmp_path: Path) -> None:
    content = os.urandom(5 * 1024 * 1024)  # beyond git's post buffer: sent in chunks
    commit(clone, "blob.bin", content)
    pushed = git(clone, "push", "origin", "main")
    assert pushed.returncode == 0, pushed.stderr
    again = tmp_path / "again"
    git(tmp_path, "clone", url_of(site), str(again))
    assert (again / "blob.bin").read_bytes() == content


def test_a_push_that_is_behind_is_refused(site: Any, clone: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(tmp_path, "clone", url_of(site), str(other))
    commit(other, "first.txt", b"1")
    assert git(other, "push", "origin", "main").returncode == 0
    commit(clone, "second.txt", b"2")
    assert git(clone, "push", "origin", "main").returncode != 0


def test_the_record_cannot_be_rewritten_or_deleted(clone: Path) -> None:
    commit(clone, "a.txt", b"a")
    git(clone, "push", "origin", "main")
    git(clone, "commit", "--amend", "-m", "Another history")
    assert git(clone, "push", "--force", "origin", "main").returncode != 0
    assert git(clone, "push", "origin", ":main").returncode != 0


def test_a_wrong_password_is_refused(site: Any, tmp_path: Path) -> None:
    done = git(tmp_path, "clone", url_of(site, ("infraflows", "wrong")), "x")
    assert done.returncode != 0
    assert "Authentication failed" in done.stderr


def test_a_repository_that_does_not_exist_is_not_found(site: Any, tmp_path: Path) -> None:
    done = git(tmp_path, "clone", url_of(site).replace("infrastructure", "other"), "x")
    assert done.returncode != 0
    assert "not found" in done.stderr


def test_ensuring_it_again_keeps_the_history(site: Any, clone: Path) -> None:
    commit(clone, "kept.txt", b"kept")
    git(clone, "push", "origin", "main")
    repository = ensure_repository(site.directory / "git")
    assert "Add kept.txt" in git(repository, "log", "--format=%s", "main").stdout


@pytest.mark.parametrize("lost", ["HEAD", "refs/heads/main"])
def test_a_half_made_repository_is_completed(tmp_path: Path, lost: str) -> None:
    repository = ensure_repository(tmp_path)
    (repository / lost).unlink()
    assert ensure_repository(tmp_path) == repository
    assert "begin the infrastructure record" in git(repository, "log", "main").stdout
