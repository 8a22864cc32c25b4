"""The line between the simulated API and the real guests behind it.

Why: the API (this package) decides what may be done to a virtual machine, and records it; a guest
runtime makes it true. The API is tested with an in-memory runtime, the lab runs
`lab.hypervisor.guests.runtime.NspawnRuntime`, and neither side knows the other's insides.

Promises: every call is idempotent (a call that was cut off by SIGKILL is simply made again), and
`delete_disk` of an absent disk or `stop` of a stopped guest succeeds.
Refuses: it carries no secret. `password_hash` is a crypt(3) string, never the password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

GuestState = Literal["running", "stopped", "paused"]


class GuestRuntimeError(Exception):
    """The runtime could not do what was asked; the text is what the task's log will show."""


class GuestNotRunning(GuestRuntimeError):
    """Something was asked of a guest that does not run."""


@dataclass(frozen=True)
class GuestConfig:
    """All that a guest is given when it starts: its hardware and its cloud-init answers."""

    vmid: int
    name: str
    uuid: str
    disk_id: str
    cores: int
    memory_mib: int
    mac: str
    bridge: str
    vlan: int | None = None
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    gateway: str | None = None
    nameservers: tuple[str, ...] = ()
    searchdomain: str | None = None
    agent_enabled: bool = False
    password_hash: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class GuestUsage:
    """What a running guest has used since it started."""

    cpu_seconds: float
    memory_bytes: int
    uptime_seconds: float


class GuestRuntime(Protocol):
    """Disks and guests, as the API needs them."""

    async def create_disk(self, disk_id: str, size_bytes: int, source: str | None) -> None:
        """Make a disk: a copy of the disk `source`, or of the base image when it is None."""

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        """Grow a disk; the guest that uses it may run."""

    async def delete_disk(self, disk_id: str) -> None:
        """Remove a disk and its snapshots; an absent one is fine."""

    async def snapshot_disk(self, disk_id: str, name: str) -> None:
        """Keep the disk's present content under `name`."""

    async def rollback_disk(self, disk_id: str, name: str) -> None:
        """Put the content kept under `name` back."""

    async def delete_snapshot(self, disk_id: str, name: str) -> None:
        """Forget the content kept under `name`; an absent one is fine."""

    async def export_disk(self, disk_id: str, target: Path) -> None:
        """Write the disk's content into one file (a backup)."""

    async def import_disk(self, disk_id: str, source: Path) -> None:
        """Make the disk's content that of a file written by `export_disk`."""

    async def start(self, guest: GuestConfig) -> None:
        """Boot the guest; returns once its init runs."""

    async def stop(self, vmid: int, *, graceful_timeout_seconds: float | None) -> None:
        """Ask the guest to power off and wait that long (TimeoutError); None pulls the plug."""

    async def reset(self, vmid: int) -> None:
        """Pull the plug and boot again."""

    async def suspend(self, vmid: int) -> None:
        """Freeze the guest where it stands."""

    async def resume(self, vmid: int) -> None:
        """Let a frozen guest go on."""

    async def is_running(self, vmid: int) -> bool:
        """True for a running or paused guest."""

    async def state(self, vmid: int) -> GuestState:
        """The guest's true state, whoever changed it (a power off from inside counts)."""

    async def interfaces(self, vmid: int) -> list[dict[str, object]]:
        """The `result` list of the guest agent's network-get-interfaces."""

    async def execute(
        self, vmid: int, argv: list[str], input_data: bytes
    ) -> tuple[int, bytes, bytes]:
        """Run a command inside: (exit code, stdout, stderr)."""

    async def read_file(self, vmid: int, path: str) -> bytes:
        """A file's content inside the guest (FileNotFoundError when there is none)."""

    async def write_file(self, vmid: int, path: str, content: bytes) -> None:
        """Write a file inside the guest."""

    async def usage(self, vmid: int) -> GuestUsage:
        """CPU, memory and uptime of a running guest."""

    async def recover(self) -> None:
        """Called once when the API starts: find the guests that still run from before."""
