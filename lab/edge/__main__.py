"""`python -m lab.edge`: answers for every cluster of the lab until it is told to end."""

from __future__ import annotations

import logging
import signal
import ssl
import sys
import threading

from lab.clusters import watch_clusters
from lab.edge.server import EdgeServer, serve
from lab.edge.view import ClusterView
from lab.layout import EDGE_ADDRESS, Layout

HTTP_PORT = 80
HTTPS_PORT = 443


class _Views:
    """The clusters that exist now, in the order in which they came."""

    def __init__(self) -> None:
        self._found: dict[str, ClusterView] = {}
        self._lock = threading.Lock()

    def add(self, name: str, kubeconfig: str) -> ClusterView:
        view = ClusterView(kubeconfig, EDGE_ADDRESS)
        with self._lock:
            self._found[name] = view
        return view

    def forget(self, name: str) -> None:
        with self._lock:
            self._found.pop(name, None)

    def all(self) -> list[ClusterView]:
        with self._lock:
            return list(self._found.values())


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    layout = Layout.from_environment()
    # Where no Ingress names a certificate: this one names no host of an application.
    default = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    default.load_cert_chain(layout.server_certificate_file, layout.server_key_file)
    views = _Views()
    servers = [
        EdgeServer((EDGE_ADDRESS, HTTP_PORT), views.all, None),
        EdgeServer((EDGE_ADDRESS, HTTPS_PORT), views.all, default),
    ]
    for server in servers:
        serve(server)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ending.set())
    watch_clusters(layout, views.add, ending, forget=views.forget)
    for server in servers:
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
