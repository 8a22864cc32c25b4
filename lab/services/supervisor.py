"""Starts, watches and stops the lab's services.

What it promises: a service is started once, detached, with a log and a record that names exactly
one process of this boot. `start` is idempotent and returns only when the service is healthy, or
raises with the reason and the end of its log. `stop` asks first and then insists; nothing of the
service is left. Two callers (a person and the watchdog) never act on one service at once.

What it refuses: services inherit nothing of the caller's environment; a secret that a person
exported does not reach the worker.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.layout import Layout
from lab.network import inside
from lab.services import processes
from lab.services.files import tail
from lab.services.service import (
    BrokenOnPurpose,
    Launch,
    Record,
    Service,
    ServiceFailed,
    read_record,
)
from lab.toolchain.paths import cache_dir

_POLL_SECONDS = 0.1
_PATIENCE_WITH_A_RUNNING_PROCESS_SECONDS = 5.0
_LOG_LIMIT_BYTES = 20 * 1024 * 1024
_LOG_TAIL_LINES = 15
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Started:
    """The outcome of `start`: how long it took and whether anything had to be done."""

    seconds: float
    was_running: bool


def base_environment(layout: Layout) -> dict[str, str]:
    """What every process of the lab sees: the machine's basics and which lab it belongs to."""
    python_directory = Path(sys.executable).parent
    return {
        "PATH": f"{python_directory}:{_SYSTEM_PATH}",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "INFRAFLOWS_CACHE": str(cache_dir()),
        **layout.environment(),
    }


def mark(layout: Layout, name: str) -> str:
    return f"{layout.instance}:{name}"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel lets go of when this process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def start(layout: Layout, service: Service) -> Started:
    """Bring the service to health, whatever state it is in."""
    began = time.monotonic()
    with _service_lock(layout, service.name):
        was_running = _start_locked(layout, service)
    return Started(time.monotonic() - began, was_running)


def _start_locked(layout: Layout, service: Service) -> bool:
    record = read_record(layout, service.name)
    if record.is_alive and record.is_settled and service.is_healthy(layout) is None:
        if not record.is_wanted or record.failure:
            record.is_wanted, record.failure = True, ""
            record.store(layout)
        return True
    if record.is_alive and not _could_adopt(layout, service, record):
        processes.end(_owned(layout, service, record), service.stop_timeout_seconds)
    if not record.is_alive:
        record = _spawn(layout, service, record)
        _settle(layout, service, record)
    record.is_wanted, record.is_settled, record.failure = True, True, ""
    record.store(layout)
    return False


def stop(layout: Layout, service: Service) -> None:
    """End the service and everything it owns; an absent one is fine."""
    with _service_lock(layout, service.name):
        record = read_record(layout, service.name)
        record.is_wanted = False
        record.store(layout)
        if record.is_alive:
            processes.end([record.pid], service.stop_timeout_seconds)
        left = processes.end(_owned(layout, service, record), grace_seconds=1.0)
        if left:
            raise ServiceFailed(
                f"Unable to stop {service.name}: processes {left} survive SIGKILL. "
                "They hang in the kernel; see `cat /proc/PID/stack`."
            )
        Record(name=service.name).store(layout)


def kill(layout: Layout, service: Service, *, comes_back: bool) -> list[int]:
    """Kill the service as a crash would, without warning. Returns what was killed."""
    with _service_lock(layout, service.name):
        record = read_record(layout, service.name)
        victims = _owned(layout, service, record)
        record.is_wanted = comes_back
        record.store(layout)
        processes.end(victims, grace_seconds=0)
    return victims


def restart_dead(layout: Layout, service: Service) -> bool:
    """For the watchdog: bring a wanted service back. False if it was not dead or not wanted."""
    with _service_lock(layout, service.name):
        # Asked under the lock: a person may have stopped it a moment ago.
        record = read_record(layout, service.name)
        if not record.is_wanted or record.is_alive:
            return False
        record.restarts += 1
        record.store(layout)
        _start_locked(layout, service)
    return True


def note_failure(layout: Layout, service: Service, text: str) -> None:
    """Keep the reason where `status` finds it."""
    with _service_lock(layout, service.name):
        record = read_record(layout, service.name)
        if record.failure != text and not record.is_alive:
            record.failure = text
            record.store(layout)


def owned_pids(layout: Layout, service: Service) -> list[int]:
    return _owned(layout, service, read_record(layout, service.name))


def _owned(layout: Layout, service: Service, record: Record) -> list[int]:
    """Every process that ends with the service."""
    if not service.owns_descendants:
        return processes.in_session(record.pid) if record.is_alive else []
    found = set(processes.marked_exactly(mark(layout, service.name)))
    if record.is_alive:
        found.update(processes.tree(record.pid))
    return sorted(found)


def _spawn(layout: Layout, service: Service, previous: Record) -> Record:
    # What a dead main process left behind would hold its port or its files.
    if service.owns_descendants:
        processes.end(processes.marked_exactly(mark(layout, service.name)), grace_seconds=1.0)
    service.prepare(layout)
    launch = service.launch(layout)
    log = layout.log_file(service.name)
    _rotate(log)
    with log.open("ab") as output:
        process = subprocess.Popen(
            _argv(layout, launch),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=launch.directory or "/",
            env={
                **base_environment(layout),
                **launch.environment,
                processes.SERVICE_MARK: mark(layout, service.name),
            },
            start_new_session=True,
        )
    identity = processes.Identity.of(process.pid)
    record = Record(
        name=service.name,
        is_wanted=True,
        pid=process.pid,
        start_ticks=identity.start_ticks if identity else 0,
        boot=processes.boot_id(),
        started_at=time.time(),
        restarts=previous.restarts,
    )
    record.store(layout)
    return record


def _argv(layout: Layout, launch: Launch) -> list[str]:
    command = list(launch.command)
    if launch.user is not None:
        command = [
            "setpriv",
            f"--reuid={launch.user}",
            f"--regid={launch.user}",
            "--init-groups",
            "--",
            *command,
        ]
    return inside(layout.instance, command) if launch.is_inside_namespace else command


def _could_adopt(layout: Layout, service: Service, record: Record) -> bool:
    """Whether a process that runs, but was not healthy, could be brought to health as it is."""
    deadline = time.monotonic() + _PATIENCE_WITH_A_RUNNING_PROCESS_SECONDS
    try:
        _wait(layout, service, record, service.answers or service.is_healthy, deadline)
        _settle(layout, service, record)
    except BrokenOnPurpose:
        raise
    except Exception:
        # Whatever the reason, the caller replaces the process; a second failure is told.
        return False
    return True


def _settle(layout: Layout, service: Service, record: Record) -> None:
    deadline = time.monotonic() + service.start_timeout_seconds
    _wait(layout, service, record, service.answers or service.is_healthy, deadline)
    try:
        service.settle(layout)
    except BrokenOnPurpose:
        raise
    except Exception as error:
        raise _failure(layout, service, record, f"its set-up failed ({error})") from error
    _wait(layout, service, record, service.is_healthy, deadline)


def _rotate(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    # Some services log things that only the lab's owner should read.
    os.close(os.open(log, os.O_CREAT | os.O_APPEND, 0o640))


def _wait(
    layout: Layout,
    service: Service,
    record: Record,
    probe: Callable[[Layout], str | None],
    deadline: float,
) -> None:
    while True:
        reason = probe(layout)
        if reason is None:
            return
        if not record.is_alive:
            raise _failure(layout, service, record, "its process ended")
        if time.monotonic() > deadline:
            limit = f"{service.start_timeout_seconds:g} s"
            raise _failure(layout, service, record, f"it is not healthy after {limit} ({reason})")
        time.sleep(_POLL_SECONDS)


def _failure(layout: Layout, service: Service, record: Record, cause: str) -> ServiceFailed:
    record.failure = cause
    record.store(layout)
    log = layout.log_file(service.name)
    end_of_log = "\n".join(f"    {line}" for line in tail(log, _LOG_TAIL_LINES)) or "    (empty)"
    return ServiceFailed(
        f"Unable to start {service.name}: {cause}. The end of its log {log}:\n{end_of_log}"
    )


def _service_lock(layout: Layout, name: str) -> AbstractContextManager[None]:
    return exclusive(layout.record_file(name).with_suffix(".lock"))
