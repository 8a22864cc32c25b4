"""What the gateway is told: addresses, files and limits. No secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from domain.webhooks.rate_limit import Rate


@dataclass(frozen=True)
class Limits:
    """How much the gateway takes, and how long it takes for it."""

    body_bytes: int = 4 * 1024 * 1024
    """GitLab tells 20 commits at most, with the paths that each touched."""
    answer_seconds: float = 8.0
    """GitLab gives up after 10."""
    body_seconds: float = 4.0
    secrets_seconds: float = 4.0
    source_rate: Rate = field(default_factory=lambda: Rate(per_second=500, burst=2000))
    """Of one address; all projects of one GitLab come from one."""
    project_rate: Rate = field(default_factory=lambda: Rate(per_second=20, burst=200))
    """Of one project, once it is proved to be that."""
    lookup_rate: Rate = field(default_factory=lambda: Rate(per_second=20, burst=300))
    """Of one address: projects whose secrets are not at hand, known or not."""
    connections: int = 1000


@dataclass(frozen=True)
class Settings:
    """One gateway."""

    environment: str
    host: str
    port: int
    certificate_file: str
    key_file: str
    directory: Path
    """Where the embedded store lies."""
    store_credential: str = ""
    """OpenBao path of a PostgreSQL login, if the store is there and not embedded."""
    is_dispatching: bool = True
    limits: Limits = field(default_factory=Limits)


def gitlab_secrets_path(environment: str, project_id: int) -> str:
    """Return the OpenBao path of a project's webhook secrets."""
    return f"webhooks/{environment}/gitlab/{project_id}"


def alertmanager_secrets_path(environment: str) -> str:
    """Return the OpenBao path of Alertmanager's credential: token, or username and password."""
    return f"webhooks/{environment}/alertmanager"
