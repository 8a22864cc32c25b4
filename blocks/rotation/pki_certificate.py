"""TLS certificates of OpenBao's PKI that a service on hosts serves.

Why it exists: a certificate that was renewed in the store is not yet the one on the wire. Promises
key and certificate switched together, a reload and not a restart, the serial read from a handshake
with every host before the old certificate is revoked, and the revocation read back from the CRL and
from OCSP as any stranger would. Refuses to leave a host on files that its service does not take.
API: https://openbao.org/api-docs/secret/pki/

Parameters: `role`, `common_name`; `mount` (default `pki`), `alt_names`, `ip_sans`, `ttl`; `hosts`
and how to reach them (see `hosts`); `directory`, below which `current/certificate.pem` and
`current/key.pem` are what the service is configured with; `port` (default 443); `check` and
`reload`, commands (default NGINX's).
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from blocks.openbao import OpenBaoSession
from blocks.rotation import host_versions
from blocks.rotation.classes import RotationClass
from blocks.rotation.hosts import LOCAL, Hosts, HostsOf, command_of
from blocks.rotation.secret_parameters import parameters
from domain.errors import NotFound, PermanentError, Unauthorized, Unreachable
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "pki-certificate"
TIMEOUT_SECONDS = 15.0
CHECK = "nginx -t -q"
RELOAD = "systemctl reload nginx"
LOOKS = 8
LOOK_PAUSE_SECONDS = 0.05
"""Of a graceful reload: workers of the former configuration answer a moment longer."""


class PkiCertificate:
    """Certificates of one OpenBao."""

    kind = KIND
    has_overlap = True

    def __init__(self, session: OpenBaoSession, hosts: HostsOf) -> None:
        """Issue and revoke by `session`, serve on the hosts."""
        self._session = session
        self._hosts = hosts

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Issue a certificate with a key of its own.

        One that was issued by a killed run has a key that nobody kept: it can harm no one.
        """
        role, name = parameters(secret, "role", "common_name")
        body = {"common_name": name, "private_key_format": "pkcs8"}
        for option in ("alt_names", "ip_sans", "ttl"):
            if secret.parameters.get(option):
                body[option] = secret.parameters[option]
        path = f"{_mount(secret)}/issue/{role}"
        data = self._session.call("issue a certificate by", "POST", path, body)["data"]
        chain = data.get("ca_chain") or [data["issuing_ca"]]
        return {
            "certificate": str(data["certificate"]).strip() + "\n",
            "private_key": str(data["private_key"]).strip() + "\n",
            "ca_chain": "\n".join(str(part).strip() for part in chain) + "\n",
            "serial": str(data["serial_number"]),
        }

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Nothing to do: whoever trusts the CA accepts both certificates."""

    def test(self, secret: SecretRef, new: Values) -> None:
        """See that key, certificate, issuer, name and time fit together."""
        problems = _problems(new, parameters(secret, "common_name")[0])
        if problems:
            raise PermanentError(
                f"Unable to use the new certificate of {secret.path}: {', '.join(problems)}. "
                "Correct the role in OpenBao's PKI."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Give the files to every host and have its service read them."""
        (directory,) = parameters(secret, "directory")
        files = {
            "certificate.pem": new["certificate"] + new["ca_chain"],
            "key.pem": new["private_key"],
        }
        check = command_of(secret, "check", CHECK)
        reload = command_of(secret, "reload", RELOAD)
        for host in self._hosts(secret):
            host_versions.switch(host, directory, _version(new), files, check, reload)

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Read the serial that each host serves."""
        return [self._seen(secret, host.name, new) for host in self._hosts(secret)]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Revoke the old certificate and remove its files."""
        path = f"{_mount(secret)}/revoke"
        body = {"serial_number": old["serial"]}
        self._session.call("revoke a certificate by", "POST", path, body)
        (directory,) = parameters(secret, "directory")
        for host in self._hosts(secret):
            host_versions.remove(host, directory, _version(old))

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Ask CRL and OCSP, without any login, and see that no host serves it."""
        method = f"CRL and OCSP of {_mount(secret)}, handshakes with the hosts"
        serial = _serial(old)
        for host in self._hosts(secret):
            if self._served(secret, host.name, old) == serial:
                return Proof(False, method, f"{host.name} serves it")
        is_listed = self._is_on_crl(secret, serial)
        status = self._ocsp_status(secret, old)
        answer = f"{'on' if is_listed else 'not on'} the CRL, OCSP says {status}"
        return Proof(is_listed and status == "REVOKED", method, answer)

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Serve the current certificate again, then revoke the new one."""
        if current is not None:
            self.distribute(secret, current)
            wrong = [s for s in self.observe(secret, current, new) if s.is_on_new is False]
            if wrong:
                names = ", ".join(seen.consumer for seen in wrong)
                raise Unreachable(
                    f"Unable to see the former certificate of {secret.path} on {names} yet. "
                    "It may pass: try again."
                )
        self.revoke(secret, new)

    # --- what is served ----------------------------------------------------------------------

    def _seen(self, secret: SecretRef, name: str, new: Values) -> Seen:
        where = f"{name}:{_port(secret)}"
        served = 0
        for look in range(LOOKS):
            time.sleep(LOOK_PAUSE_SECONDS if look else 0.0)
            try:
                served = self._served(secret, name, new)
            except Unreachable as error:
                return Seen(where, None, str(error))
            except Unauthorized as error:
                return Seen(where, False, str(error))
            if served != _serial(new):
                break
        return Seen(where, served == _serial(new), f"serves the serial {_colons(served)}")

    @staticmethod
    def _served(secret: SecretRef, name: str, values: Values) -> int:
        """Return the serial of the certificate on the wire, verified against the issuer."""
        (common_name,) = parameters(secret, "common_name")
        address = ("127.0.0.1" if name == LOCAL else name, _port(secret))
        context = ssl.create_default_context(cadata=values["ca_chain"])
        failed = f"Unable to shake hands with {address[0]}:{address[1]}"
        try:
            with (
                socket.create_connection(address, TIMEOUT_SECONDS) as connection,
                context.wrap_socket(connection, server_hostname=common_name) as wrapped,
            ):
                der = wrapped.getpeercert(binary_form=True)
        except ssl.SSLCertVerificationError as error:
            raise Unauthorized(f"{failed}: {error.verify_message}. See who issued it.") from None
        except OSError as error:
            kind = type(error).__name__
            raise Unreachable(f"{failed}: {kind}. Look at the service's log.") from None
        return x509.load_der_x509_certificate(der or b"").serial_number

    # --- what a stranger is told about a revocation --------------------------------------------

    def _is_on_crl(self, secret: SecretRef, serial: int) -> bool:
        crl = x509.load_der_x509_crl(self._public("GET", f"{_mount(secret)}/crl"))
        return crl.get_revoked_certificate_by_serial_number(serial) is not None

    def _ocsp_status(self, secret: SecretRef, values: Values) -> str:
        certificate = x509.load_pem_x509_certificate(values["certificate"].encode())
        issuer = x509.load_pem_x509_certificate(values["ca_chain"].encode())
        # SHA-1 names the issuer here and protects nothing; responders know no other everywhere.
        builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1())  # noqa: S303
        request = builder.build().public_bytes(serialization.Encoding.DER)
        answer = ocsp.load_der_ocsp_response(
            self._public("POST", f"{_mount(secret)}/ocsp", request)
        )
        if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return answer.response_status.name
        return answer.certificate_status.name

    def _public(self, method: str, path: str, content: bytes = b"") -> bytes:
        """Ask OpenBao as somebody without a login."""
        headers = {"Content-Type": "application/ocsp-request"} if content else {}
        try:
            answer = httpx.request(
                method,
                f"{self._session.address}/v1/{path}",
                content=content,
                headers=headers,
                verify=ssl.create_default_context(cafile=self._session.ca_file),
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            kind = type(error).__name__
            raise Unreachable(f"Unable to read {path}: no answer ({kind}). Try again.") from None
        if answer.status_code == 404:
            raise NotFound(f"Unable to read {path}: it does not exist. Check the mount.")
        if answer.status_code != 200:
            raise Unreachable(f"Unable to read {path}: HTTP {answer.status_code}. Try again.")
        return answer.content


def _mount(secret: SecretRef) -> str:
    return secret.parameters.get("mount", "pki")


def _port(secret: SecretRef) -> int:
    return int(secret.parameters.get("port", "443"))


def _version(values: Values) -> str:
    return values["serial"].replace(":", "-")


def _serial(values: Values) -> int:
    return int(values["serial"].replace(":", ""), 16)


def _colons(serial: int) -> str:
    text = f"{serial:x}"
    text = "0" * (len(text) % 2) + text
    return ":".join(text[at : at + 2] for at in range(0, len(text), 2))


def _problems(values: Values, common_name: str) -> list[str]:
    certificate = x509.load_pem_x509_certificate(values["certificate"].encode())
    issuer = x509.load_pem_x509_certificate(values["ca_chain"].encode())
    key = serialization.load_pem_private_key(values["private_key"].encode(), None)
    found = []
    kind = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*kind) != certificate.public_key().public_bytes(*kind):
        found.append("its key is another one's")
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # the library raises what each kind of key raises
        found.append("its issuer did not sign it")
    if not certificate.not_valid_before_utc <= datetime.now(UTC) < certificate.not_valid_after_utc:
        found.append("it is not valid now")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        told = [str(name) for name in names.get_values_for_type(x509.DNSName)]
        told += [str(name) for name in names.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        told = []
    if common_name not in told:
        found.append(f"it does not name {common_name}")
    return found


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: PkiCertificate(site.session, Hosts(site.session)),
    has_overlap=True,
    observed="TLS handshake with every host: the serial on the wire",
    proved_dead="on the CRL, OCSP says revoked, no host serves it",
    parameters=("role", "common_name", "hosts", "directory"),
    optional=(
        "mount",
        "alt_names",
        "ip_sans",
        "ttl",
        "host_keys_path",
        "ssh_user",
        "port",
        "check",
        "reload",
    ),
)
"""How the registry knows it."""
