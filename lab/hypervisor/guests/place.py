"""Where one guest lives on this machine: its files, its control group, its processes.

Why: the runtime, the faults and a later process all ask the same questions of a guest (does it
live, who is its init, is it held) and must come to the same answers.

Promises: answers from the kernel (a held lock, a pid with its start time), never from memory.
Refuses: to mistake a file that a killed process left for a living guest.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import Literal

from lab.hypervisor.guests.cgroups import GuestCgroup
from lab.hypervisor.guests.processes import ProcessIdentity, load_identity
from lab.hypervisor.guests.supervisor import Orders

Hold = Literal["paused", "hung"]
HOLDS: tuple[Hold, ...] = ("paused", "hung")
_RUN_FILES = ("nspawn.pid", "init.pid", "supervisor.pid", "reset", *HOLDS)


def group_of_instance(instance: str) -> str:
    """The control group above those of the guests and of their supervisors."""
    return f"infraflows-{instance}"


class GuestPlace:
    """One guest's directory, group and processes."""

    def __init__(self, vmid: int, directory: Path, instance: str, netns: str) -> None:
        """Nothing is made: the guest need not exist."""
        self.vmid = vmid
        self.directory = directory
        self.netns = netns
        self.machine = f"{instance}-{vmid}"
        self.group = f"{group_of_instance(instance)}/{vmid}"
        self.cgroup = GuestCgroup(self.group)

    def orders(self) -> Orders | None:
        """The orders of the last start."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return Orders.load(self.directory / "orders.json")
        return None

    def is_alive(self) -> bool:
        """True while a supervisor or any process of nspawn or of the guest's init runs."""
        return self._is_supervised() or self.init() is not None or self._nspawn() is not None

    def init(self) -> ProcessIdentity | None:
        """The guest's pid 1, as the host sees it."""
        return self._living("init.pid")

    def supervisor(self) -> ProcessIdentity | None:
        """The guest's supervisor."""
        return self._living("supervisor.pid")

    def mount_holder(self) -> ProcessIdentity | None:
        """A process in whose mount namespace the guest's disk is mounted."""
        return self.supervisor() or self._nspawn()

    def hold(self, reason: Hold) -> None:
        """Make the guest stand still, and note why."""
        (self.directory / reason).touch()
        self.cgroup.set_frozen(True)

    def release(self, reason: Hold) -> None:
        """Take one reason away; the guest goes on when no other is left."""
        (self.directory / reason).unlink(missing_ok=True)
        if not any(self.is_held(other) for other in HOLDS):
            self.cgroup.set_frozen(False)

    def is_held(self, reason: Hold) -> bool:
        """True when the guest was made to stand still for this reason."""
        return (self.directory / reason).exists()

    def forget_holds(self) -> None:
        """A guest that boots anew is held by nothing."""
        for reason in HOLDS:
            (self.directory / reason).unlink(missing_ok=True)

    def forget_run(self) -> None:
        """Remove the files that speak of a running guest."""
        for name in _RUN_FILES:
            (self.directory / name).unlink(missing_ok=True)
        for log in ("console.log", "supervisor.log", "failure"):
            path = self.directory / log
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_name(f"{log}.last"))

    def last_words(self) -> str:
        """Why the last run failed, as far as it is known."""
        for name in ("failure", "failure.last"):
            with contextlib.suppress(FileNotFoundError):
                return (self.directory / name).read_text().strip()
        return "its supervisor ended without a word"

    def _nspawn(self) -> ProcessIdentity | None:
        return self._living("nspawn.pid")

    def _living(self, name: str) -> ProcessIdentity | None:
        identity = load_identity(self.directory / name)
        return identity if identity is not None and identity.is_alive() else None

    def _is_supervised(self) -> bool:
        try:
            with (self.directory / "supervisor.lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False
