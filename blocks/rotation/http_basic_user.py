"""Users of an HTTP server's password file, as NGINX and Apache read it at each request.

Why it exists: much that is served over HTTP, Git repositories among it, knows its users from such a
file. Promises two user names that take turns, so that both passwords work for a time, and a file
that is replaced whole and keeps what others wrote. Refuses short-cuts in hashing: SHA-512 crypt.

Parameters: `hosts` and how to reach them (see `hosts`), `password_file`, `user` (the first part of
the names), `test_url`; `ca_file` of its server.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Sequence

import httpx

from blocks.rotation.classes import RotationClass
from blocks.rotation.hosts import Host, Hosts, HostsOf, local_host
from blocks.rotation.secret_parameters import parameters
from domain.errors import Conflict, NotFound, PolicyViolation, Unauthorized, Unreachable
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "http-basic-user"
PASSWORD_BYTES = 32
TIMEOUT_SECONDS = 15.0
TURNS = ("-a", "-b")
FILE_MODE = 0o640


class HttpBasicUser:
    """Users of password files on hosts."""

    kind = KIND
    has_overlap = True

    def __init__(self, hosts: HostsOf) -> None:
        """Take the way to a secret's hosts."""
        self._hosts = hosts

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a password for the user whose turn it is; no host knows it yet."""
        base = parameters(secret, "user")[0]
        held = "" if current is None else current["username"]
        name = base + (TURNS[1] if held == base + TURNS[0] else TURNS[0])
        return {"username": name, "password": secrets.token_urlsafe(PASSWORD_BYTES)}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Add the user to the file of every host."""
        if current is not None and current["username"] == new["username"]:
            raise Conflict(
                f"Unable to add {new['username']} for {secret.path}: it is the one in use."
            )
        entry = f"{new['username']}:{_hashed(new['password'])}"
        self._edit(secret, lambda lines: [*_without(lines, new["username"]), entry])

    def test(self, secret: SecretRef, new: Values) -> None:
        """Ask the server as the new user."""
        status = _status(secret, new)
        if status in (401, 403):
            raise Unauthorized(
                f"Unable to use the new user {new['username']} of {secret.path}: HTTP {status}. "
                "Check which password file the server reads."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Return nothing: the file does not tell who uses it."""
        return ()

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Take the user out of the file of every host."""
        self._edit(secret, lambda lines: _without(lines, old["username"]))

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Ask the server as the old user."""
        status = _status(secret, old)
        method = f"request as {old['username']}"
        return Proof(status in (401, 403), method, f"HTTP {status}")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Take the new user out again."""
        if current is None or current["username"] != new["username"]:
            self.revoke(secret, new)

    def _edit(self, secret: SecretRef, change: Callable[[list[str]], list[str]]) -> None:
        (path,) = parameters(secret, "password_file")
        for host in self._hosts(secret):
            lines = _lines(host, path)
            changed = change(lines)
            if changed != lines:
                host.write(path, "".join(f"{line}\n" for line in changed).encode(), FILE_MODE)


def _lines(host: Host, path: str) -> list[str]:
    try:
        return host.read(path).decode().splitlines()
    except NotFound:
        raise NotFound(
            f"Unable to read the password file {path} on {host.name}: it does not exist. Make it "
            "with the owner that the server needs."
        ) from None


def _without(lines: list[str], user: str) -> list[str]:
    return [line for line in lines if line.partition(":")[0] != user]


def _hashed(password: str) -> str:
    output = local_host().run(["openssl", "passwd", "-6", "-stdin"], password.encode() + b"\n")
    return output.decode().strip()


def _status(secret: SecretRef, values: Values) -> int:
    (url,) = parameters(secret, "test_url")
    if not url.startswith("https://"):
        raise PolicyViolation(
            f"Unable to send a password of {secret.path} to {url}: it is not HTTPS. Correct "
            "test_url."
        )
    try:
        answer = httpx.get(
            url,
            auth=(values["username"], values["password"]),
            verify=ssl.create_default_context(cafile=secret.parameters.get("ca_file")),
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        kind = type(error).__name__
        raise Unreachable(f"Unable to reach {url}: {kind}. Check the server.") from None
    return answer.status_code


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: HttpBasicUser(Hosts(site.session)),
    has_overlap=True,
    observed="not told by the server; by OpenBao's audit log",
    proved_dead="request as the old user: 401",
    parameters=("hosts", "password_file", "user", "test_url"),
    is_observed_by_reads=True,
    optional=("quiet_seconds", "ca_file", "host_keys_path", "ssh_user"),
)
"""How the registry knows it."""
