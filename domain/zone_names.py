"""Which DNS names a cluster has, and to what they point.

Promises names that are derived from the spec alone, so that removing them needs no memory.
"""

from __future__ import annotations

from domain.machines import Role, machines
from domain.specs import SERVERS_AT_MOST, WORKERS_AT_MOST, ClusterSpec


def api_name(spec: ClusterSpec) -> str:
    """Return the name of the cluster's API, below the zone."""
    return f"{spec.name}-api"


def wanted_addresses(spec: ClusterSpec) -> dict[str, str]:
    """Return each name below the zone with its address."""
    found = {machine.name: machine.address for machine in machines(spec)}
    return {**found, api_name(spec): spec.control_plane.virtual_ip}


def possible_names(spec: ClusterSpec) -> list[str]:
    """Return every name that a cluster of this name can have had, whatever its size was."""
    return [
        api_name(spec),
        *(f"{spec.name}-{Role.SERVER.value}-{i}" for i in range(1, SERVERS_AT_MOST + 1)),
        *(f"{spec.name}-{Role.WORKER.value}-{i}" for i in range(1, WORKERS_AT_MOST + 1)),
    ]
