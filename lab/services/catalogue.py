"""All services of the lab, in the order in which `status` shows them."""

from __future__ import annotations

from lab.services import (
    argocd,
    dns,
    edge,
    gateway,
    gitlab,
    harbor,
    openbao,
    postgresql,
    prefect_server,
    prefect_worker,
    proxmox,
    registry,
    site,
    ui_forwarder,
    watchdog,
)
from lab.services.service import Service

SERVICES: tuple[Service, ...] = (
    openbao.SERVICE,
    dns.SERVICE,
    site.SERVICE,
    proxmox.SERVICE,
    edge.SERVICE,
    argocd.SERVICE,
    registry.SERVICE,
    harbor.SERVICE,
    gitlab.SERVICE,
    postgresql.SERVICE,
    prefect_server.SERVICE,
    prefect_worker.SERVICE,
    gateway.SERVICE,
    ui_forwarder.SERVICE,
)

WATCHDOG = watchdog.SERVICE


class UnknownService(Exception):
    """A name that is no service of the lab."""


def service(name: str) -> Service:
    for candidate in SERVICES:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in SERVICES)
    raise UnknownService(f"Unable to find service {name!r}: the lab has {names}.")


def with_needs(names: list[str]) -> tuple[Service, ...]:
    """The named services and all that they need, in the catalogue's order."""
    wanted: set[str] = set()
    queue = list(names)
    while queue:
        current = service(queue.pop())
        if current.name not in wanted:
            wanted.add(current.name)
            queue.extend(current.needs)
    return tuple(candidate for candidate in SERVICES if candidate.name in wanted)
