"""One change at a time on a host.

When a run is killed, what it had begun on the host goes on to its end there. The next run's module
waits for it here, in place of working on the same files at the same time.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = Path("/run/infraflows-configuration.lock")
WAIT_SECONDS = 300
POLL_SECONDS = 0.1


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the host's lock; the kernel lets go of it when its holder ends, however it does."""
    until = time.monotonic() + WAIT_SECONDS
    with LOCK.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(
                        f"another run's change still goes on after {WAIT_SECONDS} s"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield
