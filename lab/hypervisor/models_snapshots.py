"""Snapshots: a machine's configuration and its disks' content, kept under a name.

Promises: a rollback brings back both; a snapshot of a running machine is crash-consistent, as one
without RAM is on Proxmox. Refuses: `vmstate` (the RAM), with 501.
"""

from __future__ import annotations

import time
from typing import Any

from lab.hypervisor import models_power
from lab.hypervisor.exceptions import ApiError
from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.models_storage import Volume
from lab.hypervisor.models_tasks import TaskLog
from lab.hypervisor.models_vm import Config, VirtualMachine, visible

SNAPSHOT_SECONDS = 0.3


def require_snapshot(vm: VirtualMachine, name: str) -> dict[str, Any]:
    """A snapshot's record, or Proxmox's words."""
    if name not in vm.snapshots:
        raise ApiError(f"snapshot '{name}' does not exist")
    return vm.snapshots[name]


def disks(hypervisor: Hypervisor, vm: VirtualMachine, config: Config) -> list[Volume]:
    """The real disks that a configuration names."""
    named = VirtualMachine(vm.vmid, vm.node, config).drives().values()
    found = [hypervisor.storage.find(volid, vm.node) for volid in named]
    return [volume for volume in found if volume is not None and volume.disk_id is not None]


async def create(
    hypervisor: Hypervisor, vm: VirtualMachine, name: str, description: str, log: TaskLog
) -> None:
    """qmsnapshot."""
    async with hypervisor.locks.exclusive(vm.vmid):
        if name in vm.snapshots:
            raise ApiError(f"snapshot name '{name}' already used")
        hypervisor.lock_config(vm, "snapshot")
        try:
            await log.take_time(SNAPSHOT_SECONDS)
            await log.halfway()
            for volume in disks(hypervisor, vm, vm.config):
                log.line(f"snapshotting '{volume.volid}'")
                await hypervisor.runtime.snapshot_disk(str(volume.disk_id), name)
            config = {key: value for key, value in vm.config.items() if key != "lock"}
            vm.snapshots[name] = {
                "config": config,
                "snaptime": int(time.time()),
                "description": description,
                "parent": vm.parent,
            }
            vm.parent = name
        finally:
            hypervisor.unlock_config(vm)


async def rollback(
    hypervisor: Hypervisor, vm: VirtualMachine, name: str, log: TaskLog, *, is_started: bool
) -> None:
    """qmrollback: a running machine is stopped first, as Proxmox does."""
    async with hypervisor.locks.exclusive(vm.vmid):
        snapshot = require_snapshot(vm, name)
        if vm.config.get("protection"):
            raise ApiError(f"can't rollback snapshot of VM {vm.vmid} - protection mode enabled")
        hypervisor.lock_config(vm, "rollback")
        try:
            await hypervisor.runtime.stop(vm.vmid, graceful_timeout_seconds=None)
            await log.take_time(SNAPSHOT_SECONDS)
            await log.halfway()
            for volume in disks(hypervisor, vm, snapshot["config"]):
                log.line(f"rolling back '{volume.volid}'")
                await hypervisor.runtime.rollback_disk(str(volume.disk_id), name)
            vm.config = {**snapshot["config"], "lock": "rollback"}
            vm.pending, vm.parent = {}, name
        finally:
            hypervisor.unlock_config(vm)
    if is_started:
        await models_power.start(hypervisor, vm, log)


async def delete(hypervisor: Hypervisor, vm: VirtualMachine, name: str, log: TaskLog) -> None:
    """qmdelsnapshot."""
    async with hypervisor.locks.exclusive(vm.vmid):
        snapshot = require_snapshot(vm, name)
        hypervisor.lock_config(vm, "snapshot-delete")
        try:
            await log.halfway()
            for volume in disks(hypervisor, vm, snapshot["config"]):
                await hypervisor.runtime.delete_snapshot(str(volume.disk_id), name)
            del vm.snapshots[name]
            for other in vm.snapshots.values():
                if other["parent"] == name:
                    other["parent"] = snapshot["parent"]
            if vm.parent == name:
                vm.parent = snapshot["parent"]
        finally:
            hypervisor.unlock_config(vm)


def listing(vm: VirtualMachine, is_running: bool) -> list[dict[str, Any]]:
    """GET .../snapshot: every snapshot, and `current` last."""
    entries: list[dict[str, Any]] = []
    for name, snapshot in sorted(vm.snapshots.items(), key=lambda item: int(item[1]["snaptime"])):
        entry = {
            "name": name,
            "description": snapshot["description"],
            "snaptime": snapshot["snaptime"],
            "vmstate": 0,
        }
        entries.append(_with_parent(entry, snapshot["parent"]))
    current = {
        "name": "current",
        "description": "You are here!",
        "digest": vm.digest(),
        "running": int(is_running),
    }
    return [*entries, _with_parent(current, vm.parent)]


def _with_parent(entry: dict[str, Any], parent: str | None) -> dict[str, Any]:
    return entry if parent is None else {**entry, "parent": parent}


def config(vm: VirtualMachine, name: str) -> dict[str, Any]:
    """GET .../snapshot/{name}/config."""
    snapshot = require_snapshot(vm, name)
    shown = {**visible(snapshot["config"]), "snaptime": snapshot["snaptime"]}
    if snapshot["description"]:
        shown["description"] = snapshot["description"]
    return _with_parent(shown, snapshot["parent"])
