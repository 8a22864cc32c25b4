"""The machines that a spec stands for, each fully derived from it.

Promises that the same spec gives the same machines, so that a run that was cut short finds its
own work again: names, VMIDs, addresses and MAC addresses are computed and never drawn.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

from domain.specs import FIRST_WORKER_OFFSET, ClusterSpec, MachineSize, consecutive


class Role(StrEnum):
    """What a machine does in the cluster."""

    SERVER = "server"
    WORKER = "worker"


@dataclass(frozen=True)
class Machine:
    """One virtual machine of a cluster."""

    name: str
    role: Role
    index: int
    """Counts from 1 within its role."""
    vm_id: int
    hypervisor: str
    address: str
    prefix_length: int
    mac_address: str
    cores: int
    memory_mib: int
    disk_gib: int

    @property
    def is_first_server(self) -> bool:
        """True for the server that starts the cluster; the others join it."""
        return self.role is Role.SERVER and self.index == 1


def mac_address(cluster: str, name: str) -> str:
    """Derive a MAC address within Proxmox's own prefix BC:24:11 from the machine's name."""
    digest = hashlib.sha256(f"{cluster}/{name}".encode()).hexdigest()[:6].upper()
    return "BC:24:11:" + ":".join(digest[i : i + 2] for i in (0, 2, 4))


def _machine(
    spec: ClusterSpec, role: Role, index: int, size: MachineSize, address: str, shift: int
) -> Machine:
    name = f"{spec.name}-{role.value}-{index}"
    offset = index - 1 + (0 if role is Role.SERVER else FIRST_WORKER_OFFSET)
    nodes = spec.proxmox.nodes
    return Machine(
        name=name,
        role=role,
        index=index,
        vm_id=spec.proxmox.first_vm_id + offset,
        hypervisor=nodes[(index - 1 + shift) % len(nodes)],
        address=address,
        prefix_length=IPv4Network(spec.network.cidr).prefixlen,
        mac_address=mac_address(spec.name, name),
        cores=size.cores,
        memory_mib=size.memory_mib,
        disk_gib=size.disk_gib,
    )


def machines(spec: ClusterSpec) -> tuple[Machine, ...]:
    """Return the cluster's machines, servers first, in the order of their index.

    Servers take the hypervisors in turn, and workers go on where the servers ended, so that no
    hypervisor holds two of a role while another holds none (anti-affinity).
    """
    plane, pool = spec.control_plane, spec.workers
    servers = consecutive(plane.first_address, plane.count)
    found = [
        _machine(spec, Role.SERVER, i + 1, plane, str(address), 0)
        for i, address in enumerate(servers)
    ]
    if pool.count and pool.first_address:
        found += [
            _machine(spec, Role.WORKER, i + 1, pool, str(address), plane.count)
            for i, address in enumerate(consecutive(pool.first_address, pool.count))
        ]
    return tuple(found)


def servers(spec: ClusterSpec) -> tuple[Machine, ...]:
    """Return only the machines that run the control plane."""
    return tuple(machine for machine in machines(spec) if machine.role is Role.SERVER)
