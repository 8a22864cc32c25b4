"""Proxmox VE: where the machines live.

Promises small typed acts that may be repeated: creating what exists and deleting what is absent
succeed, every change is waited for and read back, and a machine is deleted only under the name
that the caller expects. Refuses to speak without verified TLS, or to wait without an end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from prefect.blocks.core import Block
from pydantic import Field

from blocks import proxmox_reading as reading
from blocks.documents import document
from blocks.openbao import openbao
from blocks.proxmox_transport import ProxmoxTransport, sentence_error, shortened
from domain.errors import Conflict, LifecycleError, NotFound, PermanentError, TemporaryError
from domain.hypervisors import (
    AgentInterface,
    ApiVersion,
    FinishedTask,
    Node,
    Pool,
    Privileges,
    Quorum,
    Storage,
    VirtualMachine,
    Volume,
)

POLL_SECONDS = 0.5
TASK_DEADLINE_SECONDS = 1800.0
LOCK_DEADLINE_SECONDS = 900.0
ABANDONED_SECONDS = 10.0
"""A lock that no running task explains for this long is what a dead task has left."""
LOG_TAIL_LINES = 5
MISSED_ANSWERS_AT_MOST = 20
GOOD_ENDS = ("OK", "WARNINGS")


class ProxmoxApi:
    """The acts on one cluster, with a credential that lives as long as this object."""

    def __init__(self, transport: ProxmoxTransport) -> None:
        """Take the way to reach the cluster."""
        self._http = transport

    @property
    def endpoint(self) -> str:
        """An address of the API that answers."""
        return self._http.endpoint

    def version(self) -> ApiVersion:
        """Return the release that answers."""
        answer = self._http.get("read the version of Proxmox VE", "version")
        return ApiVersion(str(answer.get("version") or answer.get("release") or ""))

    def privileges(self) -> Privileges:
        """Return what the token may do, by path."""
        return reading.privileges(
            self._http.get("read the token's privileges", "access/permissions")
        )

    def quorum(self) -> Quorum:
        """Return whether the cluster may change anything."""
        return reading.quorum(self._http.get("read the cluster's quorum", "cluster/status"))

    def nodes(self) -> tuple[Node, ...]:
        """Return the hypervisors, by name."""
        return reading.nodes(self._http.get("list the hypervisors", "nodes"))

    def storages(self, node: str) -> list[Storage]:
        """Return the storages as one hypervisor sees them."""
        return reading.storages(
            node, self._http.get(f"list the storages of {node}", f"nodes/{node}/storage")
        )

    def volumes(self, node: str, storage: str) -> list[Volume]:
        """Return the machines' disks on a storage, as one hypervisor sees it."""
        answer = self._http.get(
            f"list the disks on {storage}",
            f"nodes/{node}/storage/{storage}/content",
            content="images",
        )
        return reading.volumes(node, answer)

    def delete_disks_of(self, vm_id: int, node: str, name: str, pool: str) -> None:
        """Delete the disks at the number of a machine that does not exist.

        To delete a disk by itself needs a right over every disk on the storage. A machine takes the
        disks of its number with it: so an empty one is made under the name and deleted. One that a
        kill leaves between the two is half-made like any other.

        Raises:
            Conflict: a machine of this number exists.
        """
        upid = self._http.post(
            f"make an empty machine {vm_id}", f"nodes/{node}/qemu", vmid=vm_id, name=name, pool=pool
        )
        self.wait_task(str(upid), f"making an empty machine {vm_id}")
        self.delete_machine(vm_id, node, expected_name=name)

    def pools(self) -> tuple[Pool, ...]:
        """Return the resource pools."""
        answer = self._http.get("list the pools", "pools")
        return tuple(
            Pool(str(entry["poolid"]), str(entry.get("comment") or "")) for entry in answer
        )

    def create_pool(self, name: str, comment: str) -> bool:
        """Create a pool; return False when it existed already."""
        if any(pool.name == name for pool in self.pools()):
            return False
        # Where another run was first, the read below decides.
        with suppress(Conflict):
            self._http.post(f"create the pool {name}", "pools", poolid=name, comment=comment)
        if not any(pool.name == name for pool in self.pools()):
            raise TemporaryError(
                f"Unable to confirm the pool {name}: it is not listed now. Try again."
            )
        return True

    def delete_pool(self, name: str) -> bool:
        """Delete an empty pool; return False when it was absent already."""
        if all(pool.name != name for pool in self.pools()):
            return False
        try:
            self._http.delete(f"delete the pool {name}", f"pools/{name}")
        except NotFound:
            return False
        return True

    def config(self, vm_id: int, node: str) -> dict[str, Any]:
        """Return a machine's configuration."""
        answer = self._http.get(
            f"read the configuration of machine {vm_id}", f"nodes/{node}/qemu/{vm_id}/config"
        )
        return dict(answer)

    def machines(
        self, wanted: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> tuple[VirtualMachine, ...]:
        """Return the virtual machines and templates, by VMID, with their configurations.

        `wanted` limits by the entry of the resource list which are looked at, as a configuration
        costs one request. A machine that disappears meanwhile is left out.
        """
        entries = self._http.get("list the machines", "cluster/resources", type="vm")
        found = []
        for entry in sorted(entries, key=lambda entry: int(entry["vmid"])):
            if entry.get("type", "qemu") != "qemu" or (wanted and not wanted(entry)):
                continue
            config: dict[str, Any] | None
            try:
                config = self.config(int(entry["vmid"]), str(entry["node"]))
            except NotFound:
                continue
            except TemporaryError:
                config = None
            found.append(reading.machine(entry, config))
        return tuple(found)

    def machine(self, vm_id: int) -> VirtualMachine:
        """Return one machine.

        Raises:
            NotFound: no hypervisor has it.
        """
        for found in self.machines(lambda entry: int(entry["vmid"]) == vm_id):
            return found
        raise NotFound(f"Unable to find machine {vm_id}: it does not exist. Check its VMID.")

    def wait_task(
        self, upid: str, what: str, deadline_seconds: float = TASK_DEADLINE_SECONDS
    ) -> FinishedTask:
        """Wait until a task has ended well.

        Raises:
            LifecycleError: it failed (the message ends with its log), or the deadline passed.
        """
        node = upid.split(":")[1]
        started, missed = time.monotonic(), 0
        while True:
            try:
                status = self._http.get(f"follow {what}", f"nodes/{node}/tasks/{upid}/status")
                missed = 0
            except TemporaryError:
                missed += 1
                if missed > MISSED_ANSWERS_AT_MOST:
                    raise
                status = {}
            seconds = time.monotonic() - started
            if status.get("status") == "stopped":
                end = str(status.get("exitstatus", ""))
                if end.startswith(GOOD_ENDS):
                    return FinishedTask(upid, end, seconds)
                raise self._task_error(what, node, upid, end)
            if seconds > deadline_seconds:
                raise TemporaryError(
                    f"Unable to finish {what}: its task still runs after {deadline_seconds:.0f} s. "
                    f"{self._tail(node, upid)}Look at the task {upid} in Proxmox VE."
                )
            time.sleep(POLL_SECONDS)

    def _task_error(self, what: str, node: str, upid: str, end: str) -> LifecycleError:
        failed = f"Unable to finish {what}"
        told = sentence_error(failed, end)
        if told is None or isinstance(told, NotFound):
            told = PermanentError(f"{failed}: {shortened(end)}.")
        return type(told)(f"{told} {self._tail(node, upid)}Task: {upid}.")

    def _tail(self, node: str, upid: str) -> str:
        try:
            lines = self._http.get(
                "read a task's log", f"nodes/{node}/tasks/{upid}/log", start=0, limit=500
            )
        except LifecycleError:
            return ""
        tail = [shortened(str(line.get("t", ""))) for line in lines][-LOG_TAIL_LINES:]
        return f"Its log ends: {' | '.join(filter(None, tail))}. " if any(tail) else ""

    def running_tasks(self) -> set[tuple[str, str]]:
        """Return type and subject of each task that runs now, as (`qmclone`, `9000`)."""
        answer = self._http.get("list the running tasks", "cluster/tasks")
        return {
            (str(entry.get("type", "")), str(entry.get("id", "")))
            for entry in answer
            if not entry.get("endtime")
        }

    def wait_unlocked(
        self, vm_id: int, node: str, deadline_seconds: float = LOCK_DEADLINE_SECONDS
    ) -> None:
        """Wait until no task holds the machine; an absent machine holds no lock.

        Raises:
            Conflict: it is still locked at the deadline, or by no task that runs.
        """
        started = seen = time.monotonic()
        while (lock := self._lock(vm_id, node)) is not None:
            now = time.monotonic()
            # A clone's task bears the number of its source, so any clone may hold the lock.
            if any(kind == "qmclone" or of == str(vm_id) for kind, of in self._running()):
                seen = now
            if now - seen > ABANDONED_SECONDS or now - started > deadline_seconds:
                raise Conflict(
                    f"Unable to use machine {vm_id}: it is locked ({lock}) for "
                    f"{now - started:.0f} s. If no task works on it, as root on {node}: "
                    f"qm unlock {vm_id}."
                )
            time.sleep(POLL_SECONDS)

    def _running(self) -> set[tuple[str, str]]:
        try:
            return self.running_tasks()
        except TemporaryError:
            return {("qmclone", "unknown")}

    def _lock(self, vm_id: int, node: str) -> str | None:
        try:
            return self.config(vm_id, node).get("lock") or None
        except NotFound:
            return None
        except TemporaryError:
            return "unknown: its hypervisor does not answer"

    def stop(self, vm_id: int, node: str) -> None:
        """Switch a machine off at once and see that it is."""
        if self._status(vm_id, node) == "stopped":
            return
        what = f"stopping machine {vm_id}"
        upid = self._http.post(f"stop machine {vm_id}", f"nodes/{node}/qemu/{vm_id}/status/stop")
        self.wait_task(str(upid), what)
        if self._status(vm_id, node) != "stopped":
            raise TemporaryError(f"Unable to finish {what}: it still runs. Try again.")

    def _status(self, vm_id: int, node: str) -> str:
        answer = self._http.get(
            f"read the state of machine {vm_id}", f"nodes/{node}/qemu/{vm_id}/status/current"
        )
        return str(answer.get("status", "unknown"))

    def delete_machine(self, vm_id: int, node: str, expected_name: str) -> bool:
        """Stop and delete a machine with its disks; return False when it was absent already.

        Raises:
            Conflict: another machine bears this VMID, or the machine stays locked.
        """
        try:
            name = str(self.config(vm_id, node).get("name", ""))
        except NotFound:
            return False
        if name != expected_name:
            raise Conflict(
                f"Unable to delete machine {vm_id}: it is named {name!r}, not {expected_name!r}. "
                "Look at it by hand."
            )
        self.wait_unlocked(vm_id, node)
        try:
            self.stop(vm_id, node)
            upid = self._http.delete(
                f"delete machine {vm_id}",
                f"nodes/{node}/qemu/{vm_id}",
                **{"purge": 1, "destroy-unreferenced-disks": 1},
            )
            self.wait_task(str(upid), f"deleting machine {vm_id}")
        except NotFound:
            return True
        try:
            self.config(vm_id, node)
        except NotFound:
            return True
        raise TemporaryError(f"Unable to confirm that machine {vm_id} is gone: try again.")

    def agent_interfaces(self, vm_id: int, node: str) -> tuple[AgentInterface, ...]:
        """Return the guest's network cards as its agent sees them."""
        answer = self._http.get(
            f"ask the guest agent of machine {vm_id} for its addresses",
            f"nodes/{node}/qemu/{vm_id}/agent/network-get-interfaces",
        )
        return reading.interfaces(answer)

    def agent_read_file(self, vm_id: int, node: str, path: str) -> str:
        """Return the text of a file in the guest, through its agent: a channel that is trusted."""
        answer = self._http.get(
            f"read {path} in machine {vm_id}",
            f"nodes/{node}/qemu/{vm_id}/agent/file-read",
            file=path,
        )
        if answer.get("truncated"):
            raise PermanentError(f"Unable to read {path} in machine {vm_id}: it is too long.")
        return str(answer.get("content", ""))


class ProxmoxCluster(Block):
    """How to reach a Proxmox VE cluster."""

    _block_type_name = "Proxmox VE cluster"
    _block_type_slug = "infraflows-proxmox"
    _description = "A Proxmox VE cluster, reached with TLS and an API token kept in OpenBao."

    url: str = Field(description="Address of one node, as https://pve1.example.org:8006.")
    alternate_urls: list[str] = Field(
        default_factory=list, description="Addresses of other nodes, used when the first is down."
    )
    ca_file: str = Field(description="File of the CA that signed the nodes' certificates.")
    credential: str = Field(description="OpenBao path with token_id and token_secret.")
    timeout_seconds: float = Field(default=20.0, gt=0, description="Patience for one answer.")

    def api(self, credential: Mapping[str, str]) -> ProxmoxApi:
        """Return the acts, with the values that were read from the credential's path."""
        urls = [self.url, *self.alternate_urls]
        return ProxmoxApi(ProxmoxTransport(urls, self.ca_file, credential, self.timeout_seconds))


def proxmox(environment: str) -> ProxmoxCluster:
    """Return the Proxmox VE cluster of an environment, by its block document.

    Raises:
        NotFound: the set-up has not been run for this environment.
    """
    return document(ProxmoxCluster, environment)


def connected(environment: str) -> ProxmoxApi:
    """Return the acts on an environment's cluster, with the credential read from OpenBao."""
    block = proxmox(environment)
    with openbao(environment).session() as bao:
        return block.api(bao.read(block.credential))
