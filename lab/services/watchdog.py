"""Brings back services that died though they are wanted.

One small process for all. It is not the parent of the services: killing it takes none of them
along, and the next `up` starts it again. What it refuses: to bring back what a person stopped or
killed on purpose, and to try for ever; after five restarts in five minutes it says so and stops.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from lab.layout import Layout
from lab.services.restart_policy import LIMIT, RestartPolicy
from lab.services.service import Launch, Service, ServiceFailed, read_record

_POLL_SECONDS = 1.0
_HEARTBEAT_LIMIT_SECONDS = 180.0


def _heartbeat(layout: Layout) -> Path:
    return layout.run_directory / "watchdog.heartbeat"


def main() -> int:
    # Imported here: the catalogue lists the services, and this module defines one.
    from lab.services.catalogue import SERVICES

    layout = Layout.from_environment()
    policies = {service.name: RestartPolicy() for service in SERVICES}
    signal.signal(signal.SIGTERM, _exit)
    while layout.run_directory.is_dir():
        _heartbeat(layout).touch()
        for service in SERVICES:
            _look_after(layout, service, policies[service.name])
        time.sleep(_POLL_SECONDS)
    return 0


def _exit(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _look_after(layout: Layout, service: Service, policy: RestartPolicy) -> None:
    from lab.services.supervisor import note_failure, restart_dead

    record = read_record(layout, service.name)
    if not record.is_wanted or record.is_alive:
        policy.died_at = None
        return
    now = time.monotonic()
    policy.note_death(now)
    if policy.has_given_up(now):
        note_failure(layout, service, f"it died {LIMIT} times in a short while; not tried again")
        return
    if not policy.may_restart(now):
        return
    policy.note_restart(now)
    _say(f"{service.name} (pid {record.pid}) is gone; starting it")
    try:
        if restart_dead(layout, service):
            _say(f"{service.name} is back after {time.monotonic() - now:.1f} s")
    except (ServiceFailed, OSError, RuntimeError) as error:
        _say(str(error))


def _say(text: str) -> None:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    print(f"{moment} {text}", flush=True)


def is_healthy(layout: Layout) -> str | None:
    try:
        age_seconds = time.time() - _heartbeat(layout).stat().st_mtime
    except FileNotFoundError:
        return "it has not looked yet"
    # A restart that it waits for holds its heart for as long as that takes.
    return None if age_seconds < _HEARTBEAT_LIMIT_SECONDS else "it has not looked for minutes"


SERVICE = Service(
    name="watchdog",
    summary="brings back services that died",
    launch=lambda _: Launch(
        command=[sys.executable, "-m", "lab.services.watchdog"], is_inside_namespace=False
    ),
    is_healthy=is_healthy,
    prepare=lambda layout: _heartbeat(layout).unlink(missing_ok=True),
)

if __name__ == "__main__":
    sys.exit(main())
