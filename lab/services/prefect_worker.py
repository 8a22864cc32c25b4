"""The process worker that runs the flows.

What it refuses: it has no secret. It finds OpenBao by the environment's blocks, and logs in with
the two files of its AppRole; nothing of the caller's environment reaches it.
"""

from __future__ import annotations

import datetime as dt

import httpx

from lab.layout import WORK_POOL, Layout
from lab.services.files import private_directory
from lab.services.https_probe import request
from lab.services.prefect_server import prefect_program
from lab.services.service import Launch, Service

_HEARTBEAT_SECONDS = 5
_HEARTBEAT_LIMIT = dt.timedelta(seconds=4 * _HEARTBEAT_SECONDS)


def worker_name(layout: Layout) -> str:
    return f"infraflows-{layout.instance}"


def prepare(layout: Layout) -> None:
    private_directory(layout.prefect_directory / "worker")
    private_directory(layout.ledger_directory)


def launch(layout: Layout) -> Launch:
    return Launch(
        # `--type` makes the worker create the pool if it is missing.
        command=[
            prefect_program(),
            "worker",
            "start",
            "--pool",
            WORK_POOL,
            "--type",
            "process",
            "--name",
            worker_name(layout),
            "--install-policy",
            "never",
        ],
        environment={
            "PREFECT_HOME": str(layout.prefect_directory / "worker"),
            "PREFECT_API_URL": layout.prefect_api_url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": str(_HEARTBEAT_SECONDS),
            "PREFECT_CLI_PROMPT": "false",
            "DO_NOT_TRACK": "1",
        },
        directory=layout.prefect_directory / "worker",
    )


def is_healthy(layout: Layout) -> str | None:
    url = f"{layout.prefect_api_url}/work_pools/{WORK_POOL}/workers/filter"
    try:
        reply = request(layout, "POST", url, json={}, timeout_seconds=5.0)
        workers = reply.json() if reply.status_code == 200 else []
    except (httpx.HTTPError, OSError, ValueError) as error:
        return f"the Prefect API does not answer ({type(error).__name__})"
    now = dt.datetime.now(dt.UTC)
    for worker in workers:
        if worker["name"] == worker_name(layout) and worker["status"] == "ONLINE":
            age = now - dt.datetime.fromisoformat(worker["last_heartbeat_time"])
            if age < _HEARTBEAT_LIMIT:
                return None
    return "the Prefect server has no recent heartbeat of it"


SERVICE = Service(
    name="worker",
    summary=f"Prefect process worker: pool {WORK_POOL}",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    needs=("prefect",),
    start_timeout_seconds=60,
    # Flow runs get the time to be cancelled in order.
    stop_timeout_seconds=15,
)
