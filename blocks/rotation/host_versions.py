"""Versions of files that belong together on a host, switched by one link.

Why it exists: a service that finds a new certificate beside an old key does not start. Promises
that `<directory>/current` always leads to files of one version, that a service which refuses a
version is pointed back before the error is told, and that old versions are removed by name only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blocks.rotation.hosts import Host
from domain.errors import NotFound, PermanentError

LINK = "current"
PRIVATE = 0o600


def switch(
    host: Host,
    directory: str,
    version: str,
    files: Mapping[str, str],
    check: Sequence[str],
    reload: Sequence[str],
) -> None:
    """Write a version's files, point the link to them and have the service read them.

    Raises:
        PermanentError: the service refuses them; the link points where it did before.
    """
    for name, content in files.items():
        host.write(f"{directory}/{version}/{name}", content.encode(), PRIVATE)
    link = f"{directory}/{LINK}"
    try:
        before = host.target(link)
    except NotFound:
        before = ""
    host.point(link, version)
    try:
        host.run(check)
    except PermanentError:
        if before and before != version:
            host.point(link, before)
        raise
    host.run(reload)


def remove(host: Host, directory: str, version: str) -> None:
    """Remove a version's files, unless the link leads to them."""
    try:
        is_current = host.target(f"{directory}/{LINK}") == version
    except NotFound:
        is_current = False
    if not is_current:
        host.remove(f"{directory}/{version}")
