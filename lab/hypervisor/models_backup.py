"""Backups: vzdump keeps a machine's disks and configuration together, restore reads them.

Why: "we have backups" is only true when a restore was tried; here the archive holds the guest's
real files, so a restored machine boots with them.

An archive is a folder: its disk images are sparse files, which one packed file would inflate.

Promises: an archive appears in the storage's content when it is whole, never before. Refuses:
Proxmox Backup Server, and modes that no guest needs (see the README).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.hypervisor import models_power
from lab.hypervisor.exceptions import ApiError
from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.models_snapshots import disks
from lab.hypervisor.models_storage import CLOUDINIT_BYTES, Volume
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
    parse_size,
    split_options,
)

BACKUP_SECONDS = 0.5
CONFIG_MEMBER = "qemu-server.json"


@dataclass(frozen=True)
class BackupOrder:
    """What vzdump is asked for."""

    storage: str
    mode: str
    notes: str | None = None
    is_protected: bool = False


@dataclass(frozen=True)
class RestoreOrder:
    """What a restore is asked for."""

    vmid: int
    archive: str
    storage: str | None = None
    is_forced: bool = False
    is_unique: bool = False
    pool: str | None = None


def archive_path(hypervisor: Hypervisor, volume: Volume) -> Path:
    """Where a backup's file is."""
    return hypervisor.backups / str(volume.node) / volume.name.rsplit("/", 1)[-1]


async def backup(
    hypervisor: Hypervisor, vm: VirtualMachine, order: BackupOrder, log: TaskLog
) -> None:
    """vzdump of one machine."""
    async with hypervisor.locks.exclusive(vm.vmid):
        hypervisor.lock_config(vm, "backup")
        started = time.time()
        log.line(f"INFO: Starting Backup of VM {vm.vmid} (qemu)")
        log.line(f"INFO: backup mode: {order.mode}")
        state = await hypervisor.state(vm)
        try:
            if order.mode == "stop" and state != "stopped":
                await hypervisor.runtime.stop(vm.vmid, graceful_timeout_seconds=60)
            elif state == "running":
                await hypervisor.runtime.suspend(vm.vmid)
            await _write_archive(hypervisor, vm, order, log)
        except ApiError as error:
            raise ApiError(f"Backup of VM {vm.vmid} failed - {error.message}") from error
        finally:
            try:
                await _set_running_again(hypervisor, vm, order, state)
            finally:
                hypervisor.unlock_config(vm)
        log.line(f"INFO: Finished Backup of VM {vm.vmid} ({time.time() - started:.0f} seconds)")


async def _set_running_again(
    hypervisor: Hypervisor, vm: VirtualMachine, order: BackupOrder, state: str
) -> None:
    if state == "stopped":
        return
    if order.mode == "stop":
        await models_power.boot(hypervisor, vm)
    elif state == "running":
        await hypervisor.runtime.resume(vm.vmid)


async def _write_archive(
    hypervisor: Hypervisor, vm: VirtualMachine, order: BackupOrder, log: TaskLog
) -> None:
    stamp = time.strftime("%Y_%m_%d-%H_%M_%S", time.localtime())
    name = f"vzdump-qemu-{vm.vmid}-{stamp}.vma.zst"
    directory = hypervisor.backups / vm.node
    directory.mkdir(parents=True, exist_ok=True)
    log.line(f"INFO: creating vzdump archive '/var/lib/vz/dump/{name}'")
    storage = hypervisor.storage.storage(order.storage)
    needed = sum(volume.size for volume in disks(hypervisor, vm, vm.config)) // 8
    hypervisor.storage.reserve(storage, vm.node, needed, name)
    await log.take_time(BACKUP_SECONDS)
    await log.halfway()
    partial = directory / f"{name}.dat"
    try:
        partial.mkdir()
        for key, volid in vm.drives().items():
            volume = hypervisor.storage.find(volid, vm.node)
            if volume is not None and volume.disk_id is not None:
                await hypervisor.runtime.export_disk(volume.disk_id, partial / f"drive-{key}")
        config = {key: value for key, value in vm.config.items() if key != "lock"}
        (partial / CONFIG_MEMBER).write_text(json.dumps(config))
        size = sum(member.stat().st_blocks * 512 for member in partial.iterdir())
        partial.rename(directory / name)
    finally:
        await remove(partial)
    record = hypervisor.storage.allocate(
        order.storage,
        vm.node,
        vm.vmid,
        size,
        name=f"backup/{name}",
        content="backup",
        volume_format="vma.zst",
    )
    record.notes, record.protected = order.notes, int(order.is_protected)
    hypervisor.storage.save(record)
    log.line(f"INFO: archive file size: {size / 1024**2:.0f}MB")


async def remove(archive: Path) -> None:
    """Delete an archive's folder; an absent one is fine."""
    await asyncio.to_thread(shutil.rmtree, archive, ignore_errors=True)


async def restore(hypervisor: Hypervisor, node: str, order: RestoreOrder, log: TaskLog) -> None:
    """qmrestore: the archive's machine, under its old id or a new one."""
    volume = hypervisor.storage.find(order.archive, node)
    if volume is None:
        raise ApiError(f"volume '{order.archive}' does not exist")
    async with hypervisor.locks.exclusive(order.vmid):
        await _make_room(hypervisor, order)
        vm = VirtualMachine(order.vmid, node, {"lock": "create"})
        hypervisor.save(vm)
        try:
            source = archive_path(hypervisor, volume)
            log.line(f"restore vma archive: {source.name}")
            config: Config = json.loads((source / CONFIG_MEMBER).read_text())
            parts = {path.name.removeprefix("drive-"): path for path in source.glob("drive-*")}
            await log.take_time(BACKUP_SECONDS)
            await log.halfway()
            vm.config = await _restored_config(hypervisor, vm, config, parts, order)
        except BaseException as error:
            for made in hypervisor.storage.owned_by(order.vmid):
                await hypervisor.free_volume(made)
            hypervisor.forget(vm)
            if isinstance(error, ApiError | GuestRuntimeError):
                raise ApiError(f"unable to restore VM {order.vmid} - {error}") from error
            raise
        hypervisor.save(vm)
        if order.pool is not None:
            hypervisor.pools[order.pool]["vms"].append(order.vmid)
            hypervisor.save_pool(order.pool)


async def _make_room(hypervisor: Hypervisor, order: RestoreOrder) -> None:
    existing = hypervisor.find(order.vmid)
    if existing is None:
        return
    if not order.is_forced:
        hypervisor.require_free_id(order.vmid)
    hypervisor.require_unlocked(existing)
    if await hypervisor.state(existing) != "stopped":
        raise ApiError(f"unable to restore VM {order.vmid} - vm is running")
    if existing.config.get("protection"):
        raise ApiError(f"unable to restore VM {order.vmid} - protection mode enabled")
    for volume in hypervisor.storage.owned_by(order.vmid):
        await hypervisor.free_volume(volume)


async def _restored_config(
    hypervisor: Hypervisor,
    vm: VirtualMachine,
    original: Config,
    parts: dict[str, Path],
    order: RestoreOrder,
) -> Config:
    config: dict[str, Any] = {key: value for key, value in original.items() if key != "template"}
    for key, volid in VirtualMachine(vm.vmid, vm.node, original).drives().items():
        options = split_options(str(config[key]), "file")
        storage = order.storage or volid.partition(":")[0]
        if key in parts:
            size = parse_size(options["size"])
            made = hypervisor.storage.allocate(storage, vm.node, vm.vmid, size)
            disk_id = str(made.disk_id)
            await hypervisor.runtime.create_disk(disk_id, size, None)
            await hypervisor.runtime.import_disk(disk_id, parts[key])
            options |= {"file": made.volid, "size": format_size(size)}
        elif volid.endswith("-cloudinit"):
            name = f"vm-{vm.vmid}-cloudinit"
            made = hypervisor.storage.allocate(
                storage, vm.node, vm.vmid, CLOUDINIT_BYTES, name=name
            )
            options |= {"file": made.volid}
        config[key] = format_drive(options)
    if order.is_unique:
        new_identity(config)
        for key in [key for key in config if key.startswith("net")]:
            config[key] = format_network({**parse_network(str(config[key])), "macaddr": new_mac()})
    return config
