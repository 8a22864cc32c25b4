"""The servers that the gateway's benchmark compares, each a process of its own.

`bare` reads the body and answers, and no more: what TLS, HTTP and uvicorn cost. `gateway` is the
product's own application on its embedded store, on disk, with the settings of `infraflows gateway`;
OpenBao is a dictionary here, as the gateway keeps secrets at hand for a minute anyway. The
dispatcher does not run: it works on what is stored, after the answer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from blocks.delivery_store import DeliveryStore
from blocks.delivery_store_engines import SqliteEngine
from deployments.gateway.app import gateway_app
from deployments.gateway.intake import Intake
from deployments.gateway.settings import Limits
from domain.errors import NotFound
from domain.webhooks.rate_limit import Rate

ENVIRONMENT = "bench"
PROJECTS = 20
UNLIMITED = Rate(per_second=1e9, burst=1e9)
ANSWER = b'{"status": "stored", "detail": "stored"}'


class OneKey:
    """Every project of the benchmark signs with the same key."""

    def __init__(self, key: str) -> None:
        """Keep the key."""
        self._key = key

    def read(self, path: str) -> Mapping[str, str]:
        """Return the key of a known project."""
        project = path.rpartition("/")[2]
        if not project.isdigit() or not 1 <= int(project) <= PROJECTS:
            raise NotFound(f"Unable to read {path}: it does not exist. Create it.")
        return {"signing_key": self._key}


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer."""
    if scope["type"] != "http":
        return
    has_more = True
    while has_more:
        has_more = (await receive()).get("more_body", False)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(ANSWER)).encode()),
    ]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def gateway(directory: Path) -> Any:
    """Return the product's application."""
    key = (directory / "signing_key").read_text(encoding="ascii")
    store = DeliveryStore(SqliteEngine(directory / f"store-{time.time_ns()}" / "deliveries.db"))
    limits = Limits(source_rate=UNLIMITED, project_rate=UNLIMITED, lookup_rate=UNLIMITED)
    return gateway_app(Intake(ENVIRONMENT, store, OneKey(key), time.time, limits), store)


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=["bare", "gateway"], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    given = parser.parse_args()
    uvicorn.run(
        bare if given.kind == "bare" else gateway(given.directory),
        host="127.0.0.1",
        port=given.port,
        ssl_certfile=str(given.directory / "server.crt"),
        ssl_keyfile=str(given.directory / "server.key"),
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
        lifespan="off" if given.kind == "bare" else "on",
    )


if __name__ == "__main__":
    main()
