"""The lab's certificate authority and the one server certificate that all its services share.

What it promises: made once; keys are readable by root alone; a certificate that is close to its
end, names too little or was signed by another CA is replaced, the CA itself is kept.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.layout import GATEWAY, NODE_ADDRESSES, ZONE, Layout
from lab.services.files import PRIVATE, PUBLIC, write_atomically

_CA_LIFETIME = dt.timedelta(days=3650)
_SERVER_LIFETIME = dt.timedelta(days=820)
_RENEW_BEFORE = dt.timedelta(days=30)

SERVER_ADDRESSES = (GATEWAY, *NODE_ADDRESSES.values(), "127.0.0.1")
SERVER_NAMES = (
    "localhost",
    "openbao",
    "site",
    *NODE_ADDRESSES,
    *(f"{name}.{ZONE}" for name in ("openbao", "site", *NODE_ADDRESSES)),
)


def ensure_certificates(layout: Layout) -> None:
    """Create what is missing, renew what is about to end."""
    layout.ca_directory.mkdir(parents=True, exist_ok=True)
    if not (layout.ca_file.exists() and layout.ca_key_file.exists()):
        _create_ca(layout)
    if not _server_certificate_is_good(layout):
        _create_server_certificate(layout)


def _create_ca(layout: Layout) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Infraflows lab CA ({layout.instance})")
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + _CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    # The key first: a certificate without its key would be taken for a complete CA.
    write_atomically(layout.ca_key_file, _pem(key), PRIVATE)
    write_atomically(layout.ca_file, certificate.public_bytes(serialization.Encoding.PEM), PUBLIC)


def _create_server_certificate(layout: Layout) -> None:
    ca_key = _load_key(layout.ca_key_file)
    ca = _load_certificate(layout.ca_file)
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name("Infraflows lab services"))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + _SERVER_LIFETIME)
        .add_extension(_subject_alternative_names(), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    write_atomically(layout.server_key_file, _pem(key), PRIVATE)
    write_atomically(
        layout.server_certificate_file,
        certificate.public_bytes(serialization.Encoding.PEM),
        PUBLIC,
    )


def _server_certificate_is_good(layout: Layout) -> bool:
    if not (layout.server_certificate_file.exists() and layout.server_key_file.exists()):
        return False
    try:
        certificate = _load_certificate(layout.server_certificate_file)
        key = _load_key(layout.server_key_file)
        certificate.verify_directly_issued_by(_load_certificate(layout.ca_file))
    except Exception:
        # Whatever is wrong with a derived file, a new one is the answer.
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        names == _subject_alternative_names()
        and certificate.public_key() == key.public_key()
        and certificate.not_valid_after_utc - dt.datetime.now(dt.UTC) > _RENEW_BEFORE
    )


def _subject_alternative_names() -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in SERVER_ADDRESSES),
            *(x509.DNSName(name) for name in SERVER_NAMES),
        ]
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"Unable to use {path}: it is not an elliptic curve key. Delete it.")
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())
