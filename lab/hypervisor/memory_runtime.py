"""Guests that exist in memory only: for trying clients of the API where no guest can boot.

Promises the states and the disks' life of the real runtime, and the agent's answers that follow
from the settings which the API was given. Refuses to run commands: there is no system inside.
"""

from __future__ import annotations

import time
from pathlib import Path

from lab.hypervisor.guest_runtime import (
    GuestConfig,
    GuestNotRunning,
    GuestRuntimeError,
    GuestState,
    GuestUsage,
)

HOST_KEY_FILE = "/etc/ssh/ssh_host_ed25519_key.pub"


class MemoryRuntime:
    """Disks are sizes, and guests are what they were started with."""

    def __init__(self) -> None:
        self.disks: dict[str, int] = {}
        self.guests: dict[int, GuestConfig] = {}
        self.paused: set[int] = set()
        self._started: dict[int, float] = {}
        self._files: dict[tuple[int, str], bytes] = {}
        self._snapshots: set[tuple[str, str]] = set()

    async def create_disk(self, disk_id: str, size_bytes: int, source: str | None) -> None:
        if source is not None and source not in self.disks:
            raise GuestRuntimeError(f"disk '{source}' does not exist")
        self.disks[disk_id] = size_bytes

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        self.disks[disk_id] = size_bytes

    async def delete_disk(self, disk_id: str) -> None:
        self.disks.pop(disk_id, None)

    async def snapshot_disk(self, disk_id: str, name: str) -> None:
        self._snapshots.add((disk_id, name))

    async def rollback_disk(self, disk_id: str, name: str) -> None:
        if (disk_id, name) not in self._snapshots:
            raise GuestRuntimeError(f"snapshot '{name}' does not exist")

    async def delete_snapshot(self, disk_id: str, name: str) -> None:
        self._snapshots.discard((disk_id, name))

    async def export_disk(self, disk_id: str, target: Path) -> None:
        target.write_text(str(self.disks[disk_id]), encoding="ascii")

    async def import_disk(self, disk_id: str, source: Path) -> None:
        self.disks[disk_id] = int(source.read_text(encoding="ascii"))

    async def start(self, guest: GuestConfig) -> None:
        self.guests[guest.vmid] = guest
        self._started[guest.vmid] = time.monotonic()
        key = f"ssh-ed25519 AAAAmemory{guest.vmid} root@{guest.name}\n"
        self._files[guest.vmid, HOST_KEY_FILE] = key.encode()

    async def stop(
        self,
        vmid: int,
        *,
        graceful_timeout_seconds: float | None,  # noqa: ARG002 - nothing to wait for
    ) -> None:
        self.guests.pop(vmid, None)
        self.paused.discard(vmid)

    async def reset(self, vmid: int) -> None:
        self._running(vmid)
        self._started[vmid] = time.monotonic()

    async def suspend(self, vmid: int) -> None:
        self._running(vmid)
        self.paused.add(vmid)

    async def resume(self, vmid: int) -> None:
        self.paused.discard(vmid)

    async def is_running(self, vmid: int) -> bool:
        return vmid in self.guests

    async def state(self, vmid: int) -> GuestState:
        if vmid not in self.guests:
            return "stopped"
        return "paused" if vmid in self.paused else "running"

    async def interfaces(self, vmid: int) -> list[dict[str, object]]:
        guest = self._running(vmid)
        addresses = [
            {
                "ip-address": address.partition("/")[0],
                "ip-address-type": "ipv4",
                "prefix": int(address.partition("/")[2] or 32),
            }
            for address in guest.addresses
        ]
        return [{"name": "eth0", "hardware-address": guest.mac.lower(), "ip-addresses": addresses}]

    async def execute(
        self,
        vmid: int,  # noqa: ARG002 - the protocol's arguments
        argv: list[str],  # noqa: ARG002
        input_data: bytes,  # noqa: ARG002
    ) -> tuple[int, bytes, bytes]:
        raise GuestRuntimeError("no command runs in a guest that is in memory only")

    async def read_file(self, vmid: int, path: str) -> bytes:
        self._running(vmid)
        try:
            return self._files[vmid, path]
        except KeyError:
            raise FileNotFoundError(path) from None

    async def write_file(self, vmid: int, path: str, content: bytes) -> None:
        self._running(vmid)
        self._files[vmid, path] = content

    async def usage(self, vmid: int) -> GuestUsage:
        self._running(vmid)
        return GuestUsage(0.0, 64 * 1024**2, time.monotonic() - self._started[vmid])

    async def recover(self) -> None:
        """Nothing outlives the process."""

    def _running(self, vmid: int) -> GuestConfig:
        try:
            return self.guests[vmid]
        except KeyError:
            raise GuestNotRunning(f"VM {vmid} is not running") from None
