"""The process beside each running guest: it mounts, boots, restarts and cleans up.

Why: a guest must outlive the API's process, come back after a reboot from inside, and leave
nothing behind however it ends. This process is its own session and knows its orders by one file.

Promises: the disk and the overlay are mounted in a mount namespace of the guest's own, and its
network in a namespace of its own, so the kernel takes both away when the last process dies: a
SIGKILL anywhere leaves no mount. A lock that is held for life keeps a second one from starting.
Refuses: to mount an image that a loop device still shows; two mounts of one XFS destroy it.

Run as `python -m lab.hypervisor.guests.supervisor ORDERS LOCK`, where LOCK is the descriptor of the
starter's lock, shared until this process can be seen. Writes one line to stdout: `ready`, or what
went wrong.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.hypervisor.guests.cgroups import CgroupError, GuestCgroup, joining
from lab.hypervisor.guests.links import attach_link, detach_link
from lab.hypervisor.guests.processes import init_of, save_identity, write_atomically
from lab.network import NetworkError

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
REBOOT_EXIT_CODE = 133
LOOP_CTL_GET_FREE = 0x4C82
LOOP_MAJOR = 7
BOOT_SECONDS = 30.0
DETACH_SECONDS = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class BootError(Exception):
    """The guest could not be booted."""


@dataclass(frozen=True)
class Orders:
    """All that the supervisor needs to know, as the runtime writes it down."""

    vmid: int
    name: str
    uuid: str
    machine: str
    directory: str
    disk: str
    lower: str
    namespace: str
    bridge: str
    mac: str
    cgroup: str
    supervisors_cgroup: str
    cores: int
    memory_mib: int
    seed: dict[str, str]

    def save(self, path: Path) -> None:
        """Write the orders in one step."""
        write_atomically(path, json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(path: Path) -> Orders:
        """Read the orders."""
        return Orders(**json.loads(path.read_text()))


class Supervisor:
    """One guest from its power on to its power off."""

    def __init__(self, orders: Orders) -> None:
        """Nothing is touched yet."""
        self._orders = orders
        self._directory = Path(orders.directory)
        self._disk_mount = self._directory / "disk"
        self._root = self._directory / "root"
        self._cgroup = GuestCgroup(orders.cgroup)
        self._is_announced = False

    def run(self) -> None:
        """Boot, wait, boot again after a reboot; then clean up."""
        try:
            self._unshare(CLONE_NEWNS, "mount")
            _run("mount", "--make-rprivate", "/")
            self._mount()
            while True:
                self._connect()
                exit_code = self._boot_and_wait()
                self._end_rest()
                is_reset = self._take_reset_order()
                if exit_code != REBOOT_EXIT_CODE and not is_reset:
                    return
        finally:
            self._clean_up()

    def _unshare(self, flag: int, what: str) -> None:
        if _libc.unshare(flag) != 0:
            cause = os.strerror(ctypes.get_errno())
            raise BootError(f"the {what} namespace cannot be made: {cause}")

    def _mount(self) -> None:
        self._await_detached()
        _ensure_loop_devices()
        self._disk_mount.mkdir(exist_ok=True)
        self._root.mkdir(exist_ok=True)
        # Copies of one disk share its UUID, which XFS refuses unless told otherwise.
        _run("mount", "-t", "xfs", "-o", "loop,nouuid,noatime", self._orders.disk,
             str(self._disk_mount))  # fmt: skip
        _run("xfs_growfs", str(self._disk_mount))
        upper, work = self._disk_mount / "upper", self._disk_mount / "work"
        upper.mkdir(mode=0o755, exist_ok=True)
        work.mkdir(mode=0o755, exist_ok=True)
        _run("mount", "-t", "overlay", "-o",
             f"lowerdir={self._orders.lower},upperdir={upper},workdir={work}", "overlay",
             str(self._root))  # fmt: skip
        seed = self._root / "var/lib/cloud/seed/nocloud"
        seed.mkdir(parents=True, exist_ok=True)
        for name, text in self._orders.seed.items():
            (seed / name).write_text(text)
        (seed / "user-data").chmod(0o600)

    def _await_detached(self) -> None:
        deadline = time.monotonic() + DETACH_SECONDS
        while any(
            _text(backing) == self._orders.disk
            for backing in Path("/sys/block").glob("loop*/loop/backing_file")
        ):
            if time.monotonic() > deadline:
                raise BootError("its disk is in use")
            time.sleep(0.05)

    def _connect(self) -> None:
        # A new namespace for each boot: addresses, rules and sockets do not survive a reboot.
        self._unshare(CLONE_NEWNET, "network")
        attach_link(
            self._orders.namespace, self._orders.vmid, self._orders.bridge, self._orders.mac
        )

    def _boot_and_wait(self) -> int:
        self._cgroup.create(cores=self._orders.cores, memory_mib=self._orders.memory_mib)
        with (self._directory / "console.log").open("ab") as console:
            nspawn = subprocess.Popen(
                joining(self._cgroup.procs_files(), self._command()),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=os.environ | {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            )
        save_identity(self._directory / "nspawn.pid", nspawn.pid)
        deadline = time.monotonic() + BOOT_SECONDS
        while (leader := init_of(nspawn.pid)) is None:
            if nspawn.poll() is not None:
                raise BootError(
                    f"systemd-nspawn ended with {nspawn.returncode}: {self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise BootError("its init does not appear")
            time.sleep(0.01)
        save_identity(self._directory / "init.pid", leader)
        self.announce("ready")
        return nspawn.wait()

    def _command(self) -> list[str]:
        return [
            "systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--private-users=no",
            f"--machine={self._orders.machine}", f"--hostname={self._orders.name}",
            f"--uuid={self._orders.uuid.replace('-', '')}",
            "--network-namespace-path=/proc/self/ns/net",
            "--capability=CAP_NET_ADMIN", "--resolv-conf=off", "--timezone=off",
            "--link-journal=no", "--console=pipe", "--kill-signal=SIGRTMIN+3",
            f"--directory={self._root}", "--boot",
        ]  # fmt: skip

    def _last_words(self) -> str:
        lines = (self._directory / "console.log").read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"

    def _end_rest(self) -> None:
        """Killing nspawn alone leaves the guest running: whatever its group holds ends here.

        The group goes too: nspawn makes an inner node of it, which on cgroup v2 nothing can join.
        """
        self._cgroup.kill_all()
        self._cgroup.remove()
        detach_link(self._orders.namespace, self._orders.vmid)
        (self._directory / "nspawn.pid").unlink(missing_ok=True)
        (self._directory / "init.pid").unlink(missing_ok=True)

    def _take_reset_order(self) -> bool:
        try:
            (self._directory / "reset").unlink()
        except FileNotFoundError:
            return False
        return True

    def _clean_up(self) -> None:
        with suppress(CgroupError, OSError):
            self._end_rest()
        for mountpoint in (self._root, self._disk_mount):
            subprocess.run(["umount", str(mountpoint)], check=False, capture_output=True)

    def announce(self, line: str) -> None:
        """Tell whoever started this, who may be dead by now."""
        if not self._is_announced:
            self._is_announced = True
            with suppress(OSError):
                os.write(1, f"{line}\n".encode())
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)


def _ensure_loop_devices() -> None:
    """Where /dev is a plain directory (a container), new loop devices get no file by themselves."""
    with Path("/dev/loop-control").open("rb") as control:
        free = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    for number in range(free + 16):
        with suppress(FileExistsError):
            os.mknod(f"/dev/loop{number}", 0o660 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))


def _text(path: Path) -> str:
    try:
        return path.read_text().rstrip("\n")
    except OSError:
        return ""


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BootError(f"{command[0]} failed: {' '.join(done.stderr.split())}")


def _detach_from_caller(orders: Orders) -> None:
    """Become a child of init in a session and control group of its own."""
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    os.chdir("/")
    supervisors = GuestCgroup(orders.supervisors_cgroup)
    supervisors.create()
    for procs_file in supervisors.procs_files():
        Path(procs_file).write_text("0")


def _take(lock: int) -> bool:
    """Take the lock for life; whoever only asks whether it is held lets go within moments."""
    deadline = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def main() -> None:
    """Read the orders and run one guest."""
    orders = Orders.load(Path(sys.argv[1]))
    _detach_from_caller(orders)
    directory = Path(orders.directory)
    supervisor = Supervisor(orders)
    with (directory / "supervisor.lock").open("a") as lock:
        if not _take(lock.fileno()):
            supervisor.announce("it runs already")
            return
        save_identity(directory / "supervisor.pid", os.getpid())
        os.close(int(sys.argv[2]))
        try:
            supervisor.run()
        except (BootError, CgroupError, NetworkError, OSError) as error:
            supervisor.announce(str(error))
            write_atomically(directory / "failure", f"{error}\n")
        finally:
            (directory / "supervisor.pid").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
