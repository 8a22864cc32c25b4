"""Faults of a guest, for tests and for people who want to see what happens.

Why: a machine fails in ways that the hypervisor does not see: it hangs, its disk fills, its cable
is pulled. Each fault here is real inside the guest, and each can be undone.

Promises: the hypervisor goes on calling a hung guest `running`, as it would.
Refuses: to do anything to a guest that does not run.
"""

from __future__ import annotations

from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.guests.links import set_link
from lab.hypervisor.guests.runtime import NspawnRuntime

FILL_PATH = "/var/infraflows-fill"
# Takes what is free, to the last block: fallocate for most of it, zeros for the rest.
_FILL = """
free=$(df --output=avail -B1 / | tail -n 1)
fallocate -l "$free" "$1" 2>/dev/null || fallocate -l $((free * 9 / 10)) "$1"
cat /dev/zero >>"$1.rest" 2>/dev/null
df --output=avail -B1 / | tail -n 1
"""


class GuestFaults:
    """What `infraflows-lab break` can do to a guest."""

    def __init__(self, runtime: NspawnRuntime) -> None:
        """The faults act on the guests of one runtime."""
        self._runtime = runtime

    async def hang(self, vmid: int) -> None:
        """The guest stops doing anything, and the hypervisor does not notice."""
        self._runtime.place(vmid).hold("hung")

    async def unhang(self, vmid: int) -> None:
        """The guest goes on."""
        self._runtime.place(vmid).release("hung")

    async def fill_disk(self, vmid: int) -> None:
        """The guest's disk becomes full."""
        code, stdout, stderr = await self._runtime.execute(
            vmid, ["sh", "-c", _FILL, "fill", FILL_PATH], b""
        )
        if code != 0:
            raise GuestRuntimeError(
                f"Unable to fill the disk of VM {vmid}: {(stderr or stdout).decode().strip()}. "
                "Look at df inside the guest."
            )

    async def empty_disk(self, vmid: int) -> None:
        """The guest's disk has its free space again."""
        await self._runtime.execute(vmid, ["rm", "-f", FILL_PATH, f"{FILL_PATH}.rest"], b"")

    async def cut(self, vmid: int) -> None:
        """The guest's cable is pulled."""
        set_link(self._runtime.place(vmid).netns, vmid, is_up=False)

    async def uncut(self, vmid: int) -> None:
        """The guest's cable is plugged in again."""
        set_link(self._runtime.place(vmid).netns, vmid, is_up=True)
