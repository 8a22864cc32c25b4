"""OpenBao's database and PKI engines, as far as applications need them.

Promises that absence is None, that deleting what is absent succeeds, and that a certificate's
private key is returned once, to be stored at once, and never told in an error.
Refuses connections and certificate authorities: those are the administrator's.
API: https://openbao.org/api-docs/secret/databases/, https://openbao.org/api-docs/secret/pki/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from blocks.openbao import OpenBaoSession
from domain.errors import NotFound

COMMON_NAME_LENGTH = 64


class DatabaseEngine:
    """The roles that make short-lived users, at one mount."""

    def __init__(self, session: OpenBaoSession, mount: str) -> None:
        """Speak by `session` of the engine at `mount`."""
        self._session = session
        self._mount = mount

    def issuer(self, server: str) -> str:
        """Return the user by which the engine makes others.

        Raises:
            NotFound: the administrator has not made the connection.
        """
        path = f"{self._mount}/config/{server}"
        found = self._session.call("read the database connection", "GET", path)["data"]
        return str((found.get("connection_details") or {}).get("username") or "")

    def role(self, name: str) -> dict[str, Any] | None:
        """Return a role."""
        path = f"{self._mount}/roles/{name}"
        try:
            return dict(self._session.call("read the database role", "GET", path)["data"])
        except NotFound:
            return None

    def set_role(self, name: str, fields: Mapping[str, Any]) -> None:
        """Write a role."""
        path = f"{self._mount}/roles/{name}"
        self._session.call("write the database role", "POST", path, fields)

    def delete_role(self, name: str) -> None:
        """Remove a role; the users that it made live on until they are revoked."""
        try:
            path = f"{self._mount}/roles/{name}"
            self._session.call("delete the database role", "DELETE", path)
        except NotFound:
            return

    def revoke_users(self, name: str) -> None:
        """End every user that a role made, and wait for it; no users is a success."""
        path = f"sys/leases/revoke-prefix/{self._mount}/creds/{name}"
        self._session.call("revoke the users of", "PUT", path, {"sync": True})


@dataclass(frozen=True)
class IssuedCertificate:
    """A certificate with its chain and key, as PEM."""

    chain: str
    key: str = field(repr=False)


class CertificateEngine:
    """One role of a PKI engine."""

    def __init__(self, session: OpenBaoSession, mount: str, role: str) -> None:
        """Speak by `session` of the engine at `mount`."""
        self._session = session
        self._mount = mount
        self._role = role

    def issue(self, names: Sequence[str]) -> IssuedCertificate:
        """Return a new certificate for host names; one that is lost is one that nobody has."""
        body: dict[str, Any] = {"alt_names": ",".join(names), "private_key_format": "pkcs8"}
        common = next((name for name in names if len(name) <= COMMON_NAME_LENGTH), "")
        if common:
            body["common_name"] = common
        path = f"{self._mount}/issue/{self._role}"
        data = self._session.call("issue a certificate by", "POST", path, body)["data"]
        chain = [data["certificate"], *(data.get("ca_chain") or [data["issuing_ca"]])]
        text = "".join(f"{str(part).strip()}\n" for part in chain)
        return IssuedCertificate(text, f"{str(data['private_key']).strip()}\n")

    def revoke(self, serial: str) -> None:
        """Revoke a certificate that this engine issued; another's is left to its issuer."""
        try:
            # The certificates of an engine are public: this needs no right.
            path = f"{self._mount}/cert/{serial}"
            self._session.call("read the certificate", "GET", path)
        except NotFound:
            return
        path = f"{self._mount}/revoke"
        self._session.call("revoke a certificate by", "POST", path, {"serial_number": serial})


@dataclass(frozen=True)
class CertificateFacts:
    """What a chain and a key say; nothing of it is secret."""

    serial: str
    names: tuple[str, ...]
    begins: datetime
    ends: datetime
    is_whole: bool
    """The key is the certificate's, and the next in the chain signed it."""

    def has_left(self, now: datetime) -> float:
        """Return the part of the life that is left: 1 when new, 0 or less when it is over."""
        return (self.ends - now) / (self.ends - self.begins)


def certificate_facts(chain: bytes, key: bytes) -> CertificateFacts | None:
    """Read a chain and its key as they are stored; None when they cannot be read."""
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        private = serialization.load_pem_private_key(key, None)
        leaf = certificates[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, IndexError, x509.ExtensionNotFound):
        return None
    kind = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    is_own = private.public_key().public_bytes(*kind) == leaf.public_key().public_bytes(*kind)
    return CertificateFacts(
        serial=_colons(leaf.serial_number),
        names=tuple(sorted(str(name) for name in names.get_values_for_type(x509.DNSName))),
        begins=leaf.not_valid_before_utc,
        ends=leaf.not_valid_after_utc,
        is_whole=is_own and _is_signed(certificates),
    )


def _is_signed(certificates: Sequence[x509.Certificate]) -> bool:
    if len(certificates) < 2:
        return False
    try:
        certificates[0].verify_directly_issued_by(certificates[1])
    except Exception:  # the library raises what each kind of key raises
        return False
    return True


def _colons(serial: int) -> str:
    text = f"{serial:x}"
    text = "0" * (len(text) % 2) + text
    return ":".join(text[at : at + 2] for at in range(0, len(text), 2))


def now() -> datetime:
    """Return the time by which certificates are judged."""
    return datetime.now(UTC)
