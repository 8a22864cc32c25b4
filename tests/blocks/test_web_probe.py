"""Asking as users do: the certificate counts, the host name counts, and so does the answer."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from blocks.web_probe import WebProbe
from domain.errors import PermanentError, Unreachable
from domain.onboarding.delivery_checks import objection
from lab.bare_control_plane import Authority, free_ports


@dataclass
class Site:
    """A server with a certificate for localhost, and what it answers."""

    port: int = 0
    ca_pem: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    hosts: list[str] = field(default_factory=list)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site()
    authority = Authority(tmp_path)
    authority.issue("server", "localhost", "infraflows")
    site.ca_pem = authority.pem.decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.hosts.append(self.headers["host"])
            self.send_response(site.status)
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(site.body)))
            self.end_headers()
            self.wfile.write(site.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_host_name_goes_into_the_request_and_the_certificate_is_told(site: Site) -> None:
    with WebProbe("127.0.0.1", site.ca_pem, port=site.port) as probe:
        answer = probe.ask("localhost", "/healthz")
    assert site.hosts == ["localhost"]
    assert (answer.status, answer.certificate_names) == (200, ("localhost",))
    assert answer.certificate_ends_at is not None


def test_a_certificate_for_another_host_name_is_refused(site: Site) -> None:
    with (
        WebProbe("127.0.0.1", site.ca_pem, port=site.port) as probe,
        pytest.raises(PermanentError, match="its certificate is not right"),
    ):
        probe.ask("shop.example.org")


def test_a_certificate_of_another_ca_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").pem.decode()
    with (
        WebProbe("127.0.0.1", other, port=site.port) as probe,
        pytest.raises(PermanentError, match="its certificate is not right"),
    ):
        probe.ask("localhost")


def test_nobody_there_is_told_as_temporary(site: Site) -> None:
    with (
        WebProbe("127.0.0.1", site.ca_pem, port=free_ports(1)[0]) as probe,
        pytest.raises(Unreachable, match="nobody accepts the connection"),
    ):
        probe.ask("localhost")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"X-App-Version": "v7"}, b"ok"),
        ({"Content-Type": "application/json"}, json.dumps({"version": "v7"}).encode()),
    ],
)
def test_the_version_is_read_from_a_header_or_a_json_field(
    site: Site, headers: dict[str, str], body: bytes
) -> None:
    site.headers, site.body = headers, body
    with WebProbe("127.0.0.1", site.ca_pem, port=site.port) as probe:
        assert probe.ask("localhost").version == "v7"


def test_an_answer_that_tells_no_version_has_none(site: Site) -> None:
    site.headers, site.body = {"Content-Type": "application/json"}, b"[1, 2"
    with WebProbe("127.0.0.1", site.ca_pem, port=site.port) as probe:
        assert probe.ask("localhost").version == ""


def test_the_old_version_is_waited_out_and_then_told(site: Site) -> None:
    site.headers = {"X-App-Version": "v1"}
    with (
        WebProbe("127.0.0.1", site.ca_pem, port=site.port) as probe,
        pytest.raises(Unreachable, match="it serves version v1, and v2 is deployed"),
    ):
        probe.wait_for(
            "localhost", "/", lambda seen: objection(seen.status, seen.version, "v2"), 0.6
        )
    assert len(site.hosts) >= 2


def test_a_server_error_is_an_objection(site: Site) -> None:
    site.status = 503
    with (
        WebProbe("127.0.0.1", site.ca_pem, port=site.port) as probe,
        pytest.raises(Unreachable, match="it answers 503"),
    ):
        probe.wait_for("localhost", "/", lambda seen: objection(seen.status, "", ""), 0.0)
