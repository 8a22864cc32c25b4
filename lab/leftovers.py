"""What a lab left on the machine, found in the kernel and not in the lab's own files.

Why it exists: `down` must work after any crash, with half-made or missing files. Pid files and
records may be gone; processes, mounts, loop devices and namespaces are still there, and the kernel
knows to whom they belong.

What it promises: `find` only looks; `sweep` removes what `find` finds, in the order in which the
kernel lets go (processes, network, mounts, loop devices, control groups), and says what would not.

What it refuses: to touch what does not carry the lab's instance or lie under its home, and to end
the caller or its parents, even where they stand inside the lab's network.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from lab import network
from lab.layout import Layout
from lab.services import processes

_CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Leftovers:
    """Everything of one lab that is still on the machine."""

    pids: tuple[int, ...] = ()
    mounts: tuple[str, ...] = ()
    loops: tuple[str, ...] = ()
    cgroups: tuple[Path, ...] = ()
    namespaces: tuple[str, ...] = ()
    run_files: tuple[Path, ...] = ()
    problems: tuple[str, ...] = field(default=(), compare=False)

    def __bool__(self) -> bool:
        return any(
            (self.pids, self.mounts, self.loops, self.cgroups, self.namespaces, self.run_files)
        )

    def lines(self) -> list[str]:
        """One line per thing, for people."""
        return [
            *(f"process {pid}: {command_line(pid)}" for pid in self.pids),
            *(f"mount {mount}" for mount in self.mounts),
            *(f"loop device {loop}" for loop in self.loops),
            *(f"control group {group}" for group in self.cgroups),
            *(f"network namespace {namespace}" for namespace in self.namespaces),
            *(f"file {path}" for path in self.run_files),
        ]


def command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "(gone)"
    return b" ".join(words).decode(errors="replace").strip()[:100]


def find(layout: Layout) -> Leftovers:
    """Look, change nothing."""
    return Leftovers(
        pids=tuple(lab_pids(layout)),
        mounts=tuple(mounts_under(layout.home)),
        loops=tuple(loops_under(layout.home)),
        cgroups=tuple(cgroups_of(layout)),
        namespaces=(layout.namespace,) if layout.namespace_path.exists() else (),
        run_files=(layout.run_directory,) if layout.run_directory.exists() else (),
    )


def lab_pids(layout: Layout) -> list[int]:
    """Every process of the lab: marked, in its network, in its control groups, on its disks."""
    found = set(processes.marked(f"{layout.instance}:"))
    found.update(network.processes_inside(layout.instance))
    found.update(_pids_in_cgroups(layout))
    found.update(_pids_on_disks_of(layout))
    return sorted(pid for pid in found - processes.ancestors() if processes.Identity.of(pid))


def _pids_in_cgroups(layout: Layout) -> set[int]:
    found: set[int] = set()
    for group in cgroups_of(layout):
        try:
            found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
        except OSError:
            continue
    return found - {0}


def _pids_on_disks_of(layout: Layout) -> set[int]:
    """Guests whose root is an overlay written under the lab's home, whoever started them."""
    found: set[int] = set()
    needle = f"upperdir={layout.home.resolve()}/"
    for pid in processes.all_pids():
        try:
            text = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if line.split(" ", 5)[4] == "/" and needle in line:
                found.add(pid)
    return found


def mounts_under(directory: Path, table: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Mount points at or under the directory, the deepest first."""
    prefix = str(directory.resolve())
    found = []
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        point = _unescape(line.split(" ")[4])
        if point == prefix or point.startswith(f"{prefix}/"):
            found.append(point)
    return sorted(found, key=lambda point: point.count("/"), reverse=True)


def _unescape(text: str) -> str:
    """Mount tables write blanks and the like as octal escapes."""
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, sign)
    return text


def loops_under(directory: Path) -> list[str]:
    """Loop devices that show a file under the directory, deleted files included."""
    prefix = f"{directory.resolve()}/"
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            shown = backing.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if shown.startswith(prefix):
            found.append(f"/dev/{backing.parent.parent.name}")
    return sorted(found)


def cgroups_of(layout: Layout) -> list[Path]:
    """The lab's control groups in every hierarchy, the deepest first."""
    if not _CGROUP_ROOT.is_dir():
        return []
    tops = [_CGROUP_ROOT, *(entry for entry in _CGROUP_ROOT.iterdir() if entry.is_dir())]
    found: set[Path] = set()
    for top in tops:
        group = top / layout.namespace
        if group.is_dir() and not group.is_symlink():
            found.update(Path(directory) for directory, _, _ in os.walk(group))
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def sweep(layout: Layout) -> list[str]:
    """Remove everything that `find` finds. Returns what went wrong, in words."""
    problems: list[str] = []
    _thaw(layout)
    left = processes.end(lab_pids(layout), grace_seconds=2.0)
    if left:
        problems.append(f"processes {left} survive SIGKILL")
    try:
        network.remove_network(layout.instance, grace_seconds=1.0)
    except (network.NetworkError, OSError) as error:
        problems.append(str(error))
    for point in mounts_under(layout.home):
        # A busy mount is detached lazily: it is gone from here and ends with its last user.
        if _run("umount", point) != 0 and _run("umount", "--lazy", point) != 0:
            problems.append(f"{point} cannot be unmounted")
    for loop in loops_under(layout.home):
        if _run("losetup", "--detach", loop) != 0:
            problems.append(f"{loop} cannot be detached")
    for group in cgroups_of(layout):
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"control group {group} cannot be removed ({error.strerror})")
    return problems


def _thaw(layout: Layout) -> None:
    """A frozen process of cgroup v1 does not even die."""
    for group in cgroups_of(layout):
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            try:
                if (group / name).exists():
                    (group / name).write_text(value)
            except OSError:
                continue


def _run(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode
