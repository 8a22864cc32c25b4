"""One control group per guest: its memory cap, its CPU share, its pause button.

Why: a guest's size must be true (a process that eats memory is killed at the cap), a paused guest
must stand still, and a guest's last process must be found even when its init is gone.

Promises: works on cgroup v1, on hybrid layouts and on pure v2; the group lies at the top of each
hierarchy, so that the death of whoever started the guest takes nothing along.
Refuses: cpuset (a new group there has no CPUs at all and nothing can join) and swap accounting.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CPU_PERIOD_MICROSECONDS = 100_000
NEEDED_V2 = ("cpu", "memory", "pids")


# Joins the groups named up to `--`, then becomes the command: no process of a guest is ever outside
# of its group, not even for a moment.
_JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 126; shift; done; shift; exec "$@"'


class CgroupError(Exception):
    """The control groups of this machine cannot be used."""


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy."""

    root: Path
    controllers: frozenset[str]
    is_v2: bool


def hierarchies(mounts: Path = Path("/proc/self/mounts")) -> list[Hierarchy]:
    """Every hierarchy that a guest joins."""
    found: list[Hierarchy] = []
    seen: set[frozenset[str]] = set()
    for line in mounts.read_text().splitlines():
        _, mountpoint, kind, options, *_ = line.split()
        if kind == "cgroup2":
            names = Path(mountpoint, "cgroup.controllers").read_text().split()
            found.append(Hierarchy(Path(mountpoint), frozenset(names), is_v2=True))
        elif kind == "cgroup":
            controllers = frozenset(options.split(",")) - {"rw", "relatime", "nosuid", "nodev"}
            if "cpuset" not in controllers and controllers not in seen:
                seen.add(controllers)
                found.append(Hierarchy(Path(mountpoint), controllers, is_v2=False))
    return found


def joining(procs_files: list[str], command: list[str]) -> list[str]:
    """The command line that joins control groups and then is `command`."""
    return ["sh", "-c", _JOIN, "join", *procs_files, "--", *command]


class GuestCgroup:
    """The control group of one guest (or of the supervisors) in every hierarchy."""

    def __init__(self, group: str, layout: list[Hierarchy] | None = None) -> None:
        """`group` is a relative path such as `infraflows-lab/101`."""
        self._group = group
        self._layout = hierarchies() if layout is None else layout
        if not self._layout:
            raise CgroupError(
                "Unable to confine guests: no cgroup hierarchy is mounted. Mount cgroup2 on "
                "/sys/fs/cgroup."
            )

    def create(self, *, cores: int | None = None, memory_mib: int | None = None) -> None:
        """Make the group and set its limits."""
        for hierarchy in self._layout:
            path = hierarchy.root / self._group
            path.mkdir(parents=True, exist_ok=True)
            if hierarchy.is_v2:
                self._delegate(hierarchy)
        if memory_mib is not None:
            limit_bytes = str(memory_mib * 1024 * 1024)
            self._write("memory", "memory.limit_in_bytes", "memory.max", limit_bytes)
        if cores is not None:
            quota = cores * CPU_PERIOD_MICROSECONDS
            self._write(
                "cpu",
                "cpu.cfs_quota_us",
                "cpu.max",
                str(quota),
                f"{quota} {CPU_PERIOD_MICROSECONDS}",
            )

    def _delegate(self, hierarchy: Hierarchy) -> None:
        wanted = [name for name in NEEDED_V2 if name in hierarchy.controllers]
        parents = list((hierarchy.root / self._group).relative_to(hierarchy.root).parents)
        for parent in reversed(parents):
            control = hierarchy.root / parent / "cgroup.subtree_control"
            missing = set(wanted) - set(control.read_text().split())
            try:
                for name in missing:
                    control.write_text(f"+{name}")
            except OSError as error:
                raise CgroupError(
                    f"Unable to hand {', '.join(sorted(missing))} to {self._group}: "
                    f"{error.strerror}. Move the processes of {control.parent} into a group below "
                    "it (cgroup v2 lets only empty groups share controllers out)."
                ) from error

    def _write(
        self, controller: str, v1_file: str, v2_file: str, value: str, v2_value: str | None = None
    ) -> None:
        for hierarchy in self._layout:
            if controller in hierarchy.controllers:
                name = v2_file if hierarchy.is_v2 else v1_file
                text = v2_value if hierarchy.is_v2 and v2_value is not None else value
                (hierarchy.root / self._group / name).write_text(text)
                return
        raise CgroupError(
            f"Unable to limit {controller} of {self._group}: no hierarchy has that controller. "
            f"Boot the machine with the {controller} controller enabled."
        )

    def procs_files(self) -> list[str]:
        """The files to which a process writes itself to join."""
        return [str(h.root / self._group / "cgroup.procs") for h in self._layout]

    def processes(self) -> set[int]:
        """Every process in the group or below it."""
        pids: set[int] = set()
        for directory in self._directories():
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in (directory / "cgroup.procs").read_text().split())
        return pids - {0}

    def set_frozen(self, is_frozen: bool) -> None:
        """Stop or let go every process of the group; returns when they stand."""
        v1, v2 = self._freezers()
        if v1 is not None:
            v1.write_text("FROZEN" if is_frozen else "THAWED")
        elif v2 is not None:
            v2.write_text("1" if is_frozen else "0")
        deadline = time.monotonic() + 10
        while is_frozen and not self.is_frozen():
            if time.monotonic() > deadline:
                raise CgroupError(
                    f"Unable to freeze {self._group}: a process does not stand still within "
                    "10 seconds. Look for one in uninterruptible sleep."
                )
            time.sleep(0.01)

    def is_frozen(self) -> bool:
        """True while the group stands still."""
        v1, v2 = self._freezers()
        if v1 is not None:
            return v1.read_text().strip() == "FROZEN"
        if v2 is not None:
            return "frozen 1" in v2.with_name("cgroup.events").read_text()
        return False

    def is_freezing(self) -> bool:
        """True when the group was told to stand still, whether or not it does yet."""
        v1, v2 = self._freezers()
        if v1 is not None:
            return v1.read_text().strip() != "THAWED"
        return v2 is not None and v2.read_text().strip() == "1"

    def _freezers(self) -> tuple[Path | None, Path | None]:
        v1 = v2 = None
        for hierarchy in self._layout:
            path = hierarchy.root / self._group
            if hierarchy.is_v2 and (path / "cgroup.freeze").exists():
                v2 = path / "cgroup.freeze"
            elif "freezer" in hierarchy.controllers and (path / "freezer.state").exists():
                v1 = path / "freezer.state"
        return v1, v2

    def cpu_seconds(self) -> float:
        """CPU time used by the group since it was made."""
        for hierarchy in self._layout:
            path = hierarchy.root / self._group
            if (path / "cpuacct.usage").exists():
                return int((path / "cpuacct.usage").read_text()) / 1e9
            if hierarchy.is_v2 and "cpu" in hierarchy.controllers:
                first = (path / "cpu.stat").read_text().splitlines()[0]
                return int(first.split()[1]) / 1e6
        return 0.0

    def memory_bytes(self) -> int:
        """Memory charged to the group, the page cache that may be dropped left out."""
        for hierarchy in self._layout:
            if "memory" not in hierarchy.controllers:
                continue
            path = hierarchy.root / self._group
            name = "memory.current" if hierarchy.is_v2 else "memory.usage_in_bytes"
            cache = "inactive_file" if hierarchy.is_v2 else "total_inactive_file"
            stat = dict(line.split() for line in (path / "memory.stat").read_text().splitlines())
            return max(0, int((path / name).read_text()) - int(stat.get(cache, 0)))
        return 0

    def kill_all(self, timeout_seconds: float = 10.0) -> None:
        """SIGKILL every process in the group until none is left."""
        deadline = time.monotonic() + timeout_seconds
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # A frozen process of v1 dies only once it is let go; it does so without a step.
            self.set_frozen(False)
            if time.monotonic() > deadline:
                raise CgroupError(
                    f"Unable to end the processes {sorted(pids)} of {self._group} within "
                    f"{timeout_seconds:g} seconds. Look for uninterruptible sleep in ps."
                )
            time.sleep(0.02)

    def remove(self) -> None:
        """Take the group away; whatever is in it must have ended."""
        deadline = time.monotonic() + 5
        for directory in self._directories():
            while directory.exists():
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise CgroupError(
                            f"Unable to remove the control group {directory}: {error.strerror}. "
                            "Look which process is still in it."
                        ) from error
                    time.sleep(0.02)

    def _directories(self) -> Iterator[Path]:
        """The group's directories, the deepest first."""
        for hierarchy in self._layout:
            top = hierarchy.root / self._group
            for directory, _, _ in os.walk(top, topdown=False):
                yield Path(directory)
