"""What runs of the lab, as facts: for the table of `status` and for its JSON."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab import network
from lab.layout import Layout
from lab.services import processes, supervisor
from lab.services.catalogue import SERVICES, WATCHDOG
from lab.services.proxmox import guests_directory
from lab.services.service import Service, read_record


@dataclass(frozen=True)
class ServiceStatus:
    name: str
    summary: str
    state: str  # "running", "unhealthy", "dead" (wanted, but gone) or "stopped"
    reason: str
    pid: int | None
    memory_mib: float
    restarts: int
    log: str


@dataclass(frozen=True)
class LabStatus:
    instance: str
    home: str
    is_network_up: bool
    services: tuple[ServiceStatus, ...]
    guest_count: int
    guest_memory_mib: float

    @property
    def is_healthy(self) -> bool:
        return self.is_network_up and all(s.state == "running" for s in self.services)


def status(layout: Layout) -> LabStatus:
    everything = [*SERVICES, WATCHDOG]
    with ThreadPoolExecutor(max_workers=len(everything)) as pool:
        services = tuple(pool.map(lambda service: _service(layout, service), everything))
    groups = guest_processes(layout)
    return LabStatus(
        instance=layout.instance,
        home=str(layout.home),
        is_network_up=network.network_exists(layout.instance),
        services=services,
        guest_count=len(groups),
        guest_memory_mib=sum(processes.resident_mib(pids) for pids in groups.values()),
    )


def _service(layout: Layout, service: Service) -> ServiceStatus:
    record = read_record(layout, service.name)
    reason = record.failure
    if record.is_alive:
        unhealthy = service.is_healthy(layout) if network.network_exists(layout.instance) else "?"
        state = "unhealthy" if unhealthy else "running"
        reason = unhealthy or ""
    else:
        state = "dead" if record.is_wanted else "stopped"
    return ServiceStatus(
        name=service.name,
        summary=service.summary,
        state=state,
        reason=reason,
        pid=record.pid if record.is_alive else None,
        memory_mib=_memory_mib(layout, service),
        restarts=record.restarts,
        log=str(layout.log_file(service.name)),
    )


def _memory_mib(layout: Layout, service: Service) -> float:
    return round(processes.resident_mib(supervisor.owned_pids(layout, service)), 1)


def guest_processes(layout: Layout) -> dict[str, list[int]]:
    """The processes of each running guest: those of nspawn's child, found by the guest's files."""
    found: dict[str, list[int]] = {}
    for file in guests_directory(layout).glob("guests/*/init.pid"):
        pid = _pid(file)
        if pid is not None and processes.Identity.of(pid) is not None:
            found[file.parent.name] = processes.tree(pid)
    return found


def _pid(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None
