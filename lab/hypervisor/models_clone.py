"""Making, copying, moving and removing machines.

Why: a clone is the longest and most fragile step of an apply. Here it takes time, locks its target,
counts space disk by disk, and can die half-way leaving what a real one leaves.

Promises: a clone that fails for a reason of its own (no space, an interrupt) removes what it made,
as Proxmox does; only the fault `clone-fails` leaves remains, and says which.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from lab.hypervisor import models_config, models_power
from lab.hypervisor.exceptions import ApiError
from lab.hypervisor.faults import Fault
from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.models_storage import CLOUDINIT_BYTES, GIB, Volume
from lab.hypervisor.models_tasks import TaskLog
from lab.hypervisor.models_vm import (
    Config,
    VirtualMachine,
    format_drive,
    format_network,
    format_size,
    new_identity,
    new_mac,
    parse_network,
    split_options,
)

FULL_CLONE_SECONDS = 1.2
LINKED_CLONE_SECONDS = 0.3
MIGRATE_SECONDS = 1.0
PROGRESS_STEPS = 4
_NOT_CLONED = ("lock", "template", "vmgenid", "smbios1", "parent")


class _ClonePowerLoss(Exception):
    """The fault `clone-fails`: the worker is gone and cleans nothing up."""


@dataclass(frozen=True)
class CloneOrder:
    """What a clone is asked to be."""

    newid: int
    target: str
    is_full: bool
    storage: str | None = None
    name: str | None = None
    description: str | None = None
    pool: str | None = None
    source_config: Config | None = None  # a snapshot's configuration, when one is cloned


async def clone(
    hypervisor: Hypervisor, source: VirtualMachine, order: CloneOrder, log: TaskLog
) -> None:
    """qmclone."""
    is_running = await hypervisor.state(source) != "stopped"
    lock = hypervisor.locks.exclusive if is_running else hypervisor.locks.shared
    async with lock(source.vmid), hypervisor.locks.exclusive(order.newid):
        hypervisor.require_unlocked(source)
        hypervisor.require_free_id(order.newid, "clone")
        vm = VirtualMachine(order.newid, order.target, {"lock": "clone"})
        hypervisor.save(vm)
        made: list[Volume] = []
        try:
            vm.config = await _copy(hypervisor, source, vm, order, log, made)
        except _ClonePowerLoss:
            raise ApiError("unexpected status") from None
        except BaseException as error:
            await _discard(hypervisor, vm, made)
            if isinstance(error, ApiError | GuestRuntimeError):
                raise ApiError(f"clone failed: {error}") from error
            raise
        vm.config.pop("lock", None)
        hypervisor.save(vm)
        if order.pool is not None:
            hypervisor.pools[order.pool]["vms"].append(order.newid)
            hypervisor.save_pool(order.pool)


async def _copy(
    hypervisor: Hypervisor,
    source: VirtualMachine,
    vm: VirtualMachine,
    order: CloneOrder,
    log: TaskLog,
    made: list[Volume],
) -> Config:
    original = source.with_pending() if order.source_config is None else order.source_config
    config = {key: value for key, value in original.items() if key not in _NOT_CLONED}
    config = {key: value for key, value in config.items() if not key.startswith("unused")}
    config["lock"] = "clone"
    new_identity(config)
    config["meta"] = f"creation-qemu=9.2.0,ctime={int(time.time())}"
    config["name"] = order.name or f"Copy-of-{'VM-' if source.is_template else ''}{source.name}"
    if order.description is not None:
        config["description"] = order.description
    for key in [key for key in config if key.startswith("net")]:
        config[key] = format_network({**parse_network(str(config[key])), "macaddr": new_mac()})
    for key in source.drives():
        if key in config:
            config[key] = await _copy_drive(hypervisor, vm, key, str(config[key]), order, log, made)
    return config


async def _copy_drive(
    hypervisor: Hypervisor,
    vm: VirtualMachine,
    key: str,
    text: str,
    order: CloneOrder,
    log: TaskLog,
    made: list[Volume],
) -> str:
    options = split_options(text, "file")
    volume = hypervisor.storage.find(options["file"])
    if volume is None:
        raise ApiError(f"volume '{options['file']}' does not exist")
    storage = order.storage or volume.storage
    if volume.name.endswith("-cloudinit"):
        made.append(
            hypervisor.storage.allocate(
                storage, vm.node, vm.vmid, CLOUDINIT_BYTES, name=f"vm-{vm.vmid}-cloudinit"
            )
        )
        return format_drive({**options, "file": made[-1].volid})
    if "media=cdrom" in text:
        return text
    kind = "full" if order.is_full else "linked"
    log.line(f"create {kind} clone of drive {key} ({volume.volid})")
    parent = None if order.is_full else volume.name
    copy = hypervisor.storage.allocate(storage, vm.node, vm.vmid, volume.size, parent=parent)
    made.append(copy)
    fault = hypervisor.faults.take("clone-fails", vmid=vm.vmid)
    await _transfer(hypervisor, volume, copy, order.is_full, log, fault, vm)
    return format_drive({**options, "file": copy.volid, "size": format_size(copy.size)})


async def _transfer(
    hypervisor: Hypervisor,
    volume: Volume,
    copy: Volume,
    is_full: bool,
    log: TaskLog,
    fault: Fault | None,
    vm: VirtualMachine,
) -> None:
    steps = PROGRESS_STEPS if is_full else 1
    seconds = FULL_CLONE_SECONDS if is_full else LINKED_CLONE_SECONDS
    for step in range(1, steps + 1):
        await log.take_time(seconds / steps)
        if is_full:
            done, total = volume.size * step / steps / GIB, volume.size / GIB
            log.line(f"transferred {done:.1f} GiB of {total:.1f} GiB ({100 * step / steps:.2f}%)")
        if step * 2 >= steps and step * 2 < steps + 2:
            await log.halfway()
            if fault is not None:
                _break_off(hypervisor, vm, fault)
    if copy.disk_id is not None and volume.disk_id is not None:
        await hypervisor.runtime.create_disk(copy.disk_id, copy.size, volume.disk_id)


def _break_off(hypervisor: Hypervisor, vm: VirtualMachine, fault: Fault) -> None:
    left = fault.parameters.get("leave", "disk")
    if left == "nothing":
        raise ApiError("storage migration failed: mirroring error: Input/output error")
    if left == "disk":  # as when the clean-up came as far as the configuration, and no further
        for volume in hypervisor.storage.owned_by(vm.vmid):
            if volume.disk_id is None:
                hypervisor.storage.free(volume)
        hypervisor.forget(vm)
    raise _ClonePowerLoss


async def _discard(hypervisor: Hypervisor, vm: VirtualMachine, made: list[Volume]) -> None:
    for volume in made:
        await hypervisor.free_volume(volume)
    hypervisor.forget(vm)


async def create(
    hypervisor: Hypervisor,
    vm: VirtualMachine,
    changes: dict[str, Any],
    log: TaskLog,
    *,
    pool: str | None,
    is_started: bool,
) -> None:
    """qmcreate: a machine from nothing."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_free_id(vm.vmid)
        vm.config = {"meta": f"creation-qemu=9.2.0,ctime={int(time.time())}"}
        new_identity(vm.config)
        hypervisor.save(vm)
        try:
            await log.halfway()
            await models_config.update(hypervisor, vm, changes, [])
        except BaseException:
            await _discard(hypervisor, vm, hypervisor.storage.owned_by(vm.vmid))
            raise
        if pool is not None:
            hypervisor.pools[pool]["vms"].append(vm.vmid)
            hypervisor.save_pool(pool)
    if is_started:
        await models_power.start(hypervisor, vm, log)


async def destroy(
    hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog, *, with_unreferenced: bool
) -> None:
    """qmdestroy: the disks first, the configuration last, so that a retry finds the rest."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        if await hypervisor.state(vm) != "stopped":
            raise ApiError(f"VM {vm.vmid} is running - destroy failed")
        await log.halfway()
        named = {split_options(str(value), "file").get("file") for value in vm.config.values()}
        for snapshot in vm.snapshots.values():
            named |= {
                split_options(str(v), "file").get("file") for v in snapshot["config"].values()
            }
        for volume in hypervisor.storage.owned_by(vm.vmid):
            if with_unreferenced or volume.volid in named:
                log.line(f"removing disk {volume.volid}")
                await hypervisor.free_volume(volume)
        hypervisor.forget(vm)


async def convert_to_template(hypervisor: Hypervisor, vm: VirtualMachine, log: TaskLog) -> None:
    """qmtemplate: the disks become bases, the machine can no longer start."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.require_unlocked(vm)
        if await hypervisor.state(vm) != "stopped":
            raise ApiError(f"you can't convert a VM to template if VM is running vm {vm.vmid}")
        await log.halfway()
        for key, volid in vm.drives().items():
            volume = hypervisor.storage.find(volid)
            if volume is None or volume.disk_id is None:
                continue
            hypervisor.storage.rename(volume, volume.name.replace("vm-", "base-", 1))
            options = {**split_options(str(vm.config[key]), "file"), "file": volume.volid}
            vm.config[key] = format_drive(options)
        vm.config["template"] = 1
        hypervisor.save(vm)


async def migrate(
    hypervisor: Hypervisor, vm: VirtualMachine, target: str, log: TaskLog, *, is_online: bool
) -> None:
    """qmigrate: the storage is shared, so only the machine's place changes."""
    async with hypervisor.locks.exclusive(vm.vmid):
        is_running = await hypervisor.state(vm) != "stopped"
        if is_running and not is_online:
            raise ApiError("can't migrate running VM without --online")
        hypervisor.lock_config(vm, "migrate")
        try:
            address = hypervisor.settings.node_addresses[target]
            log.line(f"starting migration of VM {vm.vmid} to node '{target}' ({address})")
            await log.take_time(MIGRATE_SECONDS if is_running else MIGRATE_SECONDS / 3)
            await log.halfway()
            hypervisor.require_node(target)
            vm.node = target
            log.line("migration finished successfully (duration 00:00:01)")
        finally:
            hypervisor.unlock_config(vm)
