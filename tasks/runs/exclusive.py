"""One run at a time on one target.

Exists because two runs on one cluster would undo each other's work. Promises that a second run
waits for the first and says so, and that the lock of a run that was killed is free again after
its lease, without anybody's help.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency import _leases
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger

LEASE_SECONDS = 60.0
"""Prefect's least: how long a killed run keeps its target."""

RENEWED_EVERY_SECONDS = 15.0
RENEWAL_ATTEMPTS = 8
"""With Prefect's growing pauses between them, about as long as a lease has left."""

POLL_SECONDS = 2.0
LOCKED = 423

# Prefect renews a lease when a quarter of it is left, and ends the run after three attempts: a
# server that is busy, or restarted, for 15 seconds would cost every run. It offers no setting for
# that; the version is pinned, and a test sees that these two are heeded.
_leases._RENEWAL_FRACTION = RENEWED_EVERY_SECONDS / LEASE_SECONDS
_leases._RENEWAL_MAX_ATTEMPTS = RENEWAL_ATTEMPTS


def _is_taken(error: BaseException | None) -> bool:
    """True when the server answered that the limit has no free slot."""
    while error is not None:
        if getattr(getattr(error, "response", None), "status_code", None) == LOCKED:
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_free(name: str) -> bool:
    """True when nobody holds the limit: looking is quiet, a refused attempt is logged as error."""
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(name).active_slots == 0


@contextmanager
def exclusive(target: str) -> Iterator[None]:
    """Hold the global concurrency limit of `target` for the body.

    The server's own advice when to ask again is the usual time that the limit is held, which for
    a cluster is minutes after it became free: so it is asked at a fixed interval instead.
    """
    name = f"target:{target}"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name=name, limit=1)
    with ExitStack() as held:
        is_told = False
        while True:
            if _is_free(name):
                lock = concurrency(
                    name, occupy=1, max_retries=0, lease_duration=LEASE_SECONDS, strict=True
                )
                try:
                    held.enter_context(lock)
                    break
                except Exception as error:
                    if not _is_taken(error):
                        raise
            if not is_told:
                is_told = True
                get_run_logger().info(
                    "Another run holds %s: waiting. The lock of a run that was killed is free "
                    "after %d s.",
                    target,
                    int(LEASE_SECONDS),
                )
            time.sleep(POLL_SECONDS)
        yield
