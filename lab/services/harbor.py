"""The simulated Harbor as a service. The registry behind it is real (see `registry`)."""

from __future__ import annotations

import sys

from lab.layout import GATEWAY, HARBOR_PORT, Layout
from lab.services.credentials import credential_file
from lab.services.files import private_directory
from lab.services.https_probe import reason_not_ok
from lab.services.registry import registry_url
from lab.services.service import Launch, Service


def prepare(layout: Layout) -> None:
    private_directory(layout.harbor_directory)
    private_directory(layout.harbor_directory / "state")


def launch(layout: Layout) -> Launch:
    return Launch(
        command=[
            sys.executable,
            "-m",
            "lab.harbor",
            f"--state={layout.harbor_directory / 'state'}",
            f"--administrator={credential_file(layout, 'harbor')}",
            f"--registry={registry_url()}",
            f"--external-url={layout.harbor_url}",
            f"--address={GATEWAY}",
            f"--port={HARBOR_PORT}",
            f"--cert={layout.server_certificate_file}",
            f"--key={layout.server_key_file}",
        ]
    )


def is_healthy(layout: Layout) -> str | None:
    return reason_not_ok(layout, f"{layout.harbor_url}/api/v2.0/health")


SERVICE = Service(
    name="harbor",
    summary="Harbor (simulated API), a real OCI registry behind it",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    needs=("registry",),
)
