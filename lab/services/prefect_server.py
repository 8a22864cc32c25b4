"""The Prefect server of the lab, on PostgreSQL, with its UI."""

from __future__ import annotations

import sys
from pathlib import Path

from lab.layout import GATEWAY, POSTGRESQL_PORT, PREFECT_PORT, Layout
from lab.services.credentials import credential
from lab.services.files import private_directory
from lab.services.https_probe import reason_not_ok
from lab.services.postgresql import DATABASE
from lab.services.service import Launch, Service


def prefect_program() -> str:
    return str(Path(sys.executable).with_name("prefect"))


def prepare(layout: Layout) -> None:
    private_directory(layout.prefect_directory / "server")


def launch(layout: Layout) -> Launch:
    login = credential(layout, "postgresql")
    address = f"{GATEWAY}:{POSTGRESQL_PORT}/{DATABASE}"
    return Launch(
        command=[
            prefect_program(),
            "server",
            "start",
            "--host",
            GATEWAY,
            "--port",
            str(PREFECT_PORT),
        ],
        # The password is in the environment, which only root reads; an argv would be public.
        environment={
            "PREFECT_HOME": str(layout.prefect_directory / "server"),
            "PREFECT_API_DATABASE_CONNECTION_URL": (
                f"postgresql+asyncpg://{login['username']}:{login['password']}@{address}"
            ),
            # Where a browser outside the namespace finds the API.
            "PREFECT_UI_API_URL": f"{layout.ui_url}/api",
            # Leases in memory would be lost with the server, and their limits stay taken.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
        },
        directory=layout.prefect_directory,
    )


def is_healthy(layout: Layout) -> str | None:
    return reason_not_ok(layout, f"{layout.prefect_api_url}/ready")


SERVICE = Service(
    name="prefect",
    summary="Prefect server: API and UI",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    needs=("postgresql",),
    start_timeout_seconds=120,
)
