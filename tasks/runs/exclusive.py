"""One run at a time on one target.

Exists because two runs on one cluster would undo each other's work. Promises that a second run
waits for the first and says so, and that the lock of a run that was killed is free again after
its lease, without anybody's help.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger

LEASE_SECONDS = 60.0
"""Prefect's least: how long a killed run keeps its target."""


@contextmanager
def exclusive(target: str) -> Iterator[None]:
    """Hold the global concurrency limit of `target` for the body."""
    name = f"target:{target}"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name=name, limit=1)
        limit = client.read_global_concurrency_limit_by_name(name)
    if limit.active_slots:
        get_run_logger().info(
            "Another run holds %s: waiting. The lock of a run that was killed is free after %d s.",
            target,
            int(LEASE_SECONDS),
        )
    with concurrency(name, occupy=1, lease_duration=LEASE_SECONDS, strict=True):
        yield
