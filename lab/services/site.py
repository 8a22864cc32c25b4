"""The HTTPS site server as a service (see `site_server` for what it serves)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lab.layout import GIT_REPOSITORY, GITOPS_REPOSITORY, Layout
from lab.services.files import private_directory
from lab.services.git_http import ensure_repository
from lab.services.https_probe import reason_not_ok
from lab.services.service import Launch, Service


def prepare(layout: Layout) -> None:
    private_directory(layout.state_directory)
    _remove_half_made_git_files(layout.git_directory)
    for name in (GIT_REPOSITORY, GITOPS_REPOSITORY):
        ensure_repository(layout.git_directory, name)


def _remove_half_made_git_files(directory: Path) -> None:
    """What a killed git left: locks that nobody holds (no git of the lab runs now)."""
    for lock in directory.glob("*.git/**/*.lock"):
        lock.unlink(missing_ok=True)
    for incoming in directory.glob("*.git/objects/tmp_objdir-*"):
        shutil.rmtree(incoming, ignore_errors=True)


def launch(_: Layout) -> Launch:
    return Launch(command=[sys.executable, "-m", "lab.services.site_server"])


def is_healthy(layout: Layout) -> str | None:
    return reason_not_ok(layout, f"{layout.site_url}/healthz")


SERVICE = Service(
    name="site",
    summary="HTTPS: Git, OpenTofu states, RKE2 artefact mirror",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    programs=("git",),
)
