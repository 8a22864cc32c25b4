"""Host keys of OpenSSH servers with certificates of OpenBao's SSH engine.

Why it exists: clients trust a host by the CA, so its key may change at any time. Promises key and
certificate switched together, the certificate read from a handshake before the old one counts as
replaced, and the old one on a revocation list (KRL) that clients fetch. Refuses one key for several
hosts. A server that reads its files anew is away for a moment: clients set ConnectionAttempts.
API: https://openbao.org/api-docs/secret/ssh/

Parameters: `role` (for host certificates), `principals`, names of the host with commas; `mount`
(default `ssh`), `ttl`; `hosts`, one address, and how to reach it (see `hosts`); `directory`, below
which `current/key` and `current/key-cert.pub` are what sshd is configured with; `port` (default
22); `krl_path`, where the list lies (`krl`, base64); `check` and `reload`, commands.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import SSHCertificate, load_ssh_public_identity
from cryptography.hazmat.primitives.serialization.ssh import SSHCertificateType

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from blocks.private_directory import private_directory, write_private
from blocks.rotation import host_versions
from blocks.rotation.classes import RotationClass
from blocks.rotation.hosts import LOCAL, Host, Hosts, HostsOf, command_of
from blocks.rotation.secret_parameters import parameters
from domain.errors import InvalidSpec, PermanentError, Unreachable
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "ssh-host-certificate"
SCAN_SECONDS = 15
CHECK = "sshd -t"
RELOAD = "systemctl reload ssh"
CERTIFICATE_TYPE = "ssh-ed25519-cert-v01@openssh.com"


class SshHostCertificate:
    """Host keys that one OpenBao certifies."""

    kind = KIND
    has_overlap = True

    def __init__(self, session: OpenBaoSession, hosts: HostsOf) -> None:
        """Sign by `session`, serve on the hosts."""
        self._session = session
        self._versions = VersionedSecrets(session)
        self._hosts = hosts

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a key and have it certified.

        One that was made by a killed run has a key that nobody kept: it can harm no one.
        """
        role, principals = parameters(secret, "role", "principals")
        with private_directory("hostkey") as directory:
            key = directory / "key"
            keygen(["-q", "-t", "ed25519", "-N", "", "-C", secret.path, "-f", str(key)])
            private, public = key.read_text(), (directory / "key.pub").read_text().strip()
        body = {"public_key": public, "cert_type": "host", "valid_principals": principals}
        if secret.parameters.get("ttl"):
            body["ttl"] = secret.parameters["ttl"]
        path = f"{_mount(secret)}/sign/{role}"
        data = self._session.call("certify a host key by", "POST", path, body)["data"]
        return {
            "private_key": private,
            "public_key": public,
            "certificate": str(data["signed_key"]).strip(),
            "serial": str(data["serial_number"]),
        }

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Nothing to do: whoever trusts the CA accepts both certificates."""

    def test(self, secret: SecretRef, new: Values) -> None:
        """See that the certificate is a host's, names it and is of its key."""
        (principals,) = parameters(secret, "principals")
        certificate = _certificate(new)
        certificate.verify_cert_signature()
        named = {name.decode() for name in certificate.valid_principals}
        missing = {name.strip() for name in principals.split(",")} - named
        if certificate.type is not SSHCertificateType.HOST or missing:
            raise PermanentError(
                f"Unable to use the new certificate of {secret.path}: it is no host certificate "
                f"for {principals}. Correct the role in OpenBao's SSH engine."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Give the files to the host and have sshd read them."""
        (directory,) = parameters(secret, "directory")
        files = {
            "key": new["private_key"],
            "key.pub": new["public_key"] + "\n",
            "key-cert.pub": new["certificate"] + "\n",
        }
        check = command_of(secret, "check", CHECK)
        reload = command_of(secret, "reload", RELOAD)
        host_versions.switch(self._host(secret), directory, _version(new), files, check, reload)

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Read the certificate from a handshake."""
        where = f"{self._host(secret).name}:{_port(secret)}"
        shown = self._shown(secret)
        if not shown:
            return [Seen(where, None, "no SSH server with a host certificate answers")]
        return [Seen(where, _blob(new) in shown, f"shows {len(shown)} certificate(s)")]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Put the certificate on the revocation list and remove the key from the host."""
        self._add_to_list(secret, old)
        (directory,) = parameters(secret, "directory")
        host_versions.remove(self._host(secret), directory, _version(old))

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Ask the list as a client does, and see that the host shows another certificate."""
        method = "query of the KRL, handshake with the host"
        if _blob(old) in self._shown(secret):
            return Proof(False, method, "the host shows it")
        is_revoked = self._is_revoked(secret, old)
        return Proof(is_revoked, method, "revoked" if is_revoked else "not on the KRL")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Show the current certificate again, then revoke the new one."""
        if current is not None:
            self.distribute(secret, current)
            if _blob(current) not in self._shown(secret):
                raise Unreachable(
                    f"Unable to see the former host certificate of {secret.path} yet. It may "
                    "pass: try again."
                )
        self.revoke(secret, new)

    # --- parts -------------------------------------------------------------------------------

    def _host(self, secret: SecretRef) -> Host:
        hosts = self._hosts(secret)
        if len(hosts) != 1:
            raise InvalidSpec(
                f"the secret {secret.path}",
                [f"hosts: a host key is of one host, not of {len(hosts)}. Make one secret each"],
            )
        return hosts[0]

    def _shown(self, secret: SecretRef) -> frozenset[str]:
        """Return the certificates that the host shows, as base64."""
        name = self._host(secret).name
        address = "127.0.0.1" if name == LOCAL else name
        options = ["-c", "-t", "ed25519", "-T", str(SCAN_SECONDS), "-p", str(_port(secret))]
        try:
            done = subprocess.run(
                ["ssh-keyscan", *options, address],
                capture_output=True,
                text=True,
                timeout=SCAN_SECONDS * 3,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return frozenset()
        words = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
        return frozenset(parts[-1] for parts in words if CERTIFICATE_TYPE in parts)

    def _add_to_list(self, secret: SecretRef, values: Values) -> None:
        (path,) = parameters(secret, "krl_path")
        found = self._versions.read(path)
        held = (found.values or {}).get("krl", "")
        with private_directory("krl") as directory:
            krl = directory / "krl"
            if held:
                krl.write_bytes(base64.b64decode(held))
            certificate = write_private(directory / "old-cert.pub", values["certificate"] + "\n")
            keygen(["-q", "-k", *(["-u"] if held else []), "-f", str(krl), str(certificate)])
            changed = base64.b64encode(krl.read_bytes()).decode()
        if not self._is_revoked(secret, values):
            self._versions.write(path, {**(found.values or {}), "krl": changed}, found.version)

    def _is_revoked(self, secret: SecretRef, values: Values) -> bool:
        (path,) = parameters(secret, "krl_path")
        held = (self._versions.read(path).values or {}).get("krl")
        if not held:
            return False
        with private_directory("krl") as directory:
            krl = directory / "krl"
            krl.write_bytes(base64.b64decode(held))
            certificate = write_private(directory / "old-cert.pub", values["certificate"] + "\n")
            done = subprocess.run(
                ["ssh-keygen", "-Q", "-f", str(krl), str(certificate)],
                capture_output=True,
                timeout=30,
                check=False,
            )
        return done.returncode == 1 and b"REVOKED" in done.stdout


def keygen(arguments: Sequence[str]) -> None:
    """Run ssh-keygen.

    Raises:
        PermanentError: it is not installed or refuses.
    """
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        raise PermanentError(
            "Unable to run ssh-keygen: it is not installed. Install openssh-client."
        ) from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["no message"]
        raise PermanentError(
            f"Unable to run ssh-keygen {arguments[0]}: {words[-1][:200]}. Check the directory "
            f"{Path(arguments[-1]).parent}."
        )


def _mount(secret: SecretRef) -> str:
    return secret.parameters.get("mount", "ssh")


def _port(secret: SecretRef) -> int:
    return int(secret.parameters.get("port", "22"))


def _version(values: Values) -> str:
    return f"s{values['serial']}"


def _blob(values: Values) -> str:
    return values["certificate"].split()[1]


def _certificate(values: Values) -> SSHCertificate:
    found = load_ssh_public_identity(values["certificate"].encode())
    if not isinstance(found, SSHCertificate):
        raise PermanentError("Unable to use an SSH certificate: it is a bare key. Sign it again.")
    return found


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: SshHostCertificate(site.session, Hosts(site.session)),
    has_overlap=True,
    observed="SSH handshake with the host: the certificate that it shows",
    proved_dead="on the KRL, the host shows another certificate",
    parameters=("role", "principals", "hosts", "directory", "krl_path"),
    optional=("mount", "ttl", "host_keys_path", "ssh_user", "port", "check", "reload"),
)
"""How the registry knows it."""
