"""Files and commands on the hosts that hold a secret.

Why it exists: certificates, keys and password files lie on hosts, and a host is a shell with root's
rights behind SSH, or this very machine. Promises writes that are whole or absent, content that goes
through standard input and never through a command line, and a new version of several files that is
switched by one link. Refuses a host whose key is not known.

Parameters of a secret: `hosts`, addresses with commas (`local` is this machine); for other hosts
`host_keys_path`, where each address has its public host key, and `ssh_user` (default `infraflows`).
"""

from __future__ import annotations

import shlex
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from blocks.child_process import run_child
from blocks.openbao import OpenBaoSession
from blocks.private_directory import private_directory
from blocks.rotation.secret_parameters import parameters
from blocks.ssh_identity import SshIdentity, make_identity
from domain.errors import NotFound, PermanentError, Unauthorized, Unreachable
from domain.rotation.contract import SecretRef

LOCAL = "local"
COMMAND_SECONDS = 60.0
CERTIFICATE_SECONDS = 1800
"""Within what a role allows as a rule; one that has ended is signed anew."""
ABSENT = 44
SSH_OWN_FAILURE = 255
SSH_PORT = 22
DEFAULT_USER = "infraflows"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

_READ = f'test -e "$1" || exit {ABSENT}; cat -- "$1"'
_WRITE = (
    "set -eu; umask 077; "
    'mkdir -p -- "$(dirname -- "$1")"; '
    't=$(mktemp -- "$1.XXXXXX"); trap \'rm -f -- "$t"\' EXIT; '
    'cat >"$t"; chmod "$2" "$t"; '
    'if test -e "$1"; then chown --reference="$1" -- "$t"; fi; '
    'sync -- "$t"; mv -fT -- "$t" "$1"; trap - EXIT'
)
_POINT = 'set -eu; rm -f -- "$1.next"; ln -s -- "$2" "$1.next"; mv -fT -- "$1.next" "$1"'
_TARGET = f'test -L "$1" || exit {ABSENT}; readlink -- "$1"'
_REMOVE = 'rm -rf -- "$1"'


class Shell(Protocol):
    """Runs one command on one host as root."""

    def __call__(self, command: Sequence[str], content: bytes) -> tuple[int, bytes, str]:
        """Return exit code, output and the last line of complaint."""


class Host:
    """One host that holds files of a secret."""

    def __init__(self, name: str, shell: Shell) -> None:
        """Take the way to run commands there."""
        self.name = name
        self._shell = shell

    def run(self, command: Sequence[str], content: bytes = b"") -> bytes:
        """Run a command to its end and return its output.

        Raises:
            PermanentError: it failed; its own last words are told. Unreachable, Unauthorized.
        """
        code, output, complaint = self._shell(command, content)
        if code != 0:
            raise PermanentError(
                f"Unable to run {command[0]} on {self.name}: it ended with {code}: {complaint}. "
                "Run it there by hand."
            )
        return output

    def read(self, path: str) -> bytes:
        """Return a file's content.

        Raises:
            NotFound: there is no such file.
        """
        return self._script("read", path, _READ)

    def write(self, path: str, content: bytes, mode: int) -> None:
        """Write a file, whole or not at all; an existing one keeps its owner."""
        self._script("write", path, _WRITE, f"{mode:o}", content=content)

    def point(self, link: str, target: str) -> None:
        """Let a link point to `target`, in one step."""
        self._script("switch", link, _POINT, target)

    def target(self, link: str) -> str:
        """Return where a link points to.

        Raises:
            NotFound: there is no such link.
        """
        return self._script("read the link", link, _TARGET).decode().strip()

    def remove(self, path: str) -> None:
        """Remove a file or directory; what is absent is fine."""
        self._script("remove", path, _REMOVE)

    def _script(
        self, act: str, path: str, script: str, *arguments: str, content: bytes = b""
    ) -> bytes:
        command = ["sh", "-c", script, "sh", path, *arguments]
        code, output, complaint = self._shell(command, content)
        if code == ABSENT:
            raise NotFound(f"Unable to {act} {path} on {self.name}: it does not exist.")
        if code != 0:
            raise PermanentError(
                f"Unable to {act} {path} on {self.name}: {complaint}. Look at its directory."
            )
        return output


HostsOf = Callable[[SecretRef], Sequence[Host]]


def _run(command: Sequence[str], content: bytes) -> tuple[int, bytes, str]:
    ended = run_child(
        command,
        environment=_ENVIRONMENT,
        directory=Path("/"),
        timeout_seconds=COMMAND_SECONDS,
        stdin=content,
    )
    lines = ended.complaint.strip().splitlines()
    return ended.exit_code, ended.output, lines[-1][:200] if lines else "no message"


def local_host() -> Host:
    """Return this machine."""
    return Host(LOCAL, _run)


def ssh_run(
    identity: SshIdentity, user: str, address: str, port: int, command: str, content: bytes = b""
) -> tuple[int, bytes, str]:
    """Run a command over SSH; return its exit code, output and last complaint.

    Raises:
        Unauthorized: the login was refused, or the host's key is another. Unreachable.
    """
    settings = {
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        # A server that reads its files anew is away for a moment.
        "ConnectionAttempts": "3",
        # Host keys are known by address, whatever the port.
        "HostKeyAlias": address,
        "Port": str(port),
    }
    options = ["-T", *identity.options()]
    for name, value in settings.items():
        options += ["-o", f"{name}={value}"]
    code, output, complaint = _run(["ssh", *options, f"{user}@{address}", command], content)
    if code != SSH_OWN_FAILURE:
        return code, output, complaint
    failed = f"Unable to log in to {user}@{address}: {complaint}."
    if "verification failed" in complaint or "Permission denied" in complaint:
        raise Unauthorized(f"{failed} Check the host's SSH CA and its host key.")
    raise Unreachable(f"{failed} Check the network.")


class Identity(Protocol):
    """Gives the run's own SSH identity."""

    def __call__(self, *, is_fresh: bool) -> SshIdentity:
        """Return it; `is_fresh` has it signed anew."""


def ssh_host(address: str, user: str, identity: Identity) -> Host:
    """Return a host behind SSH, on which `user` may become root."""

    def shell(command: Sequence[str], content: bytes) -> tuple[int, bytes, str]:
        remote = shlex.join(([] if user == "root" else ["sudo", "-n", "--"]) + list(command))
        try:
            return ssh_run(identity(is_fresh=False), user, address, SSH_PORT, remote, content)
        except Unauthorized:
            # The CA that signed it may have been rotated since.
            return ssh_run(identity(is_fresh=True), user, address, SSH_PORT, remote, content)

    return Host(address, shell)


class Hosts:
    """The hosts of secrets, reached with one identity that OpenBao signs for this run."""

    def __init__(self, session: OpenBaoSession) -> None:
        """Sign and read host keys by `session`; nothing is done yet."""
        self._session = session
        self._files = ExitStack()
        self._identities: dict[tuple[str, str], SshIdentity] = {}
        weakref.finalize(self, self._files.close)

    def __call__(self, secret: SecretRef) -> Sequence[Host]:
        """Return the hosts of a secret."""
        (names,) = parameters(secret, "hosts")
        return [self._host(secret, name.strip()) for name in names.split(",") if name.strip()]

    def _host(self, secret: SecretRef, name: str) -> Host:
        if name == LOCAL:
            return local_host()
        user = secret.parameters.get("ssh_user", DEFAULT_USER)

        def identity(*, is_fresh: bool) -> SshIdentity:
            return self._identity(secret, user, is_fresh)

        return ssh_host(name, user, identity)

    def _identity(self, secret: SecretRef, user: str, is_fresh: bool) -> SshIdentity:
        (path,) = parameters(secret, "host_keys_path")
        if is_fresh or (path, user) not in self._identities:
            keys: Mapping[str, str] = self._session.read(path)
            directory = self._files.enter_context(private_directory("rotate"))
            role = self._session.server.ssh_role

            def sign(public_key: str) -> str:
                return self._session.sign_ssh_key(role, public_key, [user], CERTIFICATE_SECONDS)

            self._identities[path, user] = make_identity(directory, sign, keys, "rotation")
        return self._identities[path, user]


def command_of(secret: SecretRef, name: str, default: str) -> list[str]:
    """Return a command of the policy file as its words; no shell reads it."""
    return shlex.split(secret.parameters.get(name) or default)
