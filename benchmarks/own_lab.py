"""The benchmark's own lab: instance `bench`, a home and a port of its own, gone afterwards.

Promises that it is taken away whatever happened, by an interruption too, and that what an earlier
benchmark left when it was killed is removed first. Refuses to run beside a second benchmark.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from benchmarks.workspaces import forget_workspaces
from lab import lifecycle
from lab.layout import DEFAULT_HOME, Layout
from lab.services.catalogue import SERVICES

INSTANCE = "bench"
UI_PORT = 14280
LOCK = Path("/run/infraflows-benchmark.lock")
_STEERING = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "TF_CLI_CONFIG_FILE",
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_PROFILE",
)
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
Say = Callable[[str], None]


class BenchmarkRefused(Exception):
    """The benchmark cannot run now. The text says why, and what to do."""


def layout() -> Layout:
    """Return where the benchmark's lab lives."""
    return Layout(INSTANCE, DEFAULT_HOME.with_name(f"{DEFAULT_HOME.name}-{INSTANCE}"), UI_PORT)


def forget_the_shell() -> None:
    """Drop what would lead out of the lab; the caller's own shell is not touched."""
    for name in _STEERING:
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the benchmark's lock, which ends with this process.

    Raises:
        BenchmarkRefused: another benchmark runs, or this is not root.
    """
    if os.geteuid() != 0:
        raise BenchmarkRefused("Unable to measure: not root. Run it as root (sudo).")
    with LOCK.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkRefused(
                "Unable to measure: another benchmark runs on this machine, and two would measure "
                "each other. Wait for its end."
            ) from None
        yield


def _quiet(_name: str, _seconds: float, _what: str) -> None:
    return None


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def own_lab(say: Say, *, is_kept: bool = False, logs: Path | None = None) -> Iterator[Layout]:
    """Yield a new lab that is up; `logs` receives its logs when the block fails."""
    place = layout()
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        _purge(place)
        outcome = lifecycle.up(place, SERVICES, _quiet)
        say(f"lab {INSTANCE} is up after {outcome.seconds:.0f} s")
        yield place
    except BaseException:
        if logs is not None:
            _keep_logs(place, logs)
            say(f"the lab's logs are kept in {logs}")
        raise
    finally:
        if is_kept:
            say(
                f"The lab is kept. To remove it: INFRAFLOWS_LAB_INSTANCE={INSTANCE} "
                "infraflows-lab down --purge"
            )
        else:
            for number in (*_SIGNALS, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # a half removed lab helps nobody
            _purge(place)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            say(f"lab {INSTANCE} is gone")


def _purge(place: Layout) -> None:
    lifecycle.down(place, _quiet, purge=True)
    forget_workspaces()


def _keep_logs(place: Layout, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    with suppress(OSError, shutil.Error):  # the first error is the one that counts
        shutil.copytree(place.log_directory, target)
