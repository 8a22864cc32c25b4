"""Where things lie in the infrastructure's Git repository.

Promises one place per cluster, so that removing a cluster is removing a directory. Refuses paths
that leave that directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from domain.errors import InvalidSpec


@dataclass(frozen=True)
class RepositoryLocation:
    """What may be told about the repository: its address holds no credential."""

    url: str
    branch: str


def cluster_directory(cluster: str) -> str:
    """Return the directory of everything about one cluster."""
    return f"clusters/{cluster}"


def platform_directory(cluster: str) -> str:
    """Return the directory of the manifests that are applied to one cluster."""
    return f"{cluster_directory(cluster)}/platform"


def inventory_path(cluster: str) -> str:
    """Return the file of one cluster's Ansible inventory."""
    return f"{cluster_directory(cluster)}/inventory.yaml"


def checked_path(path: str) -> str:
    """Return `path` if it is a relative path that stays inside the repository.

    Raises:
        InvalidSpec: it is absolute, climbs up, or touches Git's own directory.
    """
    parts = PurePosixPath(path).parts
    bad = (
        not parts
        or path.startswith("/")
        or "\\" in path
        or any(part in ("..", "~") or part.lower() == ".git" for part in parts)
        or any(ord(letter) < 32 for letter in path)
    )
    if bad:
        raise InvalidSpec(
            "the repository's files", [f"{path!r}: leaves the repository. Use a relative path"]
        )
    return str(PurePosixPath(path))
