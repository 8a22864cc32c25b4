"""What a project's deliveries are verified with, read from OpenBao as the gateway reads it.

Exists because a signing key is replaced while deliveries come in. Beside a project's path lies,
during a replacement only, what goes before it: the new key, and the old one as long as both count.
"""

from __future__ import annotations

from collections.abc import Mapping

from blocks.openbao import OpenBaoSession
from domain.errors import NotFound


def replacement_path(path: str) -> str:
    """Return where the keys of a replacement lie."""
    return f"{path}/replacement"


def read_webhook_secrets(bao: OpenBaoSession, path: str) -> Mapping[str, str]:
    """Return the values that count now.

    Raises:
        NotFound: the project is not connected.
    """
    values = bao.read(path)
    try:
        replacing = bao.read(replacement_path(path))
    except NotFound:
        return values
    return {**values, "previous": "", **replacing}


def delete_webhook_secrets(bao: OpenBaoSession, path: str) -> None:
    """Remove both; what is absent is a success."""
    bao.delete(replacement_path(path))
    bao.delete(path)
