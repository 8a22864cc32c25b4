"""One command on one machine over SSH, and waiting until machines take SSH connections.

Promises a deadline on both, and errors that name the machine and never what the command printed
to its standard output: that may be a secret which the caller asked for.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterable

from blocks.ssh_identity import SshIdentity
from domain.errors import PermanentError, Unauthorized, Unreachable

SSH_PORT = 22
POLL_SECONDS = 0.25
SSH_OWN_FAILURE = 255


def wait_for_ssh(addresses: Iterable[str], deadline_seconds: float) -> None:
    """Return when every address takes a connection and greets as an SSH server.

    Raises:
        PermanentError: naming all the addresses that did not until the deadline. Waiting was the
            retry: to wait again as often as for a hiccup would hold an operator for a quarter hour.
    """
    until = time.monotonic() + deadline_seconds
    missing = sorted(set(addresses))
    while True:
        missing = [address for address in missing if not _greets(address)]
        if not missing:
            return
        if time.monotonic() > until:
            raise PermanentError(
                f"Unable to reach {', '.join(missing)} by SSH within {deadline_seconds:.0f} s: no "
                "SSH server answers. Look at the machines' consoles and at the network."
            )
        time.sleep(POLL_SECONDS)


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, SSH_PORT), timeout=2) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def run_command(
    identity: SshIdentity, user: str, address: str, command: str, deadline_seconds: float = 30
) -> str:
    """Return what `command` prints on the machine at `address`."""
    target = f"{user}@{address}"
    argv = ["ssh", "-T", *identity.options(), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    try:
        ended = subprocess.run(
            [*argv, target, command],
            capture_output=True,
            text=True,
            timeout=deadline_seconds,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"Unable to run a command on {target}: no end within {deadline_seconds:.0f} s. "
            "Look at the machine's load and network."
        ) from None
    if ended.returncode == 0:
        return ended.stdout
    cause = ended.stderr.strip().splitlines()[-1][:200] if ended.stderr.strip() else "no message"
    if ended.returncode != SSH_OWN_FAILURE:
        raise PermanentError(
            f"Unable to run a command on {target}: it ended with {ended.returncode}: {cause}. "
            "Run it there by hand."
        )
    if "verification failed" in cause or "Permission denied" in cause:
        raise Unauthorized(
            f"Unable to log in to {target}: {cause} Check the machine's SSH CA and its host key."
        )
    raise Unreachable(f"Unable to reach {target} by SSH: {cause} Check the network.")
