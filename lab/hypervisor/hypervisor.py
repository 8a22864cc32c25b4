"""The simulated cluster as a whole: its nodes, machines, pools, and everything they share.

Why: one object that every route works on, so that what one route did, every other sees.

Promises: a machine's record is written before the request that changed it is answered.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.hypervisor.exceptions import (
    ApiError,
    ConfigMissing,
    MachineLocked,
    NodeUnreachable,
    NoQuorum,
)
from lab.hypervisor.faults import Fault, Faults
from lab.hypervisor.guest_runtime import GuestRuntime, GuestState
from lab.hypervisor.locks import ConfigLocks
from lab.hypervisor.models_access import Access
from lab.hypervisor.models_storage import CLOUDINIT_BYTES, GIB, StoragePool, Volume
from lab.hypervisor.models_tasks import Tasks
from lab.hypervisor.models_vm import Config, VirtualMachine, format_size
from lab.hypervisor.store import Store

CLUSTER_NAME = "lab"
NODE_CORES = 16
NODE_MEMORY_BYTES = 64 * GIB
TEMPLATE_VMID = 9000
TEMPLATE_NAME = "debian-12-cloud"
TEMPLATE_DISK_BYTES = 4 * GIB


@dataclass(frozen=True)
class Settings:
    """How the cluster behaves; tests make it quick, the lab keeps it lifelike."""

    state_directory: Path
    node_addresses: dict[str, str]
    time_scale: float = 1.0  # 0 makes simulated work instant; real guests take what they take
    lock_timeout_seconds: float = 10.0
    clone_slots: int = 4


class Hypervisor:
    """A cluster of nodes that share machines, storages, pools and tasks."""

    def __init__(self, settings: Settings, runtime: GuestRuntime) -> None:
        self.settings = settings
        self.runtime = runtime
        self.store = Store(settings.state_directory / "cluster.sqlite")
        self.faults = Faults(self.store)
        self.access = Access(self.store)
        self.tasks = Tasks(self.store, self.faults, settings.time_scale)
        self.storage = StoragePool(self.store, self.faults)
        self.locks = ConfigLocks(self.faults, settings.lock_timeout_seconds, settings.clone_slots)
        self.pools: dict[str, dict[str, Any]] = self.store.load("pool")
        self.started_at = time.time()
        self.backups = settings.state_directory / "backups"
        self.backups.mkdir(parents=True, exist_ok=True)
        self._vms = {
            int(key): VirtualMachine(**document) for key, document in self.store.load("vm").items()
        }

    @property
    def nodes(self) -> list[str]:
        """The nodes' names."""
        return list(self.settings.node_addresses)

    async def open(self) -> None:
        """Find the guests that still run, and make sure that the template is there."""
        await self.runtime.recover()
        if TEMPLATE_VMID not in self._vms:
            self._define_template()
        await self._ensure_template_disk()

    async def close(self) -> None:
        """Interrupt the tasks and close the state; guests keep running."""
        await self.tasks.close()
        self.store.close()

    def _define_template(self) -> None:
        node = self.nodes[0]
        owned = {volume.name for volume in self.storage.owned_by(TEMPLATE_VMID)}
        disk, drive = f"base-{TEMPLATE_VMID}-disk-0", f"vm-{TEMPLATE_VMID}-cloudinit"
        for name, size in ((disk, TEMPLATE_DISK_BYTES), (drive, CLOUDINIT_BYTES)):
            if name not in owned:
                self.storage.allocate("vmstore", node, TEMPLATE_VMID, size, name=name)
        config: Config = {
            "agent": "enabled=1",
            "boot": "order=scsi0",
            "ciupgrade": 0,
            "cores": 1,
            "cpu": "x86-64-v2-AES",
            "ide2": f"vmstore:{drive},media=cdrom,size=4M",
            "memory": "1024",
            "meta": f"creation-qemu=9.2.0,ctime={int(time.time())}",
            "name": TEMPLATE_NAME,
            "net0": "virtio=BC:24:11:90:00:00,bridge=vmbr0",
            "ostype": "l26",
            "scsi0": f"vmstore:{disk},size={format_size(TEMPLATE_DISK_BYTES)}",
            "scsihw": "virtio-scsi-single",
            "serial0": "socket",
            "smbios1": "uuid=6c616221-0000-4000-8000-000000009000",
            "template": 1,
            "vga": "serial0",
        }
        self.save(VirtualMachine(TEMPLATE_VMID, node, config))

    async def _ensure_template_disk(self) -> None:
        volume = self.storage.find(f"vmstore:base-{TEMPLATE_VMID}-disk-0")
        if volume is not None and volume.disk_id is not None:
            await self.runtime.create_disk(volume.disk_id, volume.size, None)

    # Machines

    @property
    def machines(self) -> list[VirtualMachine]:
        """All machines, by id."""
        return [self._vms[vmid] for vmid in sorted(self._vms)]

    def find(self, vmid: int) -> VirtualMachine | None:
        """A machine on whatever node."""
        return self._vms.get(vmid)

    def machine(self, node: str, vmid: int) -> VirtualMachine:
        """A machine on this node, or 500 in Proxmox's words."""
        vm = self._vms.get(vmid)
        if vm is None or vm.node != node:
            raise ConfigMissing(node, vmid)
        return vm

    def save(self, vm: VirtualMachine) -> None:
        """Write a machine's record."""
        self._vms[vm.vmid] = vm
        self.store.put("vm", str(vm.vmid), vm.document())

    def forget(self, vm: VirtualMachine) -> None:
        """Remove a machine's record and its place in its pool."""
        self._vms.pop(vm.vmid, None)
        self.store.delete("vm", str(vm.vmid))
        for name, pool in self.pools.items():
            if vm.vmid in pool["vms"]:
                pool["vms"].remove(vm.vmid)
                self.save_pool(name)

    async def state(self, vm: VirtualMachine) -> GuestState:
        """The guest's true state."""
        return "stopped" if vm.is_template else await self.runtime.state(vm.vmid)

    def lock_config(self, vm: VirtualMachine, lock: str) -> None:
        """Put a lock into the configuration; refuse when there is one."""
        self.require_unlocked(vm)
        vm.config["lock"] = lock
        self.save(vm)

    def unlock_config(self, vm: VirtualMachine) -> None:
        """Take the lock out of the configuration."""
        if vm.config.pop("lock", None) is not None and vm.vmid in self._vms:
            self.save(vm)

    def require_unlocked(self, vm: VirtualMachine) -> None:
        """Refuse while the configuration carries a lock, or when it went while one waited."""
        if self._vms.get(vm.vmid) is not vm:
            raise ConfigMissing(vm.node, vm.vmid)
        if "lock" in vm.config:
            raise MachineLocked(str(vm.config["lock"]))

    def require_free_id(self, vmid: int, action: str = "create") -> None:
        """Refuse an id that is taken."""
        taken = self._vms.get(vmid)
        if taken is None:
            return
        if action == "clone":
            raise ApiError(f"unable to create VM {vmid}: config file already exists")
        raise ApiError(
            f"unable to create VM {vmid} - VM {vmid} already exists on node '{taken.node}'"
        )

    async def free_volume(self, volume: Volume) -> None:
        """Destroy a volume and the real disk behind it."""
        self.storage.free(volume)
        if volume.disk_id is not None:
            await self.runtime.delete_disk(volume.disk_id)

    # Pools

    def pool_of(self, vmid: int) -> str | None:
        """The pool that a machine is in."""
        return next((name for name, pool in self.pools.items() if vmid in pool["vms"]), None)

    def save_pool(self, name: str) -> None:
        """Write a pool's record."""
        self.store.put("pool", name, self.pools[name])

    # Nodes

    def require_node(self, node: str) -> None:
        """Refuse a node that does not exist (as Proxmox's proxy does) or that is gone."""
        if node not in self.settings.node_addresses:
            raise ApiError(
                f"hostname lookup '{node}' failed - failed to get address info for: {node}: "
                "Name or service not known"
            )
        if not self.is_online(node):
            self.faults.take("node-offline", node=node)
            raise NodeUnreachable

    def is_online(self, node: str) -> bool:
        """False while the fault node-offline stands."""
        return self.faults.active("node-offline", node=node) is None

    @property
    def is_quorate(self) -> bool:
        """True while more than half of the nodes are there."""
        online = sum(self.is_online(node) for node in self.nodes)
        return online * 2 > len(self.nodes) and self.faults.active("quorum-lost") is None

    def require_quorum(self) -> None:
        """Refuse a change while the cluster file system is read-only."""
        if not self.is_quorate:
            self.faults.take("quorum-lost")
            raise NoQuorum

    def is_refusing(self, address: str) -> bool:
        """True when an API address belongs to a node that is gone."""
        owners = [n for n, known in self.settings.node_addresses.items() if known == address]
        return any(not self.is_online(node) for node in owners)

    async def apply_fault(self, fault: Fault) -> None:
        """A node that goes down takes its guests with it."""
        if fault.name != "node-offline" or fault.parameters.get("keep_guests"):
            return
        on_node = [vm.vmid for vm in self.machines if vm.node == fault.parameters["node"]]
        stops = (self.runtime.stop(vmid, graceful_timeout_seconds=None) for vmid in on_node)
        await asyncio.gather(*stops)
