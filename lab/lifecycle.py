"""Bringing the whole lab up, and taking it away without a trace.

What it promises: `up` is idempotent and recovers from whatever a crash left; services start as soon
as what they need is healthy. `down` ends with a look at the kernel: it succeeds only when no
process, mount, loop device, control group or namespace of the lab is left, whatever it began with.

What it refuses: to delete a home through a mount, or a directory that is not a lab's home.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from lab import leftovers, network, preflight
from lab.layout import Layout
from lab.services import processes, supervisor
from lab.services.catalogue import SERVICES, WATCHDOG
from lab.services.certificates import ensure_certificates
from lab.services.credentials import ensure_credentials
from lab.services.files import write_if_changed
from lab.services.proxmox import guests_directory
from lab.services.service import Service, ServiceFailed
from lab.site import write_site
from lab.toolchain.paths import NotBuiltError, guest_image

Report = Callable[[str, float, str], None]
_HOME_MARK_TEXT = "This directory belongs to an Infraflows lab; `infraflows-lab down --purge`.\n"


class LabFailed(Exception):
    """The lab did not come up, or did not go away. The text holds every reason."""


@dataclass
class Outcome:
    """What `up` or `down` did, for those who print it."""

    seconds: float = 0.0
    was_running: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)


def up(layout: Layout, services: Sequence[Service], report: Report) -> Outcome:
    """Bring the services to health. `report` is told (name, seconds, what happened)."""
    began = time.monotonic()
    _refuse_from_inside(layout, "start")
    preflight.check(layout, services)
    with supervisor.exclusive(layout.lock_file):
        _prepare(layout, report)
        outcome = _start_all(layout, [*services, WATCHDOG], report)
    outcome.seconds = time.monotonic() - began
    return outcome


def _prepare(layout: Layout, report: Report) -> None:
    began = time.monotonic()
    layout.home.mkdir(parents=True, exist_ok=True)
    # The database's and the name server's users walk through; each directory guards itself.
    layout.home.chmod(0o755)
    write_if_changed(layout.home / preflight.HOME_MARK, _HOME_MARK_TEXT)
    (layout.run_directory / "services").mkdir(parents=True, exist_ok=True)
    write_if_changed(layout.home_marker, f"{layout.home}\n")
    ensure_certificates(layout)
    ensure_credentials(layout)
    write_site(layout)
    existed = network.network_exists(layout.instance)
    network.ensure_network(layout.instance)
    report("network", time.monotonic() - began, "running" if existed else "started")


def _start_all(layout: Layout, services: Sequence[Service], report: Report) -> Outcome:
    outcome = Outcome()
    waiting = list(services)
    names = {service.name for service in services}
    done: set[str] = set()
    failures: list[str] = []
    running: dict[Future[supervisor.Started], Service] = {}
    with ThreadPoolExecutor(max_workers=len(services), thread_name_prefix="up") as pool:
        while waiting or running:
            for service in [s for s in waiting if (set(s.needs) & names) <= done]:
                waiting.remove(service)
                running[pool.submit(supervisor.start, layout, service)] = service
            if not running:
                break  # the rest needs what failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                service = running.pop(future)
                if _note(service, future, outcome, failures, report):
                    done.add(service.name)
    if failures:
        for service in waiting:
            failures.append(f"{service.name} was not started: it needs what failed.")
        raise LabFailed("\n".join(failures))
    return outcome


def _note(
    service: Service,
    future: Future[supervisor.Started],
    outcome: Outcome,
    failures: list[str],
    report: Report,
) -> bool:
    try:
        started = future.result()
    except Exception as error:
        # One service's failure must not hide the others': all are told at the end.
        known = isinstance(error, ServiceFailed)
        text = str(error) if known else f"Unable to start {service.name}: {error!r}"
        failures.append(text)
        report(service.name, 0.0, "failed")
        return False
    (outcome.was_running if started.was_running else outcome.started).append(service.name)
    report(service.name, started.seconds, "running" if started.was_running else "started")
    return True


def _refuse_from_inside(layout: Layout, act: str) -> None:
    """Inside, the UI's port would be opened where no browser is, and `down` would end itself."""
    if processes.ancestors() & set(network.processes_inside(layout.instance)):
        raise LabFailed(
            f"Unable to {act} lab {layout.instance!r}: this command, or a program that called it, "
            "runs inside the lab's network. Run it from outside (not through `exec`)."
        )


def down(layout: Layout, report: Report, *, purge: bool) -> Outcome:
    """Stop everything and prove that nothing is left. With `purge` the home goes as well."""
    began = time.monotonic()
    outcome = Outcome()
    _refuse_from_inside(layout, "stop")
    other = preflight.home_in_use(layout)
    if other is not None and other != layout.home:
        raise LabFailed(
            f"Unable to stop lab {layout.instance!r} of {layout.home}: the one that runs belongs "
            f"to {other}. Run `INFRAFLOWS_LAB_HOME={other} infraflows-lab down`."
        )
    problems: list[str] = []
    with supervisor.exclusive(layout.lock_file):
        if layout.run_directory.is_dir():
            _stop_services(layout, report, problems)
        _power_off_guests(layout, report, problems)
        problems += leftovers.sweep(layout)
        shutil.rmtree(layout.run_directory, ignore_errors=True)
        if purge:
            problems += _purge(layout)
        left = leftovers.find(layout)
        if not left:
            layout.lock_file.unlink(missing_ok=True)
    if left:
        raise LabFailed(
            "Unable to remove everything of the lab. What is left:\n"
            + "\n".join(f"  - {line}" for line in [*left.lines(), *problems])
        )
    if purge and layout.home.exists():
        raise LabFailed("\n".join(problems))
    outcome.seconds = time.monotonic() - began
    return outcome


def _stop_services(layout: Layout, report: Report, problems: list[str]) -> None:
    """First who would interfere, then flow runs and the API, then what they stand on."""
    by_name = {service.name: service for service in SERVICES}
    waves: list[list[Service]] = [
        [WATCHDOG],
        [by_name["worker"], by_name["ui"]],
        [by_name["proxmox"], by_name["prefect"]],
        [by_name[name] for name in ("openbao", "dns", "site", "postgresql")],
    ]
    for wave in waves:
        with ThreadPoolExecutor(max_workers=len(wave)) as pool:
            futures = {pool.submit(_stop, layout, service): service for service in wave}
            for future, service in futures.items():
                try:
                    seconds = future.result()
                    if seconds is not None:
                        report(service.name, seconds, "stopped")
                except Exception as error:
                    # Going on matters more: the sweep ends what would not stop.
                    problems.append(f"{service.name}: {error}")


def _stop(layout: Layout, service: Service) -> float | None:
    """Seconds that it took, or None if it did not run."""
    began = time.monotonic()
    if not supervisor.owned_pids(layout, service):
        return None
    supervisor.stop(layout, service)
    return time.monotonic() - began


def _power_off_guests(layout: Layout, report: Report, problems: list[str]) -> None:
    """Pull the plug of every guest; their disks stay. The kernel's own sweep follows anyhow."""
    # Imported here: a lab without guests need not have their runtime's requirements.
    from lab.hypervisor.guests.runtime import NspawnRuntime

    directory = guests_directory(layout)
    vmids = [int(entry.name) for entry in (directory / "guests").glob("[1-9]*")]
    if not vmids:
        return
    began = time.monotonic()
    try:
        image = guest_image()
    except NotBuiltError:
        image = Path("/nonexistent")  # a power off reads no image

    async def power_off() -> list[BaseException | None]:
        runtime = NspawnRuntime(directory, image, layout.namespace, layout.instance)
        stops = [runtime.stop(vmid, graceful_timeout_seconds=None) for vmid in vmids]
        return await asyncio.gather(*stops, return_exceptions=True)

    try:
        problems += [f"guests: {error}" for error in asyncio.run(power_off()) if error]
    except Exception as error:
        # Whatever it is, the sweep works without the runtime's files.
        problems.append(f"guests: {error}")
    report("guests", time.monotonic() - began, "stopped")


def _purge(layout: Layout) -> list[str]:
    home = layout.home
    if not home.exists():
        return []
    if not (home / preflight.HOME_MARK).exists():
        return [
            f"Unable to delete {home}: it does not look like a lab's home (no "
            f"{preflight.HOME_MARK} in it). Delete it by hand if it is one."
        ]
    still_mounted = leftovers.mounts_under(home)
    if still_mounted:
        return [f"Unable to delete {home}: {still_mounted} are still mounted. Unmount them."]
    # The mark goes last, so that a purge that is cut off can be repeated.
    for entry in sorted(home.iterdir()):
        if entry.name == preflight.HOME_MARK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    return [f"Unable to delete all of {home}. Look what is in it."] if home.exists() else []
