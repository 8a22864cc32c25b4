"""What a team does before and around onboarding: its GitLab group and project, and its pushes.

Exists for `make demo-onboard`, tests and benchmarks. Everything goes the way a team goes: GitLab's
API and Git over HTTPS. Nothing of the platform is prepared here; that is the product's work.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab.layout import Layout
from lab.network import run_inside
from lab.services.credentials import credential
from lab.services.https_probe import request

GROUP = "storefront"
PROJECT = "shop"
DEMO_APP = Path(__file__).with_name("demo_app")
BRANCH = "main"
APP_FILE = "app.yaml"
AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Storefront"), ("EMAIL", "storefront@lab.infraflows.internal"))
}


class GitLabRefused(Exception):
    """GitLab, or Git, did not do what a team asked for."""


def gitlab(
    layout: Layout, method: str, path: str, body: Any = None, *, absent_is_none: bool = False
) -> Any:
    """Ask GitLab's API with the lab administrator's token."""
    token = credential(layout, "gitlab-root")["token"]
    reply = request(
        layout,
        method,
        f"{layout.gitlab_url}/api/v4/{path}",
        json=body,
        headers={"PRIVATE-TOKEN": token},
        timeout_seconds=30.0,
    )
    if absent_is_none and reply.status_code == 404:
        return None
    if reply.status_code >= 400:
        raise GitLabRefused(f"{method} {path}: HTTP {reply.status_code} {reply.text[:300]}")
    return reply.json() if reply.content else None


def ensure_project(layout: Layout, group: str = GROUP, project: str = PROJECT) -> dict[str, Any]:
    """Return the project, made with its group if it is absent."""
    found = gitlab(
        layout, "GET", f"projects/{quote(f'{group}/{project}', safe='')}", absent_is_none=True
    )
    if found is None:
        place = gitlab(layout, "GET", f"groups/{group}", absent_is_none=True)
        if place is None:
            place = gitlab(layout, "POST", "groups", {"name": group, "path": group})
        body = {
            "name": project,
            "path": project,
            "namespace_id": place["id"],
            "default_branch": BRANCH,
        }
        found = gitlab(layout, "POST", "projects", body)
    return dict(found)


def demo_files(name: str = PROJECT) -> dict[str, str]:
    """Return the demo application's files; under another name it is another application."""
    paths = sorted(path for path in DEMO_APP.rglob("*") if path.is_file() and path.suffix != ".pyc")
    files = {str(path.relative_to(DEMO_APP)): path.read_text(encoding="utf-8") for path in paths}
    is_named = f"name: {PROJECT}\n"
    return files | {APP_FILE: files[APP_FILE].replace(is_named, f"name: {name}\n")}


def push(
    layout: Layout,
    files: Mapping[str, str],
    subject: str,
    *,
    group: str = GROUP,
    project: str = PROJECT,
    branch: str = BRANCH,
) -> str:
    """Commit `files` on top of a branch and push it with Git over HTTPS; returns the commit."""
    url = f"{layout.gitlab_url}/{group}/{project}.git"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        clone = home / "clone"
        login = credential(layout, "gitlab-root")["token"]
        (home / ".gitconfig").write_text(f'[http]\n\tsslCAInfo = "{layout.ca_file}"\n')
        store = home / ".git-credentials"
        store.touch(mode=0o600)
        store.write_text(f"{layout.gitlab_url.replace('://', f'://oauth2:{login}@')}\n")
        git = _Git(layout, home)
        git("clone", "--quiet", url, str(clone))
        heads = git("ls-remote", "--heads", url, branch)
        git("-C", str(clone), "checkout", "--quiet", *(() if heads else ("--orphan",)), branch)
        for path, text in files.items():
            place = clone / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        git("-C", str(clone), "add", "--all")
        if git("-C", str(clone), "status", "--porcelain"):
            git("-C", str(clone), "commit", "--quiet", "--message", subject)
            git("-C", str(clone), "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
        return git("-C", str(clone), "rev-parse", "HEAD")


class _Git:
    """Git as a person runs it, with a home of its own."""

    def __init__(self, layout: Layout, home: Path) -> None:
        self._layout = layout
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "credential.helper",
            "GIT_CONFIG_VALUE_0": "store",
            **AUTHOR,
        }

    def __call__(self, *arguments: str) -> str:
        pairs = [f"{name}={value}" for name, value in self._environment.items()]
        done: subprocess.CompletedProcess[str] = run_inside(
            self._layout.instance,
            ["env", "-i", *pairs, "git", *arguments],
            check=False,
            timeout_seconds=60.0,
        )
        if done.returncode:
            raise GitLabRefused(f"git {arguments[0]}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()
