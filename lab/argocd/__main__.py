"""`python -m lab.argocd`: runs an Argo CD for each cluster of the lab until it is told to end."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from pathlib import Path

from lab.argocd.instance import ArgocdInstance, Ports, ServerCertificate
from lab.clusters import watch_clusters
from lab.layout import ARGOCD_PORT, Layout
from lab.services.files import private_directory, write_atomically

INTERNAL_PORT = 18100
PORTS_FOR_ONE = 10
EVERYWHERE = "0.0.0.0"  # noqa: S104 - inside the lab's own network only
"""The API server's gateway calls its own server by the loop-back device."""


def ports(index: int) -> Ports:
    """The ports of the index-th cluster."""
    first = INTERNAL_PORT + PORTS_FOR_ONE * index
    return Ports(EVERYWHERE, ARGOCD_PORT + index, *range(first, first + 5))


class Seats:
    """Which cluster has which ports; kept, so that an address does not move in a restart."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        if file.exists():
            self._taken = {str(k): int(v) for k, v in json.loads(file.read_text()).items()}

    def index(self, cluster: str) -> int:
        with self._lock:
            if cluster not in self._taken:
                used = set(self._taken.values())
                self._taken[cluster] = next(i for i in range(len(used) + 1) if i not in used)
                write_atomically(self._file, json.dumps(self._taken))
            return self._taken[cluster]

    def free(self, cluster: str) -> None:
        with self._lock:
            if self._taken.pop(cluster, None) is not None:
                write_atomically(self._file, json.dumps(self._taken))


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    layout = Layout.from_environment()
    directory = private_directory(layout.argocd_directory)
    seats = Seats(directory / "ports.json")
    certificate = ServerCertificate(layout.server_certificate_file, layout.server_key_file)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ending.set())

    def make(name: str, kubeconfig: str) -> ArgocdInstance:
        return ArgocdInstance(
            kubeconfig,
            directory / name,
            lambda program: layout.log_file(f"{program}-{name}"),
            ports(seats.index(name)),
            certificate,
        )

    heartbeat = directory / "heartbeat"
    watch_clusters(layout, make, ending, forget=seats.free, on_look=heartbeat.touch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
