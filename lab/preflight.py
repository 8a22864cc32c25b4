"""Everything that the lab needs of the machine, looked at before anything is touched.

What it promises: read only; all that is missing is told at once, in words that say what to do.
What it refuses: to start a lab that would fail half-way for a reason that was to be seen before.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.layout import Layout
from lab.services.service import Service, read_record
from lab.toolchain.paths import bin_dir, cache_dir

HOME_MARK = ".infraflows-lab"
NEEDED_DISK_GIB = 6.0
NEEDED_MEMORY_GIB = 4.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUILT_PROGRAMS = ("tofu",)
_GIB = 1024**3


class PreflightFailed(Exception):
    """The machine is not ready. `problems` are all reasons, each with its remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"Unable to start the lab; nothing was changed:\n{lines}")
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Machine:
    """The facts that the checks read, so that tests can state others."""

    platform: str
    effective_user: int
    free_disk_bytes: Callable[[Path], int]
    available_memory_bytes: Callable[[], int]
    has_program: Callable[[str], bool]
    is_port_taken: Callable[[int], bool]


def this_machine() -> Machine:
    return Machine(
        platform=sys.platform,
        effective_user=os.geteuid(),
        free_disk_bytes=_free_disk_bytes,
        available_memory_bytes=_available_memory_bytes,
        has_program=_has_program,
        is_port_taken=_is_port_taken,
    )


def check(
    layout: Layout,
    services: Sequence[Service],
    machine: Machine | None = None,
) -> None:
    """Raise PreflightFailed with every problem, or return."""
    machine = machine or this_machine()
    if not machine.platform.startswith("linux"):
        raise PreflightFailed(_system(machine))  # the other checks ask a Linux kernel
    problems = [
        *_system(machine),
        *_home(layout),
        *_other_lab(layout),
        *_port(layout, services, machine),
        *_room(layout, services, machine),
        *_programs(services, machine),
    ]
    if problems:
        raise PreflightFailed(problems)


def _system(machine: Machine) -> list[str]:
    problems = []
    if not machine.platform.startswith("linux"):
        problems.append(
            f"This is {machine.platform}; the lab boots Linux guests and needs Linux. "
            "Use a Debian 12 machine."
        )
    if machine.effective_user != 0:
        problems.append(
            "Not root; the lab makes namespaces, bridges and mounts. Run it as root (sudo)."
        )
    return problems


def _home(layout: Layout) -> list[str]:
    """A typing error in INFRAFLOWS_LAB_HOME must not turn somebody's directory into a lab."""
    home = layout.home
    if home.exists() and not home.is_dir():
        return [f"{home} is not a directory. Set INFRAFLOWS_LAB_HOME to another path."]
    closed = [parent for parent in home.parents if parent.exists() and not _is_open(parent)]
    if closed:
        # PostgreSQL and BIND run as users of their own.
        return [
            f"{closed[0]} is closed to other users, and the lab's database and name server run as "
            "users of their own. Set INFRAFLOWS_LAB_HOME to a path that everybody may enter."
        ]
    if home.is_dir() and not (home / HOME_MARK).exists():
        try:
            is_empty = next(home.iterdir(), None) is None
        except PermissionError:
            return []
        if not is_empty:
            return [
                f"{home} is not empty and not a lab's home. "
                "Set INFRAFLOWS_LAB_HOME to a new directory."
            ]
    return []


def _is_open(directory: Path) -> bool:
    return bool(directory.stat().st_mode & stat.S_IXOTH)


def _other_lab(layout: Layout) -> list[str]:
    other = home_in_use(layout)
    if other is None or other == layout.home:
        return []
    return [
        f"Another lab runs as instance {layout.instance!r} from {other}. Stop it "
        f"(INFRAFLOWS_LAB_HOME={other} infraflows-lab down), or give this one another "
        "INFRAFLOWS_LAB_INSTANCE."
    ]


def home_in_use(layout: Layout) -> Path | None:
    """The home of this instance's lab, as long as its network is there."""
    try:
        home = Path(layout.home_marker.read_text(encoding="utf-8").strip())
    except OSError:
        return None
    return home if layout.namespace_path.exists() else None


def _port(layout: Layout, services: Sequence[Service], machine: Machine) -> list[str]:
    if not any(service.name == "ui" for service in services):
        return []
    if read_record(layout, "ui").is_alive or not machine.is_port_taken(layout.ui_port):
        return []
    return [
        f"Port {layout.ui_port} on 127.0.0.1 is taken by another program; the Prefect UI is shown "
        "there. Stop that program, or set INFRAFLOWS_UI_PORT to a free port."
    ]


def _room(layout: Layout, services: Sequence[Service], machine: Machine) -> list[str]:
    if any(read_record(layout, service.name).is_alive for service in services):
        return []  # a running lab has taken its room already
    problems = []
    disk_gib = machine.free_disk_bytes(layout.home) / _GIB
    if disk_gib < NEEDED_DISK_GIB:
        problems.append(
            f"Only {disk_gib:.1f} GiB are free for {layout.home}; {NEEDED_DISK_GIB:g} are needed. "
            "Free some, or set INFRAFLOWS_LAB_HOME to another disk."
        )
    memory_gib = machine.available_memory_bytes() / _GIB
    if memory_gib < NEEDED_MEMORY_GIB:
        problems.append(
            f"Only {memory_gib:.1f} GiB of memory are available; {NEEDED_MEMORY_GIB:g} are needed "
            "for five guests. End other programs, or use a larger machine."
        )
    return problems


def _programs(services: Sequence[Service], machine: Machine) -> list[str]:
    wanted = {"ip", "nsenter", "umount"}
    for service in services:
        wanted.update(service.programs)
    missing = sorted(program for program in wanted if not machine.has_program(program))
    if any(service.name == "worker" for service in services):
        missing += [str(bin_dir() / name) for name in _BUILT_PROGRAMS if not _is_built(name)]
    if any(service.name == "proxmox" for service in services):
        image = cache_dir() / "image" / "current"
        missing += [] if image.exists() else [f"{image} (the guests' image)"]
    if not missing:
        return []
    return [f"Missing: {', '.join(missing)}. Run lab/setup.sh, which installs and builds them."]


def _is_built(name: str) -> bool:
    return (bin_dir() / name).exists()


def _free_disk_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _has_program(name: str) -> bool:
    search = f"{Path(sys.executable).parent}:{_SYSTEM_PATH}"
    return shutil.which(name, path=search) is not None


def _is_port_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
