"""A kubeconfig as RKE2 writes it on a server, made useful elsewhere.

Why it exists: the file names the server's loop-back address and calls everything `default`.
Promises the same credentials under the cluster's name and its virtual address. Refuses a text
that does not have RKE2's form, and never repeats any of it in an error: it holds a private key.
"""

from __future__ import annotations

import re

from domain.errors import PermanentError

_SERVER = re.compile(r"^(?P<indent>\s+)server:\s*['\"]?https://[^\s'\"]+?:(?P<port>\d+)['\"]?\s*$")
_NAMED = re.compile(r"^(?P<before>\s*-?\s*(?:name|cluster|user|current-context):\s*)default\s*$")


def rewrite_kubeconfig(text: str, address: str, name: str = "default") -> str:
    """Return the kubeconfig with the API at `address` and the context called `name`.

    Raises:
        PermanentError: the text does not name exactly one API server, or no credentials.
    """
    lines: list[str] = []
    servers = 0
    for line in text.splitlines():
        server = _SERVER.match(line)
        named = _NAMED.match(line)
        if server:
            servers += 1
            line = f"{server['indent']}server: https://{address}:{server['port']}"
        elif named:
            line = f"{named['before']}{name}"
        lines.append(line)
    if servers != 1:
        raise PermanentError(
            f"Unable to use the server's kubeconfig: it names {servers} API servers instead of 1. "
            "Check that RKE2 is up on the first server."
        )
    missing = [
        field
        for field in ("certificate-authority-data", "client-certificate-data", "client-key-data")
        if not re.search(rf"^\s+{field}:\s*\S", text, re.MULTILINE)
    ]
    if missing:
        raise PermanentError(
            f"Unable to use the server's kubeconfig: it has no {', '.join(missing)}. "
            "Check that RKE2 is up on the first server."
        )
    return "\n".join(lines) + "\n"
