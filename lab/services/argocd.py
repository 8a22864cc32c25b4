"""The stand-in for the containers of Argo CD's pods, as a service (see `lab.argocd`)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lab.layout import Layout
from lab.services.files import private_directory
from lab.services.service import Launch, Service

HEARTBEAT_LIMIT_SECONDS = 60.0


def prepare(layout: Layout) -> None:
    private_directory(layout.argocd_directory)
    _heartbeat(layout).unlink(missing_ok=True)


def _heartbeat(layout: Layout) -> Path:
    return layout.argocd_directory / "heartbeat"


def launch(_: Layout) -> Launch:
    return Launch(command=[sys.executable, "-m", "lab.argocd"])


def is_healthy(layout: Layout) -> str | None:
    """Of who looks after them: an Argo CD without a cluster does not run."""
    try:
        age = time.time() - _heartbeat(layout).stat().st_mtime
    except FileNotFoundError:
        return "it has not looked for clusters yet"
    limit = HEARTBEAT_LIMIT_SECONDS
    return None if age < limit else f"it has not looked for clusters for {age:.0f} s"


SERVICE = Service(
    name="argocd",
    summary="Argo CD (real) for each cluster's simulated pods",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    needs=("openbao",),
    programs=("git", "redis-server", "setpriv"),
    stop_timeout_seconds=30,
)
