"""The HTTP and HTTPS servers at the address where the ingress controller would answer.

What it promises: the certificate of a host is the one in its Ingress's Secret, chosen by SNI; a
host that no Ingress names gets 404, a path without a Ready pod behind it 503. What answers 200
tells of the pod as its spec does. What it refuses, by 501: methods that change something.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from domain.errors import LifecycleError
from lab.edge.view import ClusterView, Endpoint

HANDSHAKE_SECONDS = 10.0
REQUEST_SECONDS = 30.0
READING = ("GET", "HEAD")
Views = Callable[[], Sequence[ClusterView]]
_log = logging.getLogger(__name__)


class EdgeServer(ThreadingHTTPServer):
    """One listening socket; with a default TLS context it speaks HTTPS."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], views: Views, tls: ssl.SSLContext | None) -> None:
        super().__init__(address, EdgeHandler)
        self.views = views
        self._tls = tls
        if tls is not None:
            tls.sni_callback = self._choose_certificate

    @property
    def is_tls(self) -> bool:
        return self._tls is not None

    def _choose_certificate(
        self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        for view in self.views() if name else ():
            try:
                found = view.tls_context(str(name))
            except LifecycleError:
                continue
            if found is not None:
                connection.context = found
                return None
        return None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread: a slow client holds up nobody."""
        if self._tls is not None:
            request.settimeout(HANDSHAKE_SECONDS)
            try:
                request = self._tls.wrap_socket(request, server_side=True)
            except (OSError, ValueError):
                request.close()
                return
        request.settimeout(REQUEST_SECONDS)
        super().process_request_thread(request, client_address)

    def handle_error(self, _request: Any, client_address: Any) -> None:
        _log.debug("the connection of %s broke", client_address)


class EdgeHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "edge"
    sys_version = ""
    server: EdgeServer

    def parse_request(self) -> bool:
        is_parsed = super().parse_request()
        if is_parsed and self.command not in READING:
            self.close_connection = True
            self._text(501, f"Not simulated by the lab's edge: {self.command}\n")
            return False
        return is_parsed

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").partition(":")[0].lower()
        path = self.path.partition("?")[0]
        try:
            self._serve(host, path)
        except LifecycleError as error:
            _log.warning("%s%s: %s", host, path, error)
            self._text(503, "503 Service Temporarily Unavailable\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _serve(self, host: str, path: str) -> None:
        for view in self.server.views():
            is_known, route = view.route(host, path)
            if not is_known:
                continue
            if not self.server.is_tls and view.tls_name(host) is not None:
                self._text(308, "", Location=f"https://{host}{self.path}")
                return
            endpoint = view.endpoint(route) if route is not None else None
            if route is None:
                self._text(404, "404 Not Found\n")
            elif endpoint is None:
                self._text(503, "503 Service Temporarily Unavailable\n")
            else:
                self._application(endpoint, path)
            return
        self._text(404, "default backend - 404\n")

    def _application(self, endpoint: Endpoint, path: str) -> None:
        """Answer as the pod's container: `/` and the paths of its probes are there."""
        is_there = path == "/" or path in endpoint.known_paths
        told = {
            "app": endpoint.app,
            "namespace": endpoint.namespace,
            "pod": endpoint.pod,
            "image": endpoint.image,
            "version": endpoint.version,
        }
        body = json.dumps(told).encode() + b"\n"
        self._answer(200 if is_there else 404, body, {"Content-Type": "application/json"})

    def _text(self, status: int, text: str, **headers: str) -> None:
        self._answer(status, text.encode(), {"Content-Type": "text/plain", **headers})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.info("%s %s", self.headers.get("Host", "-") if self.headers else "-", format % args)


def serve(server: EdgeServer) -> threading.Thread:
    """Answer in a thread until the server is shut down."""
    thread = threading.Thread(target=server.serve_forever, name="edge", daemon=True)
    thread.start()
    return thread


def is_listening(address: str, port: int) -> bool:
    """True when somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((address, port)) == 0
