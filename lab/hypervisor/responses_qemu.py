"""Answers about machines: configuration, power, copies, snapshots, migration, backup, removal."""

from __future__ import annotations

from typing import Any

from lab.hypervisor import (
    models_backup,
    models_clone,
    models_config,
    models_power,
    models_snapshots,
)
from lab.hypervisor.calls import Call
from lab.hypervisor.exceptions import ApiError, NotSimulated, ParameterError
from lab.hypervisor.models_tasks import TaskLog
from lab.hypervisor.models_vm import VirtualMachine, parse_size, split_options, visible
from lab.hypervisor.responses_cluster import vm_summary
from lab.hypervisor.vm_schema import is_drive

_NOT_CONFIG = (
    "archive background_delay bwlimit delete digest force import-working-storage live-restore"
    " pool revert skiplock start storage unique vmid"
)
NOT_CONFIG = frozenset(_NOT_CONFIG.split())


async def listing(call: Call) -> Any:
    """GET /nodes/{node}/qemu."""
    found = []
    for vm in call.hypervisor.machines:
        if vm.node == call.node and call.may(f"/vms/{vm.vmid}", "VM.Audit"):
            entry = await vm_summary(call.hypervisor, vm)
            found.append({**entry, "cpus": vm.cpus})
    return found


async def config_get(call: Call) -> Any:
    """GET .../config: with what is pending, unless `current` or a snapshot is asked for."""
    vm = call.machine()
    if "snapshot" in call.params:
        return models_snapshots.config(vm, call.params["snapshot"])
    shown = vm.config if call.params.get("current") else vm.with_pending()
    return {**visible(shown), "digest": vm.digest()}


async def config_pending(call: Call) -> Any:
    """GET .../pending."""
    vm = call.machine()
    entries: list[dict[str, Any]] = []
    for key in sorted({*vm.config, *vm.pending}):
        entry: dict[str, Any] = {"key": key}
        if key in vm.config:
            entry["value"] = str(visible(vm.config)[key])
        if key in vm.pending:
            waiting = vm.pending[key]
            entry |= {"delete": 1} if waiting is None else {"pending": str(waiting)}
        entries.append(entry)
    return entries


def _changes(call: Call) -> tuple[dict[str, Any], list[str]]:
    if "revert" in call.params:
        raise NotSimulated("Parameter 'revert'")
    if call.params.get("skiplock"):
        raise ParameterError({"skiplock": "Only root may use this option."})
    deletions = models_config.read_deletions(call.params.get("delete"))
    changes = {key: value for key, value in call.params.items() if key not in NOT_CONFIG}
    return changes, deletions


async def config_put(call: Call) -> Any:
    """PUT .../config: at once, answers null."""
    vm = call.machine()
    changes, deletions = _changes(call)
    pool = call.hypervisor.pool_of(vm.vmid)
    asked = {**changes, **{key: None for key in deletions if key in vm.config}}
    models_config.check(call.hypervisor, call.token, vm.vmid, asked, pool)
    async with call.hypervisor.locks.exclusive(vm.vmid):
        call.hypervisor.require_unlocked(vm)
        models_config.check_digest(vm, call.params.get("digest"))
        await models_config.update(call.hypervisor, vm, changes, deletions)


async def config_post(call: Call) -> Any:
    """POST .../config: the same as a task."""
    vm = call.machine()
    changes, deletions = _changes(call)
    pool = call.hypervisor.pool_of(vm.vmid)
    asked = {**changes, **{key: None for key in deletions if key in vm.config}}
    models_config.check(call.hypervisor, call.token, vm.vmid, asked, pool)

    async def work(log: TaskLog) -> None:
        async with call.hypervisor.locks.exclusive(vm.vmid):
            call.hypervisor.require_unlocked(vm)
            models_config.check_digest(vm, call.params.get("digest"))
            await log.halfway()
            await models_config.update(call.hypervisor, vm, changes, deletions)

    return call.task("qmconfig", work)


async def resize(call: Call) -> Any:
    """PUT .../resize: a task; `size` is absolute or starts with `+`."""
    vm = call.machine()
    disk, text = call.params["disk"], call.params["size"]
    if not is_drive(disk) or disk not in vm.config:
        raise ApiError(f"disk '{disk}' does not exist")
    models_config.check_digest(vm, call.params.get("digest"))
    call.hypervisor.require_unlocked(vm)

    async def work(log: TaskLog) -> None:
        async with call.hypervisor.locks.exclusive(vm.vmid):
            call.hypervisor.require_unlocked(vm)
            await log.halfway()
            size = parse_size(text.removeprefix("+"))
            if text.startswith("+"):
                size += parse_size(split_options(str(vm.config[disk]), "file")["size"])
            await models_config.resize(call.hypervisor, vm, disk, size)

    return call.task("resize", work)


async def clone(call: Call) -> Any:
    """POST .../clone."""
    hypervisor, source, params = call.hypervisor, call.machine(), call.params
    newid, pool = params["newid"], params.get("pool")
    _require_new_machine(call, newid, pool)
    is_full = bool(params.get("full", not source.is_template))
    if not is_full and not source.is_template:
        raise ApiError(f"Linked clone feature is not available for VM {source.vmid}")
    target = params.get("target", call.node)
    hypervisor.require_node(target)
    snapshot = params.get("snapname")
    storage = params.get("storage")
    if storage is not None:
        hypervisor.storage.storage(storage)
        if not is_full:
            raise ParameterError({"storage": "this parameter requires a full clone"})
    for volid in source.drives().values():
        call.require(f"/storage/{storage or volid.partition(':')[0]}", "Datastore.AllocateSpace")
    hypervisor.require_unlocked(source)
    hypervisor.require_free_id(newid, "clone")
    order = models_clone.CloneOrder(
        newid=newid,
        target=target,
        is_full=is_full,
        storage=storage,
        name=params.get("name"),
        description=params.get("description"),
        pool=pool,
        source_config=None
        if snapshot is None
        else models_snapshots.require_snapshot(source, snapshot)["config"],
    )
    return call.task("qmclone", lambda log: models_clone.clone(hypervisor, source, order, log))


def _require_new_machine(call: Call, vmid: int, pool: str | None) -> None:
    if pool is not None and pool not in call.hypervisor.pools:
        raise ApiError(f"no such pool '{pool}'")
    if pool is not None and call.may(f"/pool/{pool}", "VM.Allocate"):
        return
    call.require(f"/vms/{vmid}", "VM.Allocate")


async def create(call: Call) -> Any:
    """POST /nodes/{node}/qemu: a new machine, or one restored from `archive`."""
    hypervisor, params = call.hypervisor, call.params
    vmid, pool = params["vmid"], params.get("pool")
    _require_new_machine(call, vmid, pool)
    if "archive" in params:
        return _restore(call, vmid, pool)
    hypervisor.require_free_id(vmid)
    changes, _ = _changes(call)
    models_config.check(hypervisor, call.token, vmid, changes, pool)
    vm = VirtualMachine(vmid, call.node, {})
    is_started = bool(params.get("start"))
    return call.task(
        "qmcreate",
        lambda log: models_clone.create(
            hypervisor, vm, changes, log, pool=pool, is_started=is_started
        ),
        vmid,
    )


def _restore(call: Call, vmid: int, pool: str | None) -> str:
    params = call.params
    if params.get("live-restore"):
        raise NotSimulated("Parameter 'live-restore'")
    others = [key for key in params if key not in NOT_CONFIG]
    if others:
        raise NotSimulated(f"Changing '{others[0]}' during a restore")
    call.require(f"/storage/{params['archive'].partition(':')[0]}", "Datastore.Audit")
    if not params.get("force"):
        call.hypervisor.require_free_id(vmid)
    order = models_backup.RestoreOrder(
        vmid=vmid,
        archive=params["archive"],
        storage=params.get("storage"),
        is_forced=bool(params.get("force")),
        is_unique=bool(params.get("unique")),
        pool=pool,
    )
    hypervisor, node = call.hypervisor, call.node
    return call.task(
        "qmrestore", lambda log: models_backup.restore(hypervisor, node, order, log), vmid
    )


async def status_current(call: Call) -> Any:
    """GET .../status/current."""
    vm = call.machine()
    state = await call.hypervisor.state(vm)
    summary = {
        **await vm_summary(call.hypervisor, vm),
        "cpus": vm.cpus,
        "qmpstatus": state,
        "ha": {"managed": 0},
    }
    if vm.has_agent:
        summary["agent"] = 1
    if state != "stopped":
        summary |= {
            "pid": 100000 + vm.vmid,
            "running-machine": "pc-i440fx-9.2+pve1",
            "running-qemu": "9.2.0",
        }
    return summary


async def start(call: Call) -> Any:
    """POST .../status/start."""
    vm = call.machine()
    call.hypervisor.require_unlocked(vm)
    return call.task("qmstart", lambda log: models_power.start(call.hypervisor, vm, log))


async def stop(call: Call) -> Any:
    """POST .../status/stop."""
    vm = call.machine()
    return call.task("qmstop", lambda log: models_power.stop(call.hypervisor, vm, log))


async def shutdown(call: Call) -> Any:
    """POST .../status/shutdown."""
    vm = call.machine()
    timeout, force = call.params.get("timeout"), bool(call.params.get("forceStop"))
    return call.task(
        "qmshutdown",
        lambda log: models_power.shutdown(call.hypervisor, vm, log, timeout=timeout, force=force),
    )


async def reboot(call: Call) -> Any:
    """POST .../status/reboot."""
    vm = call.machine()
    if await call.hypervisor.state(vm) == "stopped":
        raise ApiError(f"VM {vm.vmid} not running")
    timeout = call.params.get("timeout")
    return call.task(
        "qmreboot", lambda log: models_power.reboot(call.hypervisor, vm, log, timeout=timeout)
    )


async def reset(call: Call) -> Any:
    """POST .../status/reset."""
    vm = call.machine()
    return call.task("qmreset", lambda log: models_power.reset(call.hypervisor, vm, log))


async def suspend(call: Call) -> Any:
    """POST .../status/suspend."""
    vm = call.machine()
    if call.params.get("todisk"):
        raise NotSimulated("Parameter 'todisk' (hibernation)")
    return call.task("qmsuspend", lambda log: models_power.suspend(call.hypervisor, vm, log))


async def resume(call: Call) -> Any:
    """POST .../status/resume."""
    vm = call.machine()
    return call.task("qmresume", lambda log: models_power.resume(call.hypervisor, vm, log))


async def migrate_check(call: Call) -> Any:
    """GET .../migrate: where the machine could go."""
    vm = call.machine()
    others = [node for node in call.hypervisor.nodes if node != call.node]
    return {
        "running": int(await call.hypervisor.state(vm) != "stopped"),
        "allowed_nodes": [node for node in others if call.hypervisor.is_online(node)],
        "not_allowed_nodes": {},
        "local_disks": [],
        "local_resources": [],
        "mapped-resources": [],
    }


async def migrate(call: Call) -> Any:
    """POST .../migrate."""
    vm, target = call.machine(), call.params["target"]
    if target == call.node:
        raise ParameterError({"target": "target is local node."})
    call.hypervisor.require_node(target)
    is_online = bool(call.params.get("online"))
    if await call.hypervisor.state(vm) != "stopped" and not is_online:
        raise ApiError("can't migrate running VM without --online")
    return call.task(
        "qmigrate",
        lambda log: models_clone.migrate(call.hypervisor, vm, target, log, is_online=is_online),
    )


async def template(call: Call) -> Any:
    """POST .../template."""
    vm = call.machine()
    if vm.is_template:
        raise ApiError("unable to convert template to template")
    if vm.snapshots:
        raise ApiError("unable to create template, because VM contains snapshots")
    return call.task(
        "qmtemplate", lambda log: models_clone.convert_to_template(call.hypervisor, vm, log)
    )


async def destroy(call: Call) -> Any:
    """DELETE /nodes/{node}/qemu/{vmid}: refused while the machine runs."""
    vm = call.machine()
    if vm.config.get("protection"):
        raise ApiError(f"can't remove VM {vm.vmid} - protection mode enabled")
    call.hypervisor.require_unlocked(vm)
    if await call.hypervisor.state(vm) != "stopped":
        raise ApiError(f"VM {vm.vmid} is running - destroy failed")
    everything = bool(call.params.get("destroy-unreferenced-disks"))
    return call.task(
        "qmdestroy",
        lambda log: models_clone.destroy(call.hypervisor, vm, log, with_unreferenced=everything),
    )
