"""Locks on machines' configuration files, as Proxmox holds them while it works on a machine.

Why: two acts on one machine at once are what a parallel apply produces, and "can't lock file ...
got timeout" is what it meets on a real cluster.

Promises: a stopped machine may be read by a few clones at once (`shared`); every change is alone.
A waiter gives up after `timeout_seconds` with Proxmox's words.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lab.hypervisor.exceptions import LockTimeout
from lab.hypervisor.faults import Faults


class ConfigLocks:
    """One lock per machine, exclusive or shared among `clone_slots`."""

    def __init__(self, faults: Faults, timeout_seconds: float, clone_slots: int) -> None:
        self._faults = faults
        self._timeout_seconds = timeout_seconds
        self._clone_slots = clone_slots
        self._holders: dict[int, int] = defaultdict(int)  # -1: exclusive; n: shared by n
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def exclusive(self, vmid: int) -> AsyncIterator[None]:
        """Alone on the machine."""
        await self._acquire(vmid, is_shared=False)
        try:
            yield
        finally:
            self._holders[vmid] = 0
            await self._wake()

    @asynccontextmanager
    async def shared(self, vmid: int) -> AsyncIterator[None]:
        """Together with other readers of the machine's disks."""
        await self._acquire(vmid, is_shared=True)
        try:
            yield
        finally:
            self._holders[vmid] -= 1
            await self._wake()

    def _is_free(self, vmid: int, is_shared: bool) -> bool:
        if self._faults.active("machine-locked", vmid=vmid):
            return False
        holders = self._holders[vmid]
        return 0 <= holders < self._clone_slots if is_shared else holders == 0

    async def _acquire(self, vmid: int, *, is_shared: bool) -> None:
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        while not self._is_free(vmid, is_shared):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                self._faults.take("machine-locked", vmid=vmid)
                raise LockTimeout(vmid)
            await self._wait(min(left, 0.2))
        self._holders[vmid] = self._holders[vmid] + 1 if is_shared else -1

    async def _wait(self, seconds: float) -> None:
        # A cleared fault wakes nobody, so waiters look again by themselves now and then.
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), seconds)
            except TimeoutError:
                return

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()
