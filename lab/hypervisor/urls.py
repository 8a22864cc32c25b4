"""Every route that the lab simulates, with what it takes and which privileges it needs.

Why: one table to read; whatever is not in it is answered with 501 and its name.
"""

from __future__ import annotations

import re

from lab.hypervisor import (
    responses_access as access,
)
from lab.hypervisor import (
    responses_agent as agent,
)
from lab.hypervisor import (
    responses_cluster as cluster,
)
from lab.hypervisor import (
    responses_nodes as nodes,
)
from lab.hypervisor import (
    responses_qemu as qemu,
)
from lab.hypervisor import (
    responses_snapshots as snapshots,
)
from lab.hypervisor import (
    url_schemas as schemas,
)
from lab.hypervisor.calls import Route
from lab.hypervisor.exceptions import MethodNotImplemented
from lab.hypervisor.parameters import (
    SNAPSHOT_NAME,
    STORAGE_ID,
    Schema,
    array,
    boolean,
    integer,
    string,
)

_QEMU = "/nodes/{node}/qemu/{vmid}"
_STORAGE = "/nodes/{node}/storage/{storage}"
_VM_AUDIT = ("/vms/{vmid}", "VM.Audit")
_VM_POWER = ("/vms/{vmid}", "VM.PowerMgmt")
_VM_CONFIG = (
    "/vms/{vmid}",
    "|".join(
        f"VM.Config.{part}"
        for part in ["Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit"]
    ),
)
_VM_SNAPSHOT = ("/vms/{vmid}", "VM.Snapshot")
_VM_MONITOR = ("/vms/{vmid}", "VM.Monitor")
_POOL_ID = string(required=True, pattern=r"[A-Za-z0-9\-_.]+(/[A-Za-z0-9\-_.]+){0,2}")


def _agent_reads() -> list[Route]:
    readers = {
        "network-get-interfaces": agent.interfaces,
        "get-osinfo": agent.os_info,
        "get-host-name": agent.host_name,
        "get-fsinfo": agent.file_systems,
    }
    return [
        Route("GET", f"{_QEMU}/agent/{name}", handler, needs=_VM_MONITOR)
        for name, handler in readers.items()
    ]


_CLUSTER_ROUTES = [
    Route("GET", "/version", cluster.version),
    Route("GET", "/access/permissions", cluster.permissions, Schema({"path": string()})),
    Route("GET", "/cluster/status", cluster.status, needs=("/", "Sys.Audit")),
    Route(
        "GET",
        "/cluster/resources",
        cluster.resources,
        Schema({"type": string(choices=("vm", "storage", "node", "sdn"))}),
    ),
    Route("GET", "/cluster/nextid", cluster.next_id, Schema({"vmid": integer(100, 999999999)})),
    Route("GET", "/cluster/options", cluster.options),
    Route("GET", "/cluster/tasks", nodes.cluster_tasks),
    Route("GET", "/pools", cluster.pool_list, Schema({"poolid": string(), "type": string()})),
    Route("GET", "/pools/{poolid}", cluster.pool_get, Schema({"type": string()})),
    Route("POST", "/pools", cluster.pool_create, Schema({"comment": string(), "poolid": _POOL_ID})),
    Route(
        "PUT", "/pools", cluster.pool_update, Schema({**schemas.POOL_CHANGE, "poolid": _POOL_ID})
    ),
    Route("PUT", "/pools/{poolid}", cluster.pool_update, Schema(schemas.POOL_CHANGE)),
    Route("DELETE", "/pools", cluster.pool_delete, Schema({"poolid": _POOL_ID})),
    Route("DELETE", "/pools/{poolid}", cluster.pool_delete),
    Route("GET", "/storage", nodes.storage_config, Schema({"type": string()})),
    Route(
        "GET",
        "/storage/{storage}",
        nodes.storage_config_one,
        needs=("/storage/{storage}", "Datastore.Allocate"),
    ),
]

_DATASTORE_AUDIT = ("/storage/{storage}", "Datastore.Audit|Datastore.AllocateSpace")
_NODE_ROUTES = [
    Route("GET", "/nodes", cluster.nodes),
    Route("GET", "/nodes/{node}/version", nodes.version),
    Route("GET", "/nodes/{node}/status", nodes.status, needs=("/nodes/{node}", "Sys.Audit")),
    Route("GET", "/nodes/{node}/network", nodes.network, Schema({"type": string()})),
    Route(
        "GET",
        "/nodes/{node}/storage",
        nodes.storage_list,
        Schema(
            {
                "content": string(),
                "enabled": boolean(),
                "format": boolean(),
                "storage": STORAGE_ID,
                "target": string(),
            }
        ),
    ),
    Route("GET", f"{_STORAGE}/status", nodes.storage_status, needs=_DATASTORE_AUDIT),
    Route(
        "GET",
        f"{_STORAGE}/content",
        nodes.content,
        Schema({"content": string(), "vmid": integer(100)}),
        needs=_DATASTORE_AUDIT,
    ),
    Route("GET", f"{_STORAGE}/content/{{volume}}", nodes.volume_get, needs=_DATASTORE_AUDIT),
    Route(
        "PUT",
        f"{_STORAGE}/content/{{volume}}",
        nodes.volume_put,
        Schema({"notes": string(), "protected": boolean()}),
        needs=("/storage/{storage}", "Datastore.Allocate"),
    ),
    Route(
        "DELETE",
        f"{_STORAGE}/content/{{volume}}",
        nodes.volume_delete,
        Schema({"delay": integer(1, 30)}),
        needs=("/storage/{storage}", "Datastore.Allocate"),
    ),
    Route("GET", "/nodes/{node}/tasks", nodes.tasks, schemas.TASKS),
    Route("GET", "/nodes/{node}/tasks/{upid}/status", nodes.task_status),
    Route(
        "GET",
        "/nodes/{node}/tasks/{upid}/log",
        nodes.task_log,
        Schema({"download": boolean(), "limit": integer(0), "start": integer(0)}),
    ),
    Route("DELETE", "/nodes/{node}/tasks/{upid}", nodes.task_stop, needs_quorum=False),
    Route("POST", "/nodes/{node}/vzdump", snapshots.vzdump, schemas.VZDUMP),
]

_QEMU_ROUTES = [
    Route("GET", "/nodes/{node}/qemu", qemu.listing, Schema({"full": boolean()})),
    Route("POST", "/nodes/{node}/qemu", qemu.create, schemas.CREATE),
    Route("DELETE", _QEMU, qemu.destroy, schemas.DESTROY, needs=("/vms/{vmid}", "VM.Allocate")),
    Route(
        "GET",
        f"{_QEMU}/config",
        qemu.config_get,
        Schema({"current": boolean(), "snapshot": string()}),
        needs=_VM_AUDIT,
    ),
    Route("GET", f"{_QEMU}/pending", qemu.config_pending, needs=_VM_AUDIT),
    Route("PUT", f"{_QEMU}/config", qemu.config_put, schemas.UPDATE_SCHEMA, needs=_VM_CONFIG),
    Route("POST", f"{_QEMU}/config", qemu.config_post, schemas.UPDATE_ASYNC, needs=_VM_CONFIG),
    Route("PUT", f"{_QEMU}/resize", qemu.resize, schemas.RESIZE, ("/vms/{vmid}", "VM.Config.Disk")),
    Route("POST", f"{_QEMU}/clone", qemu.clone, schemas.CLONE, ("/vms/{vmid}", "VM.Clone")),
    Route(
        "POST",
        f"{_QEMU}/template",
        qemu.template,
        Schema({"disk": string()}),
        needs=("/vms/{vmid}", "VM.Allocate"),
    ),
    Route(
        "GET",
        f"{_QEMU}/migrate",
        qemu.migrate_check,
        Schema({"target": string()}),
        ("/vms/{vmid}", "VM.Migrate"),
    ),
    Route("POST", f"{_QEMU}/migrate", qemu.migrate, schemas.MIGRATE, ("/vms/{vmid}", "VM.Migrate")),
    Route("GET", f"{_QEMU}/status/current", qemu.status_current, needs=_VM_AUDIT),
    Route("POST", f"{_QEMU}/status/start", qemu.start, schemas.START, _VM_POWER),
    Route("POST", f"{_QEMU}/status/stop", qemu.stop, schemas.STOP, _VM_POWER),
    Route("POST", f"{_QEMU}/status/shutdown", qemu.shutdown, schemas.SHUTDOWN, _VM_POWER),
    Route("POST", f"{_QEMU}/status/reboot", qemu.reboot, schemas.REBOOT, _VM_POWER),
    Route("POST", f"{_QEMU}/status/reset", qemu.reset, schemas.RESET, _VM_POWER),
    Route(
        "POST",
        f"{_QEMU}/status/suspend",
        qemu.suspend,
        Schema({"skiplock": boolean(), "statestorage": string(), "todisk": boolean()}),
        _VM_POWER,
    ),
    Route(
        "POST",
        f"{_QEMU}/status/resume",
        qemu.resume,
        Schema({"nocheck": boolean(), "skiplock": boolean()}),
        _VM_POWER,
    ),
    Route("GET", f"{_QEMU}/snapshot", snapshots.snapshots, needs=_VM_AUDIT),
    Route(
        "POST",
        f"{_QEMU}/snapshot",
        snapshots.snapshot_create,
        Schema({"description": string(), "snapname": SNAPSHOT_NAME, "vmstate": boolean()}),
        _VM_SNAPSHOT,
    ),
    Route(
        "GET",
        f"{_QEMU}/snapshot/{{snapname}}/config",
        snapshots.snapshot_config,
        needs=("/vms/{vmid}", "VM.Snapshot|VM.Snapshot.Rollback|VM.Audit"),
    ),
    Route(
        "PUT",
        f"{_QEMU}/snapshot/{{snapname}}/config",
        snapshots.snapshot_update,
        Schema({"description": string()}),
        _VM_SNAPSHOT,
    ),
    Route(
        "POST",
        f"{_QEMU}/snapshot/{{snapname}}/rollback",
        snapshots.snapshot_rollback,
        Schema({"start": boolean()}),
        ("/vms/{vmid}", "VM.Snapshot|VM.Snapshot.Rollback"),
    ),
    Route(
        "DELETE",
        f"{_QEMU}/snapshot/{{snapname}}",
        snapshots.snapshot_delete,
        Schema({"force": boolean()}),
        _VM_SNAPSHOT,
    ),
]

_AGENT_ROUTES = [
    *_agent_reads(),
    Route("POST", f"{_QEMU}/agent/ping", agent.ping, needs=_VM_MONITOR, needs_quorum=False),
    Route(
        "POST",
        f"{_QEMU}/agent",
        agent.generic,
        Schema({"command": string(required=True)}),
        _VM_MONITOR,
        needs_quorum=False,
    ),
    Route(
        "POST",
        f"{_QEMU}/agent/exec",
        agent.execute,
        Schema({"command": array(required=True), "input-data": string(max_length=65536)}),
        _VM_MONITOR,
        needs_quorum=False,
    ),
    Route(
        "GET",
        f"{_QEMU}/agent/exec-status",
        agent.execute_status,
        Schema({"pid": integer(required=True)}),
        _VM_MONITOR,
    ),
    Route(
        "GET",
        f"{_QEMU}/agent/file-read",
        agent.file_read,
        Schema({"file": string(required=True)}),
        _VM_MONITOR,
    ),
    Route(
        "POST",
        f"{_QEMU}/agent/file-write",
        agent.file_write,
        Schema(
            {
                "content": string(required=True, max_length=61440),
                "encode": boolean(),
                "file": string(required=True),
            }
        ),
        _VM_MONITOR,
        needs_quorum=False,
    ),
]

_TOKENS = "/access/users/{userid}/token"
_USER_MODIFY = ("/access", "User.Modify")
_ACCESS_ROUTES = [
    Route("GET", "/access/acl", access.acl_get),
    Route("PUT", "/access/acl", access.acl_put, schemas.ACL_CHANGE),
    Route("GET", _TOKENS, access.token_list, needs=_USER_MODIFY),
    Route("GET", f"{_TOKENS}/{{tokenid}}", access.token_get, needs=_USER_MODIFY),
    Route("POST", f"{_TOKENS}/{{tokenid}}", access.token_create, schemas.TOKEN, _USER_MODIFY),
    Route("PUT", f"{_TOKENS}/{{tokenid}}", access.token_update, schemas.TOKEN_CHANGE, _USER_MODIFY),
    Route("DELETE", f"{_TOKENS}/{{tokenid}}", access.token_delete, needs=_USER_MODIFY),
]

ROUTES = [*_ACCESS_ROUTES, *_CLUSTER_ROUTES, *_NODE_ROUTES, *_QEMU_ROUTES, *_AGENT_ROUTES]

_SHAPES = {
    "vmid": r"\d+",
    "volume": r".+",
    "upid": r"[^/]+",
    "userid": r"[^/@!]+@[^/@!]+",
    "tokenid": r"[A-Za-z][A-Za-z0-9.\-_]+",
}


def _compiled(route: Route) -> tuple[str, re.Pattern[str], Route]:
    pattern = re.sub(
        r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{_SHAPES.get(name[1], '[^/]+')})", route.path
    )
    return route.method, re.compile(pattern), route


_COMPILED = [_compiled(route) for route in ROUTES]


def find(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route of a request and the names in its path, or 501."""
    for known_method, pattern, route in _COMPILED:
        if known_method == method and (match := pattern.fullmatch(path)):
            return route, match.groupdict()
    raise MethodNotImplemented(method, path)
