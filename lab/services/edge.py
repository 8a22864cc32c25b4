"""The stand-in for the ingress controller and the applications' containers, as a service."""

from __future__ import annotations

import sys

from lab.layout import EDGE_ADDRESS, Layout
from lab.services.https_probe import reason_not_ok
from lab.services.service import Launch, Service


def launch(_: Layout) -> Launch:
    return Launch(command=[sys.executable, "-m", "lab.edge"])


def is_healthy(layout: Layout) -> str | None:
    # It knows no such host: 404 shows that it answers.
    return reason_not_ok(layout, f"http://{EDGE_ADDRESS}/", expected=(404,))


SERVICE = Service(
    name="edge",
    summary="stand-in for the ingress controller and the applications' containers",
    launch=launch,
    is_healthy=is_healthy,
    needs=("openbao",),
)
