"""The key that a run shows to machines, and the machines that it believes.

Promises a key pair made for one act, an OpenBao-signed certificate that ends by itself, and a
`known_hosts` file that holds exactly the host keys that came over a trusted channel. Refuses to
connect to a machine whose key is not known: there is no "accept new".
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from blocks.private_directory import write_private
from domain.errors import InvalidSpec, PermanentError

KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)

ALIVE_EVERY_SECONDS = 5
ALIVE_UNANSWERED = 6
"""A machine that does not answer for this many intervals (30 s) counts as unreachable."""


@dataclass(frozen=True)
class SshIdentity:
    """Files of one identity, all below one private directory."""

    private_key: Path
    certificate: Path
    known_hosts: Path

    def options(self) -> list[str]:
        """Return the options for `ssh` that use this identity and nothing of the user's own."""
        settings = {
            "IdentityFile": self.private_key,
            "CertificateFile": self.certificate,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "ForwardAgent": "no",
            # A machine that hangs sends no reset: without questions to it, `ssh` waits for ever.
            "ServerAliveInterval": ALIVE_EVERY_SECONDS,
            "ServerAliveCountMax": ALIVE_UNANSWERED,
        }
        options = ["-F", "/dev/null"]
        for name, value in settings.items():
            options += ["-o", f"{name}={value}"]
        return options


def known_hosts_lines(host_keys: Mapping[str, str]) -> list[str]:
    """Return `known_hosts` lines for public keys by address, each checked for its form."""
    lines, problems = [], []
    for address, key in sorted(host_keys.items()):
        parts = key.split()
        if len(parts) < 2 or parts[0] not in KEY_TYPES or "\n" in key.strip():
            problems.append(f"{address}: is not a public host key in OpenSSH's form. Read it again")
            continue
        try:
            lines.append(f"{ip_address(address)} {parts[0]} {parts[1]}")
        except ValueError:
            problems.append(f"{address}: is not an address. Give each key the machine's address")
    if problems:
        raise InvalidSpec("the machines' host keys", problems)
    return lines


def make_identity(
    directory: Path,
    sign: Callable[[str], str],
    host_keys: Mapping[str, str],
    comment: str = "infraflows",
) -> SshIdentity:
    """Make an Ed25519 key in `directory`, have it signed, and write what `ssh` needs beside it.

    `sign` takes the public key and returns the certificate; the private key never leaves the
    directory.
    """
    lines = known_hosts_lines(host_keys)
    key = directory / "id"
    try:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except FileNotFoundError as error:
        raise PermanentError(
            "Unable to make an SSH key: ssh-keygen is not installed. Install openssh-client."
        ) from error
    except subprocess.CalledProcessError as error:
        raise PermanentError(
            f"Unable to make an SSH key: ssh-keygen ended with {error.returncode}: "
            f"{error.stderr.strip()[:200]}. Check the private directory."
        ) from error
    certificate = sign(key.with_suffix(".pub").read_text().strip()).strip()
    if "-cert-v01@openssh.com " not in certificate:
        raise PermanentError(
            "Unable to use the SSH certificate: what was signed is not an OpenSSH certificate. "
            "Check the role of OpenBao's SSH engine."
        )
    return SshIdentity(
        private_key=key,
        certificate=write_private(directory / "id-cert.pub", certificate + "\n"),
        known_hosts=write_private(directory / "known_hosts", "".join(f"{x}\n" for x in lines)),
    )
