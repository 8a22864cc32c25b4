"""Answers about what is kept of a machine: its snapshots and its backups."""

from __future__ import annotations

import time
from typing import Any

from lab.hypervisor import models_backup, models_snapshots
from lab.hypervisor.calls import Call
from lab.hypervisor.exceptions import ApiError, NotSimulated
from lab.hypervisor.models_tasks import TaskLog
from lab.hypervisor.parameters import split_list


async def snapshots(call: Call) -> Any:
    """GET .../snapshot."""
    vm = call.machine()
    is_running = await call.hypervisor.state(vm) != "stopped"
    return models_snapshots.listing(vm, is_running)


async def snapshot_create(call: Call) -> Any:
    """POST .../snapshot."""
    vm, name = call.machine(), call.params["snapname"]
    if name in ("current", "pending"):
        raise ApiError(f"unable to use snapshot name '{name}' (reserved name)")
    if call.params.get("vmstate"):
        raise NotSimulated("Parameter 'vmstate' (the RAM in a snapshot)")
    description = call.params.get("description", "")
    return call.task(
        "qmsnapshot",
        lambda log: models_snapshots.create(call.hypervisor, vm, name, description, log),
    )


async def snapshot_config(call: Call) -> Any:
    """GET .../snapshot/{snapname}/config."""
    return models_snapshots.config(call.machine(), call.path["snapname"])


async def snapshot_update(call: Call) -> Any:
    """PUT .../snapshot/{snapname}/config: its description."""
    vm = call.machine()
    snapshot = models_snapshots.require_snapshot(vm, call.path["snapname"])
    snapshot["description"] = call.params.get("description", snapshot["description"])
    call.hypervisor.save(vm)


async def snapshot_rollback(call: Call) -> Any:
    """POST .../snapshot/{snapname}/rollback: an unknown name fails in the task."""
    vm, name, is_started = call.machine(), call.path["snapname"], bool(call.params.get("start"))
    return call.task(
        "qmrollback",
        lambda log: models_snapshots.rollback(
            call.hypervisor, vm, name, log, is_started=is_started
        ),
    )


async def snapshot_delete(call: Call) -> Any:
    """DELETE .../snapshot/{snapname}."""
    vm, name = call.machine(), call.path["snapname"]
    return call.task(
        "qmdelsnapshot", lambda log: models_snapshots.delete(call.hypervisor, vm, name, log)
    )


async def vzdump(call: Call) -> Any:
    """POST /nodes/{node}/vzdump: back up the machines named by `vmid`."""
    params = call.params
    vms = [call.hypervisor.machine(call.node, int(text)) for text in split_list(params["vmid"])]
    for vm in vms:
        call.require(f"/vms/{vm.vmid}", "VM.Backup")
    storage = params.get("storage", "local")
    call.require(f"/storage/{storage}", "Datastore.AllocateSpace")
    if "backup" not in call.hypervisor.storage.storage(storage).content:
        raise ApiError(f"storage '{storage}' does not support backups")

    async def work(log: TaskLog) -> None:
        log.line(f"INFO: starting new backup job: vzdump {' '.join(str(v.vmid) for v in vms)}")
        for vm in vms:
            notes = params.get("notes-template", "").replace("{{guestname}}", vm.name)
            order = models_backup.BackupOrder(
                storage=storage,
                mode=params.get("mode", "snapshot"),
                notes=notes or None,
                is_protected=bool(params.get("protected")),
            )
            await models_backup.backup(call.hypervisor, vm, order, log)
        log.line(f"INFO: Backup job finished successfully at {time.strftime('%H:%M:%S')}")

    return call.task("vzdump", work, vms[0].vmid if len(vms) == 1 else None)
