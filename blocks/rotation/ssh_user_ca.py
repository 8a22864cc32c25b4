"""The CA of OpenBao's SSH engine whose user certificates hosts accept.

Why it exists: user certificates end by themselves, the CA behind them does not. Promises that hosts
trust both CAs for as long as a certificate of the old one may live, that a real login with the new
one is made on every host before anything is signed by it, and that a login with a fresh certificate
of the old one is refused everywhere before its key is destroyed. Refuses to take the trust away
while certificates of the old CA may still be valid.
API: https://openbao.org/api-docs/secret/ssh/

Parameters: `role` (signs user certificates; its `max_ttl` or `ttl` is how long both are trusted),
`login_user`, who may log in; `mount` (default `ssh`); `hosts` and how to reach them (see `hosts`);
`host_keys_path`, where each address has its public host key; `trusted_file` on the hosts;
`line_prefix` of its lines (as `cert-authority ` in an authorized_keys file); `port` (default 22).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    load_ssh_public_identity,
)

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from blocks.private_directory import private_directory
from blocks.rotation.classes import RotationClass
from blocks.rotation.hosts import LOCAL, Hosts, HostsOf, ssh_run
from blocks.rotation.secret_parameters import parameters
from blocks.rotation.ssh_host_certificate import keygen
from blocks.ssh_identity import make_identity
from domain.errors import Conflict, NotFound, PermanentError, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "ssh-user-ca"
WITNESS_SECONDS = 120
FILE_MODE = 0o644
DEFAULT_TTL_SECONDS = 32 * 86400
"""OpenBao's own bound where a role names none."""


class SshUserCa:
    """User CAs of one OpenBao."""

    kind = KIND
    has_overlap = True

    def __init__(self, session: OpenBaoSession, hosts: HostsOf) -> None:
        """Make CAs by `session`, have them trusted on the hosts."""
        self._session = session
        self._versions = VersionedSecrets(session)
        self._hosts = hosts

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Have OpenBao make a CA; its key never leaves it. One of this name is gone on with."""
        name = f"infraflows-g{generation}"
        if current is not None and current.get("issuer_name") == name:
            name += "b"
        try:
            found = self._issuer(secret, name)
        except (NotFound, PermanentError):
            body = {"generate_signing_key": True, "key_type": "ssh-ed25519", "set_default": False}
            path = f"{_mount(secret)}/issuers/import/{name}"
            self._session.call("make the SSH CA", "POST", path, body)
            found = self._issuer(secret, name)
        return {
            "public_key": str(found["public_key"]).strip(),
            "issuer_id": str(found["issuer_id"]),
            "issuer_name": name,
        }

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Have every host trust the new CA beside the current one."""
        for host in self._hosts(secret):
            self._trust(secret, host.name, added=new, removed=None)

    def test(self, secret: SecretRef, new: Values) -> None:
        """Log in to every host with a certificate of the new CA."""
        refused = self._refusing(secret, new)
        if refused:
            raise Unauthorized(
                f"Unable to log in with the new CA of {secret.path} on {', '.join(refused)}. "
                "Check which file sshd trusts there (TrustedUserCAKeys)."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Have OpenBao sign by the new CA."""
        self._make_default(secret, new["issuer_id"])

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """See who signs, who trusts, and whether certificates of the old CA have ended."""
        role = parameters(secret, "role")[0]
        signer = self._signer(secret)
        seen = [Seen(f"role {role}", signer == _key(new), "what it signs is of the new CA")]
        for host in self._hosts(secret):
            is_trusted = _line(secret, new) in self._lines(secret, host.name)
            seen.append(Seen(f"host {host.name}", is_trusted, "trusts the new CA"))
        if current is not None:
            seen.append(self._ended(secret))
        return seen

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Take the trust away on every host."""
        for host in self._hosts(secret):
            self._trust(secret, host.name, added=None, removed=old)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in to every host with a fresh certificate of the old CA, then destroy the CA."""
        hosts = self._hosts(secret)
        try:
            issuer = self._issuer_of(secret, old)
        except NotFound:
            trusting = [h.name for h in hosts if _line(secret, old) in self._lines(secret, h.name)]
            method = "search for the CA in OpenBao and on the hosts"
            told = f"trusted on {', '.join(trusting)}" if trusting else "it is gone"
            return Proof(not trusting, method, told)
        method = f"login with a fresh certificate of the old CA on {len(hosts)} host(s)"
        refused = self._refusing(secret, {**old, "issuer_id": issuer})
        if len(refused) < len(hosts):
            return Proof(False, method, f"accepted by {len(hosts) - len(refused)}")
        self._session.call("destroy the SSH CA", "DELETE", f"{_mount(secret)}/issuer/{issuer}")
        return Proof(True, method, "Permission denied")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Sign by the current CA again and forget the new one."""
        if current is not None:
            self._make_default(secret, self._issuer_of(secret, current))
        self.revoke(secret, new)
        with suppress(NotFound):
            issuer = self._issuer_of(secret, new)
            path = f"{_mount(secret)}/issuer/{issuer}"
            self._session.call("destroy the SSH CA", "DELETE", path)

    # --- the CAs in OpenBao ------------------------------------------------------------------

    def _issuer(self, secret: SecretRef, reference: str) -> Mapping[str, Any]:
        path = f"{_mount(secret)}/issuer/{reference}"
        answer = self._session.call("read the SSH CA", "GET", path)
        return dict(answer["data"])

    def _issuer_of(self, secret: SecretRef, values: Values) -> str:
        """Return the id of a CA by its public key: an adopted value knows no more.

        Raises:
            NotFound: OpenBao has none with this key.
        """
        answer = self._session.call("list the SSH CAs", "LIST", f"{_mount(secret)}/issuers")
        for identifier in (answer.get("data") or {}).get("keys") or []:
            if _key(self._issuer(secret, str(identifier))) == _key(values):
                return str(identifier)
        raise NotFound(f"Unable to find the SSH CA of {secret.path}: OpenBao has none of its key.")

    def _make_default(self, secret: SecretRef, issuer: str) -> None:
        path = f"{_mount(secret)}/config/issuers"
        self._session.call("choose the SSH CA", "POST", path, {"default": issuer})
        told = self._session.call("read the SSH CA in use", "GET", path)["data"]["default"]
        if told != issuer:
            raise Conflict(
                f"Unable to confirm the SSH CA of {secret.path}: another one is in use than was "
                "chosen. Find the other writer in the audit log, then run again."
            )

    def _role(self, secret: SecretRef) -> dict[str, Any]:
        (name,) = parameters(secret, "role")
        path = f"{_mount(secret)}/roles/{name}"
        return dict(self._session.call("read the SSH role", "GET", path)["data"])

    def _sign(self, secret: SecretRef, role: str, public_key: str) -> str:
        (user,) = parameters(secret, "login_user")
        body = {"public_key": public_key, "valid_principals": user, "cert_type": "user"}
        path = f"{_mount(secret)}/sign/{role}"
        answer = self._session.call("sign an SSH key by", "POST", path, body)
        return str(answer["data"]["signed_key"]).strip()

    def _signer(self, secret: SecretRef) -> str:
        """Return the key of the CA that the role signs by now."""
        (role,) = parameters(secret, "role")
        with private_directory("signer") as directory:
            key = directory / "key"
            keygen(["-q", "-t", "ed25519", "-N", "", "-f", str(key)])
            text = self._sign(secret, role, (directory / "key.pub").read_text().strip())
        certificate = load_ssh_public_identity(text.encode())
        if not isinstance(certificate, SSHCertificate):
            raise PermanentError(f"Unable to read what the role {role} signs. Check its key type.")
        signer = certificate.signature_key()
        return signer.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def _ended(self, secret: SecretRef) -> Seen:
        name = "certificates of the old CA"
        since = self._versions.written_at(secret.path)
        if since is None:
            return Seen(name, None, "it is not known when the new CA was handed out")
        role = self._role(secret)
        lifetime = int(role.get("max_ttl") or role.get("ttl") or DEFAULT_TTL_SECONDS)
        left = lifetime - (datetime.now(UTC) - since).total_seconds()
        return Seen(name, left <= 0, f"may be valid for {max(left, 0):.0f} s")

    # --- the hosts ---------------------------------------------------------------------------

    def _lines(self, secret: SecretRef, name: str) -> list[str]:
        (path,) = parameters(secret, "trusted_file")
        host = next(host for host in self._hosts(secret) if host.name == name)
        try:
            return host.read(path).decode().splitlines()
        except NotFound:
            return []

    def _trust(
        self, secret: SecretRef, name: str, *, added: Values | None, removed: Values | None
    ) -> None:
        (path,) = parameters(secret, "trusted_file")
        host = next(host for host in self._hosts(secret) if host.name == name)
        lines = self._lines(secret, name)
        kept = [line for line in lines if removed is None or _key(removed) not in line]
        if added is not None and _line(secret, added) not in kept:
            kept.append(_line(secret, added))
        if kept != lines:
            host.write(path, "".join(f"{line}\n" for line in kept).encode(), FILE_MODE)

    def _refusing(self, secret: SecretRef, values: Values) -> list[str]:
        """Return the hosts that refuse a certificate which this CA signs now."""
        (user, keys_path) = parameters(secret, "login_user", "host_keys_path")
        role = self._witness_role(secret, values["issuer_id"])
        port = int(secret.parameters.get("port", "22"))
        refused = []
        with private_directory("witness") as directory:
            identity = make_identity(
                directory,
                lambda public_key: self._sign(secret, role, public_key),
                self._session.read(keys_path),
                "rotation-witness",
            )
            for host in self._hosts(secret):
                address = "127.0.0.1" if host.name == LOCAL else host.name
                try:
                    ssh_run(identity, user, address, port, "true")
                except Unauthorized:
                    refused.append(host.name)
        path = f"{_mount(secret)}/roles/{role}"
        self._session.call("remove the SSH role", "DELETE", path)
        return refused

    def _witness_role(self, secret: SecretRef, issuer: str) -> str:
        """Make a role that signs by one CA, for a short time, and for one user."""
        name, user = f"{parameters(secret, 'role')[0]}-rotation", parameters(secret, "login_user")
        body = {
            "key_type": "ca",
            "allow_user_certificates": True,
            "allowed_users": user[0],
            "issuer_ref": issuer,
            "ttl": WITNESS_SECONDS,
            "max_ttl": WITNESS_SECONDS,
        }
        path = f"{_mount(secret)}/roles/{name}"
        self._session.call("make the SSH role", "POST", path, body)
        return name


def _mount(secret: SecretRef) -> str:
    return secret.parameters.get("mount", "ssh")


def _key(values: Mapping[str, Any]) -> str:
    """Return a public key without its comment."""
    return " ".join(str(values["public_key"]).split()[:2])


def _line(secret: SecretRef, values: Values) -> str:
    return f"{secret.parameters.get('line_prefix', '')}{_key(values)}"


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: SshUserCa(site.session, Hosts(site.session)),
    has_overlap=True,
    observed="what the role signs is of the new CA; certificates of the old one have ended",
    proved_dead="login with a fresh certificate of the old CA: permission denied",
    parameters=("role", "login_user", "hosts", "host_keys_path", "trusted_file"),
    optional=("mount", "line_prefix", "port", "ssh_user"),
)
"""How the registry knows it."""
