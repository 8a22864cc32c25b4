"""Answers about a node: its status, network, storages, volumes and tasks."""

from __future__ import annotations

import time
from typing import Any

from lab.hypervisor import models_backup
from lab.hypervisor.calls import Call, Reply
from lab.hypervisor.exceptions import ApiError, PermissionDenied
from lab.hypervisor.hypervisor import NODE_CORES, NODE_MEMORY_BYTES
from lab.hypervisor.models_storage import GIB, STORAGES, Volume
from lab.hypervisor.models_tasks import TaskLog
from lab.hypervisor.parameters import split_list
from lab.hypervisor.responses_cluster import ROOT_DISK_BYTES, VERSION, node_memory


async def version(_call: Call) -> Any:
    """GET /nodes/{node}/version."""
    return {key: VERSION[key] for key in ("version", "release", "repoid")}


async def status(call: Call) -> Any:
    """GET /nodes/{node}/status."""
    used = await node_memory(call.hypervisor, call.node)
    return {
        "uptime": int(time.time() - call.hypervisor.started_at) + 3600,
        "cpu": 0.01,
        "wait": 0,
        "loadavg": ["0.10", "0.10", "0.10"],
        "pveversion": f"pve-manager/{VERSION['version']}/{VERSION['repoid']}",
        "kversion": "Linux 6.8.12-9-pve #1 SMP PREEMPT_DYNAMIC",
        "cpuinfo": {
            "cpus": NODE_CORES,
            "cores": NODE_CORES // 2,
            "sockets": 1,
            "model": "Infraflows lab CPU",
            "mhz": "3000.000",
            "hvm": "1",
            "flags": "",
            "user_hz": 100,
        },
        "memory": {
            "total": NODE_MEMORY_BYTES,
            "used": used,
            "free": NODE_MEMORY_BYTES - used,
            "available": NODE_MEMORY_BYTES - used,
        },
        "swap": {"total": 0, "used": 0, "free": 0},
        "rootfs": {
            "total": ROOT_DISK_BYTES,
            "used": 4 * GIB,
            "free": ROOT_DISK_BYTES - 4 * GIB,
            "avail": ROOT_DISK_BYTES - 4 * GIB,
        },
        "boot-info": {"mode": "efi", "secureboot": 0},
        "current-kernel": {
            "sysname": "Linux",
            "release": "6.8.12-9-pve",
            "version": "#1 SMP PREEMPT_DYNAMIC",
            "machine": "x86_64",
        },
        "ksm": {"shared": 0},
    }


async def network(call: Call) -> Any:
    """GET /nodes/{node}/network: one NIC and the bridge that the guests are on."""
    address = call.hypervisor.settings.node_addresses[call.node]
    bridge = {
        "iface": "vmbr0",
        "type": "bridge",
        "active": 1,
        "autostart": 1,
        "method": "static",
        "method6": "manual",
        "address": address,
        "netmask": "24",
        "cidr": f"{address}/24",
        "bridge_ports": "eno1",
        "bridge_stp": "off",
        "bridge_fd": "0",
        "bridge_vlan_aware": 1,
        "families": ["inet"],
        "priority": 4,
    }
    nic = {
        "iface": "eno1",
        "type": "eth",
        "active": 1,
        "exists": 1,
        "method": "manual",
        "method6": "manual",
        "families": ["inet"],
        "priority": 3,
    }
    wanted = call.params.get("type")
    if wanted in ("any_bridge", "any_local_bridge", "bridge"):
        return [bridge]
    return [entry for entry in (nic, bridge) if wanted in (None, entry["type"])]


async def storage_list(call: Call) -> Any:
    """GET /nodes/{node}/storage."""
    wanted = set(split_list(call.params.get("content")))
    return [
        call.hypervisor.storage.status(name, call.node)
        for name, storage in STORAGES.items()
        if call.may(f"/storage/{name}", "Datastore.Audit")
        and call.params.get("storage") in (None, name)
        and (not wanted or wanted & set(storage.content))
    ]


async def storage_config(call: Call) -> Any:
    """GET /storage: the cluster's storage.cfg."""
    return [
        _storage_config(name)
        for name in STORAGES
        if call.may(f"/storage/{name}", "Datastore.Audit")
        and call.params.get("type") in (None, STORAGES[name].type)
    ]


async def storage_config_one(call: Call) -> Any:
    """GET /storage/{storage}."""
    call.hypervisor.storage.storage(call.path["storage"])
    return _storage_config(call.path["storage"])


def _storage_config(name: str) -> dict[str, Any]:
    storage = STORAGES[name]
    place = {"path": storage.path} if storage.type == "dir" else {"pool": name, "sparse": 0}
    return {
        "storage": name,
        "type": storage.type,
        "content": ",".join(storage.content),
        "shared": int(storage.is_shared),
        "digest": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        **place,
    }


async def storage_status(call: Call) -> Any:
    """GET /nodes/{node}/storage/{storage}/status."""
    state = call.hypervisor.storage.status(call.path["storage"], call.node)
    return {key: state[key] for key in state if key not in ("storage", "used_fraction")}


def _volume_entry(volume: Volume) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "volid": volume.volid,
        "format": volume.format,
        "size": volume.size,
        "used": volume.size,
        "ctime": volume.ctime,
        "content": volume.content,
        "vmid": volume.vmid,
    }
    for key, value in (("parent", volume.parent), ("notes", volume.notes)):
        if value is not None:
            entry[key] = value
    if volume.content == "backup":
        entry |= {"subtype": "qemu", "protected": volume.protected}
    return entry


async def content(call: Call) -> Any:
    """GET /nodes/{node}/storage/{storage}/content."""
    name = call.path["storage"]
    call.hypervisor.storage.storage(name)
    return [
        _volume_entry(volume)
        for volume in call.hypervisor.storage.volumes(name, call.node)
        if call.params.get("content") in (None, volume.content)
        and call.params.get("vmid") in (None, volume.vmid)
    ]


def _volume(call: Call) -> Volume:
    name = call.path["volume"]
    volid = name if ":" in name else f"{call.path['storage']}:{name}"
    volume = call.hypervisor.storage.find(volid, call.node)
    if volume is None:
        raise ApiError(f"volume '{volid}' does not exist")
    return volume


async def volume_get(call: Call) -> Any:
    """GET .../content/{volume}."""
    volume = _volume(call)
    storage = call.hypervisor.storage.storage(volume.storage)
    folder = "dump/" if volume.content == "backup" else ""
    entry = {
        "path": f"{storage.path}/{folder}{volume.name.rsplit('/', 1)[-1]}",
        "format": volume.format,
        "size": volume.size,
        "used": volume.size,
    }
    if volume.content == "backup":
        entry |= {"notes": volume.notes or "", "protected": volume.protected}
    return entry


async def volume_put(call: Call) -> Any:
    """PUT .../content/{volume}: notes and protection of a backup."""
    volume = _volume(call)
    if volume.content != "backup":
        raise ApiError("volume notes are only supported for backups")
    volume.notes = call.params.get("notes", volume.notes)
    volume.protected = call.params.get("protected", volume.protected)
    call.hypervisor.storage.save(volume)


async def volume_delete(call: Call) -> Any:
    """DELETE .../content/{volume}: a task that removes an image or a backup."""
    volume = _volume(call)
    owner = call.hypervisor.find(volume.vmid)
    if volume.protected:
        raise ApiError(f"volume '{volume.volid}' is protected")
    if owner is not None and volume.content == "images":
        values = [str(value).partition(",")[0] for value in owner.config.values()]
        if volume.volid in values:
            raise ApiError(
                f"Cannot remove image, a guest with VMID '{volume.vmid}' exists!\n"
                "You can delete the image from the guest's hardware pane"
            )

    async def work(log: TaskLog) -> None:
        await log.halfway()
        if volume.content == "backup":
            await models_backup.remove(models_backup.archive_path(call.hypervisor, volume))
        await call.hypervisor.free_volume(volume)
        log.line(f"Removed volume '{volume.volid}'")

    identifier = f"{volume.vmid}@{volume.storage}"
    return call.hypervisor.tasks.start(call.node, "imgdel", identifier, call.token.identifier, work)


def _matches(task: dict[str, Any], wanted: dict[str, Any]) -> bool:
    is_failed = task.get("exitstatus", "OK") != "OK"
    source = wanted.get("source", "archive")
    is_running = task["status"] == "running"
    return (
        str(wanted.get("vmid", task["id"])) == task["id"]
        and wanted.get("typefilter", task["type"]) == task["type"]
        and wanted.get("userfilter", "") in task["user"]
        and (is_failed or not wanted.get("errors"))
        and task["starttime"] >= wanted.get("since", 0)
        and task["starttime"] <= wanted.get("until", task["starttime"])
        and (source == "all" or (source == "active") == is_running)
    )


def _may_see(call: Call, task: dict[str, Any]) -> bool:
    owner = task["user"] + (f"!{task['tokenid']}" if task["tokenid"] else "")
    return owner == call.token.identifier or call.may(f"/nodes/{task['node']}", "Sys.Audit")


def _listed(task: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in task.items() if key not in ("exitstatus", "tokenid")}
    if task["status"] != "running":
        shown["status"] = task["exitstatus"]
    else:
        del shown["status"]
    return {**shown, **({"tokenid": task["tokenid"]} if task["tokenid"] else {})}


async def tasks(call: Call) -> Any:
    """GET /nodes/{node}/tasks."""
    found = [
        task
        for task in call.hypervisor.tasks.all(call.node)
        if _matches(task, call.params) and _may_see(call, task)
    ]
    start, limit = call.params.get("start", 0), call.params.get("limit", 50)
    return Reply([_listed(task) for task in found[start : start + limit]], total=len(found))


async def cluster_tasks(call: Call) -> Any:
    """GET /cluster/tasks."""
    found = [task for task in call.hypervisor.tasks.all() if _may_see(call, task)]
    return [_listed(task) for task in found[:50]]


def _task(call: Call) -> dict[str, Any]:
    task = call.hypervisor.tasks.get(call.path["upid"], call.node)
    if not _may_see(call, task):
        raise PermissionDenied(f"/nodes/{call.node}", "Sys.Audit")
    return task


async def task_status(call: Call) -> Any:
    """GET /nodes/{node}/tasks/{upid}/status."""
    task = _task(call)
    return {key: value for key, value in task.items() if key != "endtime" and value != ""}


async def task_log(call: Call) -> Any:
    """GET /nodes/{node}/tasks/{upid}/log."""
    task = _task(call)
    start, limit = call.params.get("start", 0), call.params.get("limit", 50)
    total, lines = call.hypervisor.tasks.lines(task["upid"], start, limit)
    return Reply(lines, total=total)


async def task_stop(call: Call) -> Any:
    """DELETE /nodes/{node}/tasks/{upid}."""
    await call.hypervisor.tasks.stop(_task(call)["upid"])
