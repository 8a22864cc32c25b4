"""Takes a cluster out of the lab by force, in seconds, with its administrator's rights.

Why it exists: a test that starts from an empty pool must not depend on the flow that removes
clusters, which is itself under test. What it promises: afterwards no machine, disk, pool, secret or
state of the cluster exists. What it refuses: to hide what it cannot remove; it raises.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from lab.holdings import ProxmoxAdmin, ProxmoxRefused, look
from lab.hypervisor.faults import request as ask_hypervisor
from lab.layout import ENVIRONMENT, Layout
from lab.services import proxmox
from lab.services.openbao_setup import KV_MOUNT, root_client
from lab.services.state_store import StateStore

TASK_SECONDS = 60.0
_POLL_SECONDS = 0.1


def _wait(api: ProxmoxAdmin, upid: Any) -> None:
    """Wait for a task; how it ended is judged by what is there afterwards."""
    if not isinstance(upid, str) or not upid.startswith("UPID:"):
        return
    node = upid.split(":")[1]
    deadline = time.monotonic() + TASK_SECONDS
    while api.call("GET", f"/nodes/{node}/tasks/{quote(upid)}/status")["status"] == "running":
        if time.monotonic() > deadline:
            raise ProxmoxRefused(f"{upid} runs for more than {TASK_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)


def _end_tasks(api: ProxmoxAdmin, vm_ids: set[int]) -> None:
    for task in api.call("GET", "/cluster/tasks"):
        if not task.get("endtime") and str(task.get("id", "")).isdigit():
            # A clone's task bears the template's number, and may be of any machine: all are waited.
            if int(task["id"]) in vm_ids:
                with suppress(ProxmoxRefused):  # it ended by itself meanwhile
                    api.call("DELETE", f"/nodes/{task['node']}/tasks/{quote(task['upid'])}")
            _wait(api, task["upid"])


def clear_machines(layout: Layout, cluster: str, vm_ids: set[int]) -> None:
    """Remove the machines and disks of the cluster's name and numbers, locked ones too."""
    api = ProxmoxAdmin(layout)
    _end_tasks(api, vm_ids)
    found = look(layout)
    for vm in found.machines:
        if vm.vm_id not in vm_ids and vm.pool != cluster:
            continue
        if vm.lock:
            message = {"action": "unlock", "vmid": vm.vm_id}
            ask_hypervisor(proxmox.faults_socket(layout), message)
        where = f"/nodes/{vm.node}/qemu/{vm.vm_id}"
        if vm.status == "running":
            _wait(api, api.call("POST", f"{where}/status/stop"))
        _wait(api, api.call("DELETE", where, purge=1))
    marks = tuple(f"vm-{vm_id}-" for vm_id in vm_ids)
    for volume in look(layout).orphaned_volumes:
        storage, _, name = volume.partition(":")
        if name.startswith(marks):
            path = f"/nodes/pve1/storage/{storage}/content/{quote(volume, safe='')}"
            _wait(api, api.call("DELETE", path))


def clear_cluster(layout: Layout, cluster: str, vm_ids: set[int]) -> None:
    """Remove what exists under the cluster's name and at its machines' numbers."""
    clear_machines(layout, cluster, vm_ids)
    api, found = ProxmoxAdmin(layout), look(layout)
    if cluster in found.pools:
        api.call("DELETE", f"/pools/{cluster}")
    bao = root_client(layout)
    for path in found.of(cluster).secret_paths:
        bao.call("DELETE", f"{KV_MOUNT}/metadata/{path}")
    states = StateStore(layout.state_directory)
    states.unlock(f"{ENVIRONMENT}-{cluster}", None)
    states.delete(f"{ENVIRONMENT}-{cluster}", None)
