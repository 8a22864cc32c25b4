"""The webhook gateway of the lab: the product's own, with the worker's credentials and no more."""

from __future__ import annotations

import sys

from lab.layout import Layout
from lab.services.files import private_directory
from lab.services.https_probe import reason_not_ok
from lab.services.service import Launch, Service


def prepare(layout: Layout) -> None:
    private_directory(layout.webhook_directory)
    private_directory(layout.webhook_directory / "prefect")


def launch(layout: Layout) -> Launch:
    return Launch(
        command=[sys.executable, "-m", "deployments.gateway", "--site", str(layout.site_file)],
        environment={
            "PREFECT_HOME": str(layout.webhook_directory / "prefect"),
            "PREFECT_API_URL": layout.prefect_api_url,
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "DO_NOT_TRACK": "1",
        },
        directory=layout.webhook_directory,
    )


def is_healthy(layout: Layout) -> str | None:
    return reason_not_ok(layout, f"{layout.webhook_url}/healthz")


SERVICE = Service(
    name="gateway",
    summary="Webhook gateway of GitLab and Alertmanager",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    needs=("openbao", "prefect"),
    start_timeout_seconds=60,
    stop_timeout_seconds=15,
)
