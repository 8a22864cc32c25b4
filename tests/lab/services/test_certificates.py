"""The lab's CA signs one certificate that every client library accepts for every address."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from lab.layout import Layout
from lab.services.certificates import SERVER_ADDRESSES, ensure_certificates


def serve_once(layout: Layout) -> int:
    import socket

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(layout.server_certificate_file, layout.server_key_file)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        connection, _ = listener.accept()
        with connection, context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(b"ok")
        listener.close()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.mark.parametrize("name", ["10.90.0.1", "10.90.0.11", "pve3", "127.0.0.1"])
def test_a_client_that_knows_the_ca_accepts_every_address(layout: Layout, name: str) -> None:
    import socket

    ensure_certificates(layout)
    context = ssl.create_default_context(cafile=str(layout.ca_file))
    # What newer Pythons check by default; the certificate must pass it.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with (
        socket.create_connection(("127.0.0.1", serve_once(layout)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        assert tls.recv(2) == b"ok"


def test_keys_are_for_their_owner_alone(layout: Layout) -> None:
    ensure_certificates(layout)
    for key in (layout.ca_key_file, layout.server_key_file):
        assert key.stat().st_mode & 0o777 == 0o600


def test_they_are_made_once(layout: Layout) -> None:
    ensure_certificates(layout)
    before = [layout.ca_file.read_bytes(), layout.server_certificate_file.read_bytes()]
    ensure_certificates(layout)
    assert before == [layout.ca_file.read_bytes(), layout.server_certificate_file.read_bytes()]


@pytest.mark.parametrize("lost", ["server.pem", "server.key"])
def test_a_lost_or_broken_server_file_is_replaced_and_the_ca_kept(
    layout: Layout, lost: str
) -> None:
    ensure_certificates(layout)
    authority = layout.ca_file.read_bytes()
    (layout.ca_directory / lost).write_text("half a fi")
    ensure_certificates(layout)
    certificate = x509.load_pem_x509_certificate(layout.server_certificate_file.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert layout.ca_file.read_bytes() == authority


def test_a_ca_without_its_key_is_made_anew_with_its_server_certificate(layout: Layout) -> None:
    ensure_certificates(layout)
    old = layout.ca_file.read_bytes()
    layout.ca_key_file.unlink()
    ensure_certificates(layout)
    assert layout.ca_file.read_bytes() != old
    certificate = x509.load_pem_x509_certificate(layout.server_certificate_file.read_bytes())
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate(layout.ca_file.read_bytes())
    )


def test_the_certificate_names_every_address_of_the_lab(layout: Layout) -> None:
    ensure_certificates(layout)
    certificate = x509.load_pem_x509_certificate(Path(layout.server_certificate_file).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert addresses == set(SERVER_ADDRESSES)
