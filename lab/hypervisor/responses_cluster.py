"""Answers about the cluster: version, permissions, status, resources, ids, options and pools."""

from __future__ import annotations

import time
from typing import Any

from lab.hypervisor.calls import Call
from lab.hypervisor.exceptions import ApiError, ParameterError
from lab.hypervisor.guest_runtime import GuestNotRunning, GuestState, GuestUsage
from lab.hypervisor.hypervisor import CLUSTER_NAME, NODE_CORES, NODE_MEMORY_BYTES, Hypervisor
from lab.hypervisor.models_storage import GIB, STORAGES
from lab.hypervisor.models_vm import VirtualMachine, parse_size, split_options
from lab.hypervisor.parameters import split_list

VERSION = {"version": "8.4.1", "release": "8.4", "repoid": "2a5fa54a8503f96d", "console": "html5"}
ROOT_DISK_BYTES = 100 * GIB
_IDLE = GuestUsage(0.0, 0, 0.0)


async def version(_call: Call) -> Any:
    """GET /version."""
    return VERSION


async def permissions(call: Call) -> Any:
    """GET /access/permissions: of the token that asks."""
    held = call.token.permissions()
    path = call.params.get("path")
    if path is None:
        return held
    return {path: dict.fromkeys(sorted(call.token.privileges(path)), 1)}


async def status(call: Call) -> Any:
    """GET /cluster/status."""
    hypervisor = call.hypervisor
    nodes = [
        {
            "type": "node",
            "id": f"node/{node}",
            "name": node,
            "nodeid": number,
            "ip": address,
            "level": "",
            "local": int(number == 1),
            "online": int(hypervisor.is_online(node)),
        }
        for number, (node, address) in enumerate(hypervisor.settings.node_addresses.items(), 1)
    ]
    cluster = {
        "type": "cluster",
        "id": "cluster",
        "name": CLUSTER_NAME,
        "nodes": len(nodes),
        "quorate": int(hypervisor.is_quorate),
        "version": len(nodes),
    }
    return [cluster, *nodes]


async def next_id(call: Call) -> Any:
    """GET /cluster/nextid: a string on the wire."""
    wanted = call.params.get("vmid")
    if wanted is not None:
        if call.hypervisor.find(wanted) is not None:
            raise ParameterError({"vmid": f"VM {wanted} already exists"})
        return str(wanted)
    taken = {vm.vmid for vm in call.hypervisor.machines}
    return str(next(vmid for vmid in range(100, 1_000_000) if vmid not in taken))


async def options(call: Call) -> Any:
    """GET /cluster/options."""
    tags = {tag for vm in call.hypervisor.machines for tag in split_list(vm.config.get("tags"))}
    return {
        "keyboard": "en-us",
        "mac_prefix": "BC:24:11",
        "allowed-tags": sorted(tags),
    }


async def usage(hypervisor: Hypervisor, vm: VirtualMachine, state: GuestState) -> GuestUsage:
    """A machine's usage; nothing for one that is stopped."""
    if state == "stopped":
        return _IDLE
    try:
        return await hypervisor.runtime.usage(vm.vmid)
    except GuestNotRunning:  # it powered off since its state was read
        return _IDLE


def cpu_share(vm: VirtualMachine, used: GuestUsage) -> float:
    """The mean load since the start, as a share of the machine's CPUs."""
    if used.uptime_seconds <= 0:
        return 0.0
    return min(1.0, used.cpu_seconds / used.uptime_seconds / vm.cpus)


def disk_bytes(vm: VirtualMachine) -> int:
    """The size of the disk that the machine boots from."""
    drive = vm.boot_drive()
    size = split_options(str(vm.config[drive]), "file").get("size") if drive else None
    return parse_size(size) if size else 0


async def vm_summary(hypervisor: Hypervisor, vm: VirtualMachine) -> dict[str, Any]:
    """The fields that every list of machines shares."""
    is_online = hypervisor.is_online(vm.node)
    state: GuestState = await hypervisor.state(vm) if is_online else "stopped"
    used = await usage(hypervisor, vm, state)
    summary: dict[str, Any] = {
        "vmid": vm.vmid,
        "name": vm.name,
        "status": "unknown" if not is_online else "stopped" if state == "stopped" else "running",
        "maxmem": vm.memory_mib * 1024**2,
        "maxdisk": disk_bytes(vm),
        "mem": used.memory_bytes,
        "cpu": cpu_share(vm, used),
        "uptime": int(used.uptime_seconds),
        "disk": 0,
        "diskread": 0,
        "diskwrite": 0,
        "netin": 0,
        "netout": 0,
    }
    for key in ("tags", "lock", "template"):
        if key in vm.config:
            summary[key] = vm.config[key]
    return summary


async def resources(call: Call) -> Any:
    """GET /cluster/resources."""
    wanted = call.params.get("type")
    found: list[dict[str, Any]] = []
    if wanted in (None, "vm"):
        found += await _machine_resources(call)
    if wanted in (None, "node"):
        found += [await _node_resource(call.hypervisor, node) for node in call.hypervisor.nodes]
    if wanted in (None, "storage"):
        found += _storage_resources(call)
    if wanted is None:
        found += [{"type": "pool", "id": f"/pool/{p}", "pool": p} for p in call.hypervisor.pools]
    if wanted in (None, "sdn"):
        found += [
            {
                "type": "sdn",
                "id": f"sdn/{node}/localnetwork",
                "node": node,
                "sdn": "localnetwork",
                "status": "ok",
            }
            for node in call.hypervisor.nodes
        ]
    return found


async def _machine_resources(call: Call) -> list[dict[str, Any]]:
    found = []
    for vm in call.hypervisor.machines:
        if not call.may(f"/vms/{vm.vmid}", "VM.Audit"):
            continue
        entry = await vm_summary(call.hypervisor, vm)
        entry |= {
            "type": "qemu",
            "id": f"qemu/{vm.vmid}",
            "node": vm.node,
            "maxcpu": vm.cpus,
            "template": int(vm.is_template),
        }
        if pool := call.hypervisor.pool_of(vm.vmid):
            entry["pool"] = pool
        found.append(entry)
    return found


async def node_memory(hypervisor: Hypervisor, node: str) -> int:
    """Memory that a node's guests take, and a little for the node itself."""
    taken = 2 * GIB
    for vm in hypervisor.machines:
        if vm.node == node and await hypervisor.state(vm) != "stopped":
            taken += vm.memory_mib * 1024**2
    return taken


async def _node_resource(hypervisor: Hypervisor, node: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "node", "id": f"node/{node}", "node": node, "level": ""}
    if not hypervisor.is_online(node):
        return {**entry, "status": "offline"}
    return {
        **entry,
        "status": "online",
        "cgroup-mode": 2,
        "cpu": 0.01,
        "maxcpu": NODE_CORES,
        "mem": await node_memory(hypervisor, node),
        "maxmem": NODE_MEMORY_BYTES,
        "disk": 4 * GIB,
        "maxdisk": ROOT_DISK_BYTES,
        "uptime": int(time.time() - hypervisor.started_at) + 3600,
    }


def _storage_resources(call: Call) -> list[dict[str, Any]]:
    found = []
    for node in call.hypervisor.nodes:
        for name, storage in STORAGES.items():
            if not call.may(f"/storage/{name}", "Datastore.Audit"):
                continue
            state = call.hypervisor.storage.status(name, node)
            found.append(
                {
                    "type": "storage",
                    "id": f"storage/{node}/{name}",
                    "node": node,
                    "storage": name,
                    "plugintype": storage.type,
                    "content": state["content"],
                    "shared": state["shared"],
                    "status": "available" if call.hypervisor.is_online(node) else "unknown",
                    "disk": state["used"],
                    "maxdisk": state["total"],
                }
            )
    return found


async def nodes(call: Call) -> Any:
    """GET /nodes."""
    found = []
    for node in call.hypervisor.nodes:
        entry = await _node_resource(call.hypervisor, node)
        entry["ssl_fingerprint"] = ""
        found.append(entry)
    return found


async def pool_list(call: Call) -> Any:
    """GET /pools, or one pool by `poolid`."""
    wanted = call.params.get("poolid")
    if wanted is not None:
        return [{"poolid": wanted, **await _pool_content(call, wanted)}]
    return [
        {"poolid": name, **_comment(pool)}
        for name, pool in sorted(call.hypervisor.pools.items())
        if call.may(f"/pool/{name}", "Pool.Audit")
    ]


def _comment(pool: dict[str, Any]) -> dict[str, str]:
    return {"comment": pool["comment"]} if pool["comment"] else {}


def _require_pool(call: Call, name: str) -> dict[str, Any]:
    if name not in call.hypervisor.pools:
        raise ApiError(f"no such pool '{name}'")
    return call.hypervisor.pools[name]


async def _pool_content(call: Call, name: str) -> dict[str, Any]:
    call.require(f"/pool/{name}", "Pool.Audit")
    pool = _require_pool(call, name)
    members = [m for m in await _machine_resources(call) if m.get("pool") == name]
    members += [m for m in _storage_resources(call) if m["storage"] in pool["storages"]]
    return {**_comment(pool), "members": members}


async def pool_get(call: Call) -> Any:
    """GET /pools/{poolid}."""
    return await _pool_content(call, call.path["poolid"])


async def pool_create(call: Call) -> Any:
    """POST /pools."""
    name = call.params["poolid"]
    call.require(f"/pool/{name}", "Pool.Allocate")
    if name in call.hypervisor.pools:
        raise ApiError(f"create pool failed: pool '{name}' already exists")
    call.hypervisor.pools[name] = {
        "comment": call.params.get("comment", ""),
        "vms": [],
        "storages": [],
    }
    call.hypervisor.save_pool(name)


async def pool_update(call: Call) -> Any:
    """PUT /pools/{poolid}: add or (with `delete`) take out machines and storages."""
    name = call.path.get("poolid") or call.params["poolid"]
    call.require(f"/pool/{name}", "Pool.Allocate")
    pool = _require_pool(call, name)
    if "comment" in call.params:
        pool["comment"] = call.params["comment"]
    for text in split_list(call.params.get("vms")):
        _move_vm(call, name, int(text))
    for storage in split_list(call.params.get("storage")):
        call.require(f"/storage/{storage}", "Datastore.Allocate")
        call.hypervisor.storage.storage(storage)
        if call.params.get("delete"):
            pool["storages"] = [known for known in pool["storages"] if known != storage]
        elif storage not in pool["storages"]:
            pool["storages"].append(storage)
    call.hypervisor.save_pool(name)


def _move_vm(call: Call, name: str, vmid: int) -> None:
    call.require(f"/vms/{vmid}", "VM.Allocate")
    if call.hypervisor.find(vmid) is None:
        raise ApiError(f"update pool failed: VM {vmid} does not exist")
    current = call.hypervisor.pool_of(vmid)
    if call.params.get("delete"):
        if current != name:
            raise ApiError(f"update pool failed: VM {vmid} is not a pool member")
        call.hypervisor.pools[name]["vms"].remove(vmid)
        return
    if current == name:
        raise ApiError(f"update pool failed: VM {vmid} is already a pool member")
    if current is not None:
        if not call.params.get("allow-move"):
            raise ApiError(
                f"update pool failed: VM {vmid} belongs already to pool '{current}' and"
                " allow-move is not set"
            )
        call.hypervisor.pools[current]["vms"].remove(vmid)
        call.hypervisor.save_pool(current)
    call.hypervisor.pools[name]["vms"].append(vmid)


async def pool_delete(call: Call) -> Any:
    """DELETE /pools/{poolid}: only an empty one."""
    name = call.path.get("poolid") or call.params["poolid"]
    call.require(f"/pool/{name}", "Pool.Allocate")
    pool = call.hypervisor.pools.get(name)
    if pool is None:
        raise ApiError(f"delete pool failed: pool '{name}' does not exist")
    if pool["vms"] or pool["storages"]:
        raise ApiError(f"delete pool failed: pool '{name}' is not empty")
    del call.hypervisor.pools[name]
    call.hypervisor.store.delete("pool", name)
