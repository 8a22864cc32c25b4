"""Tasks: the workers behind every UPID.

Why: on Proxmox nearly every act is a task that takes time, logs, may fail after the request was
answered, and may be stopped. The product must wait on them, so the lab runs them for real.

Promises: a task's end is recorded once, with `OK` or the error's text; a task that ran when the
API was killed is found `stopped: unexpected status` after the restart, as on a real node.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lab.hypervisor.exceptions import ApiError
from lab.hypervisor.faults import Faults
from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.store import Document, Store

logger = logging.getLogger(__name__)
KEPT_TASKS = 2000


@dataclass(frozen=True)
class TaskLog:
    """A running task's way to write its log, and to meet the faults that wait for it."""

    upid: str
    type: str
    vmid: str
    _store: Store
    _faults: Faults
    _scale: float

    def line(self, text: str) -> None:
        """One line of the log."""
        self._store.append_line(self.upid, text)

    async def take_time(self, seconds: float) -> None:
        """The work that a real node would do here."""
        await asyncio.sleep(seconds * self._scale)

    async def halfway(self) -> None:
        """The point where a hanging task hangs."""
        fault = self._faults.take("task-hangs", type=self.type, vmid=self.vmid)
        while fault is not None and not fault.is_cleared:
            await asyncio.sleep(0.1)


Work = Callable[[TaskLog], Awaitable[None]]


class Tasks:
    """All tasks, running and done."""

    def __init__(self, store: Store, faults: Faults, scale: float) -> None:
        self._store = store
        self._faults = faults
        self._scale = scale
        self._tasks: dict[str, Document] = store.load("task")
        self._running: dict[str, asyncio.Task[None]] = {}
        self._counter = max((task["pstart"] for task in self._tasks.values()), default=0x1000)
        self._recover()

    def _recover(self) -> None:
        for upid, task in self._tasks.items():
            if task["status"] == "running":
                self._end(upid, "unexpected status")
        oldest = sorted(self._tasks, key=lambda upid: self._tasks[upid]["pstart"])
        for upid in oldest[:-KEPT_TASKS]:
            del self._tasks[upid]
            self._store.delete("task", upid)
            self._store.delete_lines(upid)

    def start(self, node: str, kind: str, identifier: str, user: str, work: Work) -> str:
        """Run `work` in the background; returns its UPID at once."""
        self._counter += 1
        pid, pstart, now = 0x400 + self._counter % 0xFFFF, self._counter, int(time.time())
        upid = f"UPID:{node}:{pid:08X}:{pstart:08X}:{now:08X}:{kind}:{identifier}:{user}:"
        self._tasks[upid] = {
            "upid": upid,
            "node": node,
            "pid": pid,
            "pstart": pstart,
            "starttime": now,
            "type": kind,
            "id": identifier,
            "user": user.partition("!")[0],
            "tokenid": user.partition("!")[2],
            "status": "running",
        }
        self._store.put("task", upid, self._tasks[upid])
        log = TaskLog(upid, kind, identifier, self._store, self._faults, self._scale)
        self._running[upid] = asyncio.create_task(self._run(log, work), name=upid)
        return upid

    async def _run(self, log: TaskLog, work: Work) -> None:
        try:
            await work(log)
        except asyncio.CancelledError:
            self._fail(log, "interrupted by signal")
        except ApiError as error:
            self._fail(log, error.message)
        except GuestRuntimeError as error:
            self._fail(log, str(error))
        except Exception as error:
            logger.exception("Unable to finish task %s: a mistake in the lab", log.upid)
            self._fail(log, f"the lab's hypervisor failed: {type(error).__name__}: {error}")
        else:
            log.line("TASK OK")
            self._end(log.upid, "OK")
        finally:
            self._running.pop(log.upid, None)

    def _fail(self, log: TaskLog, text: str) -> None:
        exit_status = " ".join(text.split())
        log.line(f"TASK ERROR: {exit_status}")
        self._end(log.upid, exit_status)

    def _end(self, upid: str, exit_status: str) -> None:
        task = self._tasks[upid]
        task.update(status="stopped", exitstatus=exit_status, endtime=int(time.time()))
        self._store.put("task", upid, task)

    def get(self, upid: str, node: str | None = None) -> Document:
        """One task; an id that cannot be parsed or found is answered with 400."""
        parts = upid.split(":")
        if len(parts) != 9 or parts[0] != "UPID":
            raise ApiError(f"unable to parse worker upid '{upid}'", status=400)
        task = self._tasks.get(upid)
        if task is None or (node is not None and task["node"] != node):
            raise ApiError("no such task", status=400)
        return task

    def all(self, node: str | None = None) -> list[Document]:
        """Tasks, newest first."""
        found = [task for task in self._tasks.values() if node in (None, task["node"])]
        return sorted(found, key=lambda task: task["pstart"], reverse=True)

    def lines(self, upid: str, start: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """A task's log: how many lines there are, and those asked for."""
        total, lines = self._store.lines(upid, start, limit)
        if not total:
            return 1, [{"n": 1, "t": "no content"}]
        return total, [{"n": number, "t": line} for number, line in lines]

    async def stop(self, upid: str) -> None:
        """Interrupt a running task and wait until it has cleaned up."""
        running = self._running.get(upid)
        if running is not None:
            running.cancel()
            await asyncio.wait([running])

    async def close(self) -> None:
        """Interrupt everything: the API is going down."""
        for upid in list(self._running):
            await self.stop(upid)
