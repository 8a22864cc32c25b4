"""The token with which servers join an RKE2 cluster, and with which its data is sealed.

Why it exists: whoever holds it may become a server, and a server that starts with an old one does
not come up. Promises one rotation by RKE2 itself, the new token in the file of every server before
the first restart, servers that restart one after the other and only while the others are well, and
the old token refused by every supervisor. There is no overlap: from the rotation on a server that
restarts by itself before its file is written waits for it. The value never stands on a command
line: it goes through standard input. API: https://docs.rke2.io/security/token

Parameters: `hosts`, the servers with commas, and how to reach them (see `hosts`); `token_file`
(default as the product writes it), `data_directory`, `restart`, a command; the value's part is
`server_token`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from blocks.rotation.classes import RotationClass
from blocks.rotation.hosts import Host, Hosts, HostsOf, command_of
from domain.errors import Conflict, LifecycleError, NotFound, PermanentError, Unreachable
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "rke2-server-token"
PART = "server_token"
TOKEN_BYTES = 32
TOKEN_FILE = "/etc/rancher/rke2/server-token"  # noqa: S105 - a path
DATA_DIRECTORY = "/var/lib/rancher/rke2"
RESTART = "systemctl restart rke2-server"
RETURN_SECONDS = 300.0
POLL_SECONDS = 1.0
PRIVATE = 0o600
SUPERVISOR = "https://127.0.0.1:9345/v1-rke2/server-bootstrap"
# The new token comes by standard input and goes on by the environment, which root alone reads.
_ROTATE = 'IFS= read -r RKE2_NEW_TOKEN; export RKE2_NEW_TOKEN; exec "$@"'


class Rke2ServerToken:
    """Server tokens of RKE2 clusters."""

    kind = KIND
    has_overlap = False

    def __init__(self, hosts: HostsOf) -> None:
        """Take the way to a cluster's servers."""
        self._hosts = hosts

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a token; the other parts of the value stay as they are."""
        return {**(current or {}), PART: secrets.token_hex(TOKEN_BYTES)}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """See that the cluster has the token that is about to be replaced, and every server is up.

        Nothing is changed here: RKE2 has one token at a time.
        """
        for host in self._hosts(secret):
            held = self._accepts(secret, host, new) or (
                current is not None and self._accepts(secret, host, current)
            )
            if not held:
                raise Conflict(
                    f"Unable to rotate the token of {secret.path}: {host.name} accepts neither "
                    "the current nor the new one. Write the cluster's token to the path first."
                )

    def test(self, secret: SecretRef, new: Values) -> None:
        """See that the token can be one."""
        if len(new[PART]) < TOKEN_BYTES or ":" in new[PART]:
            raise PermanentError(f"Unable to use the new token of {secret.path}: it is too short.")

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Rotate, write every server's file, and restart the servers that hold the old one."""
        hosts = self._hosts(secret)
        if not any(self._accepts(secret, host, new) for host in hosts):
            command = ["rke2", "token", "rotate"]
            content = new[PART].encode() + b"\n"
            hosts[0].run(["sh", "-c", _ROTATE, "sh", *command], content)
        path = secret.parameters.get("token_file", TOKEN_FILE)
        for host in hosts:
            host.write(path, new[PART].encode() + b"\n", PRIVATE)
        for host in hosts:
            if not self._accepts(secret, host, new):
                host.run(command_of(secret, "restart", RESTART))
                self._wait(secret, host, new)

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Ask every server's supervisor with the new token."""
        seen = []
        for host in self._hosts(secret):
            try:
                is_on_new = self._accepts(secret, host, new)
                seen.append(Seen(f"server {host.name}", is_on_new, "asked its supervisor"))
            except LifecycleError as error:
                seen.append(Seen(f"server {host.name}", None, str(error)))
        return seen

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Nothing to do: the rotation itself has ended the old token."""

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Ask every supervisor with the old token."""
        method = "request to every supervisor as a server with the old token"
        hosts = self._hosts(secret)
        accepting = [host.name for host in hosts if self._accepts(secret, host, old)]
        if accepting:
            return Proof(False, method, f"accepted by {', '.join(accepting)}")
        return Proof(True, method, "HTTP 401")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Rotate back to the current token, when the cluster has the new one."""
        if current is not None:
            self.distribute(secret, current)

    # --- parts -------------------------------------------------------------------------------

    def _accepts(self, secret: SecretRef, host: Host, values: Values) -> bool:
        """Ask a supervisor for what servers alone may have; the token comes by standard input."""
        data = secret.parameters.get("data_directory", DATA_DIRECTORY)
        command = ["curl", "-sS", "--config", "-", "--max-time", "15", "--output", "/dev/null"]
        command += ["--cacert", f"{data}/server/tls/server-ca.crt", "--write-out", "%{http_code}"]
        content = f'user = "server:{values[PART]}"\n'.encode()
        try:
            status = host.run([*command, SUPERVISOR], content).decode().strip()
        except PermanentError as error:
            if isinstance(error, NotFound):
                raise
            raise Unreachable(
                f"Unable to reach the supervisor of {host.name}: it does not answer. Look at "
                "rke2-server there."
            ) from None
        if status not in ("200", "401", "403"):
            raise Unreachable(
                f"Unable to ask the supervisor of {host.name}: HTTP {status}. It may pass."
            )
        return status == "200"

    def _wait(self, secret: SecretRef, host: Host, values: Values) -> None:
        deadline = time.monotonic() + RETURN_SECONDS
        while True:
            try:
                if self._accepts(secret, host, values):
                    return
            except Unreachable:
                pass
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"Unable to see rke2 on {host.name} back within {RETURN_SECONDS:.0f} s. Look "
                    "at its journal."
                )
            time.sleep(POLL_SECONDS)


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: Rke2ServerToken(Hosts(site.session)),
    has_overlap=False,
    observed="every supervisor accepts the new token",
    proved_dead="request to every supervisor as a server with the old token: 401",
    parameters=("hosts",),
    optional=("host_keys_path", "ssh_user", "token_file", "data_directory", "restart"),
)
"""How the registry knows it."""
