"""The simulated GitLab as a service (see `lab/gitlab` for what it does).

Promises an administrator, the product's user, and one group that the product owns. Everything else
is made by people and programs through the API, as at a real site.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lab.layout import GATEWAY, GITLAB_PORT, Layout
from lab.services.credentials import credential
from lab.services.files import PRIVATE, private_directory, write_if_changed
from lab.services.https_probe import reason_not_ok
from lab.services.service import Launch, Service

GROUP = "storefront"
ADMINISTRATOR = "root"
PRODUCT = "infraflows"
_OWNER = 50


def _accounts_file(layout: Layout) -> Path:
    return layout.secrets_directory / "gitlab-accounts.json"


def prepare(layout: Layout) -> None:
    private_directory(layout.gitlab_directory)
    root, product = credential(layout, "gitlab-root"), credential(layout, "gitlab")
    accounts = {
        "users": {
            ADMINISTRATOR: {"token": root["token"], "name": "Administrator", "is_admin": True},
            PRODUCT: {"token": product["token"], "name": "Infraflows"},
        },
        "groups": {GROUP: {PRODUCT: _OWNER}},
    }
    write_if_changed(_accounts_file(layout), json.dumps(accounts), mode=PRIVATE)
    _remove_half_made_git_files(layout.gitlab_directory / "repositories")


def _remove_half_made_git_files(directory: Path) -> None:
    """What a killed git left: locks that nobody holds (no git of the lab runs now)."""
    for lock in directory.glob("*.git/**/*.lock"):
        lock.unlink(missing_ok=True)


def launch(layout: Layout) -> Launch:
    return Launch(
        command=[
            sys.executable,
            "-m",
            "lab.gitlab",
            f"--directory={layout.gitlab_directory}",
            f"--accounts={_accounts_file(layout)}",
            f"--address={GATEWAY}",
            f"--port={GITLAB_PORT}",
            f"--url={layout.gitlab_url}",
            f"--cert={layout.server_certificate_file}",
            f"--key={layout.server_key_file}",
            f"--ca-file={layout.ca_file}",
        ]
    )


def is_healthy(layout: Layout) -> str | None:
    return reason_not_ok(layout, f"{layout.gitlab_url}/-/health")


SERVICE = Service(
    name="gitlab",
    summary="GitLab (simulated API), real Git repositories and webhooks",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    programs=("git",),
)
