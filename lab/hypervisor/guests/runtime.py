"""The guest runtime that boots real Linux systems with systemd-nspawn.

Why: what the product does to a machine (SSH, Ansible, etcd, VRRP, a reboot, a full disk) is only
tried when there is a machine. Each guest has a disk of true size, its own network link, its own
control group and a supervisor of its own.

Promises: every act may be cut off by SIGKILL and made again; guests outlive this process and are
found again by files (lock, pid and start time); nothing of a stopped guest but its disk remains.
Refuses: to boot a guest twice, and to touch the disk of a guest that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lab.hypervisor.guest_runtime import (
    GuestConfig,
    GuestNotRunning,
    GuestRuntimeError,
    GuestState,
    GuestUsage,
)
from lab.hypervisor.guests.agent import (
    guest_interfaces,
    is_agent_up,
    read_guest_file,
    run_in_guest,
    write_guest_file,
)
from lab.hypervisor.guests.cgroups import GuestCgroup
from lab.hypervisor.guests.disks import DiskStore
from lab.hypervisor.guests.links import bridge_name, detach_link
from lab.hypervisor.guests.place import GuestPlace, group_of_instance
from lab.hypervisor.guests.processes import ProcessIdentity
from lab.hypervisor.guests.seed import seed_files
from lab.hypervisor.guests.supervisor import Orders
from lab.network import ensure_bridge

T = TypeVar("T")

INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
NEEDED_INOTIFY_INSTANCES = 4096  # each systemd takes several, and all guests share root's
START_SECONDS = 60.0
STOP_SECONDS = 20.0
RESET_SECONDS = 45.0
_POWER_OFF = signal.SIGRTMIN + 3  # systemd's "halt" signal to a container's init


class NspawnRuntime:
    """Guests under one directory, on one lab network."""

    def __init__(self, directory: Path, image: Path, netns: str, instance: str) -> None:
        """`image` is the golden root file system, `netns` the lab's network namespace."""
        if os.geteuid() != 0:
            raise GuestRuntimeError(
                "Unable to run guests: mounts and namespaces need root. Run the lab as root."
            )
        self._directory = directory.resolve()
        self._netns = netns
        self._instance = instance
        self._locks = self._directory / "locks"
        self._guests = self._directory / "guests"
        for path in (self._locks, self._guests):
            path.mkdir(parents=True, exist_ok=True)
        self._disks = DiskStore(self._directory, image, self._mounted_by)
        # Threads wait for mkfs, cp and boots; the default pool of a small machine has six.
        self._pool = ThreadPoolExecutor(max_workers=24, thread_name_prefix="guests")

    # Disks

    async def create_disk(self, disk_id: str, size_bytes: int, source: str | None) -> None:
        """Make a disk: a copy of the disk `source`, or of the base image when it is None."""
        await self._thread(lambda: self._disks.create(disk_id, size_bytes, source))

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        """Grow a disk; the guest that uses it may run."""
        await self._thread(lambda: self._disks.resize(disk_id, size_bytes))

    async def delete_disk(self, disk_id: str) -> None:
        """Remove a disk, its snapshots and what is known of guests that had it."""
        await self._thread(lambda: self._delete_disk(disk_id))

    async def snapshot_disk(self, disk_id: str, name: str) -> None:
        """Keep the disk's present content under `name`."""
        await self._thread(lambda: self._disks.snapshot(disk_id, name))

    async def rollback_disk(self, disk_id: str, name: str) -> None:
        """Put the content kept under `name` back."""
        await self._thread(lambda: self._disks.rollback(disk_id, name))

    async def delete_snapshot(self, disk_id: str, name: str) -> None:
        """Forget the content kept under `name`."""
        await self._thread(lambda: self._disks.delete_snapshot(disk_id, name))

    async def export_disk(self, disk_id: str, target: Path) -> None:
        """Write the disk's content into one file."""
        await self._thread(lambda: self._disks.export(disk_id, target))

    async def import_disk(self, disk_id: str, source: Path) -> None:
        """Make the disk's content that of an exported file."""
        await self._thread(lambda: self._disks.import_(disk_id, source))

    # Power

    async def start(self, guest: GuestConfig) -> None:
        """Boot the guest; returns once its init runs. One that runs already is left alone."""
        await self._thread(lambda: self._start(guest))

    async def stop(self, vmid: int, *, graceful_timeout_seconds: float | None) -> None:
        """Ask the guest to power off and wait that long (TimeoutError); None pulls the plug."""
        place = self._place(vmid)
        if graceful_timeout_seconds is not None:
            await self._power_off(place, graceful_timeout_seconds)
        await self._thread(lambda: self._pull_the_plug(place))

    async def reset(self, vmid: int) -> None:
        """Pull the plug and boot again with the same orders."""
        place = self._running(vmid)
        await self._thread(lambda: self._reset(place))

    async def suspend(self, vmid: int) -> None:
        """Freeze the guest where it stands."""
        place = self._running(vmid)
        await self._thread(lambda: place.hold("paused"))

    async def resume(self, vmid: int) -> None:
        """Let a frozen guest go on."""
        place = self._running(vmid)
        await self._thread(lambda: place.release("paused"))

    async def is_running(self, vmid: int) -> bool:
        """True for a running or paused guest."""
        return self._place(vmid).is_alive()

    async def state(self, vmid: int) -> GuestState:
        """The guest's true state."""
        place = self._place(vmid)
        if not place.is_alive():
            return "stopped"
        return "paused" if place.is_held("paused") else "running"

    async def usage(self, vmid: int) -> GuestUsage:
        """CPU, memory and uptime of a running guest."""
        place = self._running(vmid)
        init = place.init()
        if init is None:
            return GuestUsage(cpu_seconds=0.0, memory_bytes=0, uptime_seconds=0.0)
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        started = init.start_ticks / os.sysconf("SC_CLK_TCK")
        try:
            cpu_seconds = place.cgroup.cpu_seconds()
            memory_bytes = place.cgroup.memory_bytes()
        except FileNotFoundError as error:  # it ended between the question and the answer
            raise GuestNotRunning(f"VM {vmid} not running") from error
        return GuestUsage(cpu_seconds, memory_bytes, max(0.0, since_boot - started))

    async def recover(self) -> None:
        """Find the guests that still run, and take away what dead ones left."""
        await self._thread(self._recover)

    async def clear(self) -> None:
        """End every guest and remove every file: the lab goes down for good."""
        await self._thread(self.clear_now)

    def clear_now(self) -> None:
        """The same for a caller without an event loop."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(self._pull_the_plug, self._places()))
        GuestCgroup(group_of_instance(self._instance)).remove()
        shutil.rmtree(self._directory, ignore_errors=True)

    # The guest agent's acts

    async def interfaces(self, vmid: int) -> list[dict[str, object]]:
        """The `result` list of the guest agent's network-get-interfaces."""
        return await guest_interfaces(self._agent(vmid).pid)

    async def execute(
        self, vmid: int, argv: list[str], input_data: bytes
    ) -> tuple[int, bytes, bytes]:
        """Run a command inside: (exit code, stdout, stderr)."""
        return await run_in_guest(self._agent(vmid).pid, argv, input_data)

    async def read_file(self, vmid: int, path: str) -> bytes:
        """A file's content inside the guest."""
        return await read_guest_file(self._agent(vmid).pid, path)

    async def write_file(self, vmid: int, path: str, content: bytes) -> None:
        """Write a file inside the guest."""
        await write_guest_file(self._agent(vmid).pid, path, content)

    # For the faults (faults.py)

    def place(self, vmid: int) -> GuestPlace:
        """Where a running guest lives on this machine."""
        return self._running(vmid)

    # Insides

    async def _thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _place(self, vmid: int) -> GuestPlace:
        return GuestPlace(vmid, self._guests / str(vmid), self._instance, self._netns)

    def _running(self, vmid: int) -> GuestPlace:
        place = self._place(vmid)
        if not place.is_alive():
            raise GuestNotRunning(f"VM {vmid} not running")
        return place

    def _agent(self, vmid: int) -> ProcessIdentity:
        place = self._running(vmid)
        init = place.init()
        if place.cgroup.is_freezing() or init is None or not is_agent_up(init.pid):
            raise GuestRuntimeError("QEMU guest agent is not running")
        return init

    def _places(self) -> Iterator[GuestPlace]:
        for directory in sorted(self._guests.iterdir()):
            if directory.name.isdigit():
                yield self._place(int(directory.name))

    def _mounted_by(self, image: Path) -> tuple[int, Path] | None:
        for place in self._places():
            orders = place.orders()
            if orders is not None and orders.disk == str(image):
                holder = place.mount_holder()
                if holder is not None:
                    return holder.pid, place.directory / "disk"
        return None

    @contextlib.contextmanager
    def _locked(self, vmid: int) -> Iterator[int]:
        """One act on a guest's power at a time, over all processes; death lets go."""
        with (self._locks / str(vmid)).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()

    def _start(self, guest: GuestConfig) -> None:
        with self._locked(guest.vmid) as lock:
            place = self._place(guest.vmid)
            if place.is_alive():
                return
            self._sweep(place)
            _raise_inotify_limit()
            place.directory.mkdir(exist_ok=True)
            bridge = bridge_name(guest.bridge, guest.vlan)
            if guest.vlan is not None:
                ensure_bridge(self._netns, bridge)
            self._orders(guest, place, bridge).save(place.directory / "orders.json")
            self._launch(place, lock)

    def _orders(self, guest: GuestConfig, place: GuestPlace, bridge: str) -> Orders:
        lower = self._disks.base(guest.disk_id)
        if not (lower / "usr").is_dir():
            raise GuestRuntimeError(
                f"Unable to start VM {guest.vmid}: its base image {lower.name} is gone. "
                "Build the guest image again, or make the disk anew from a template."
            )
        return Orders(
            vmid=guest.vmid,
            name=guest.name,
            uuid=guest.uuid,
            machine=place.machine,
            directory=str(place.directory),
            disk=str(self._disks.path(guest.disk_id)),
            lower=str(lower),
            namespace=self._netns,
            bridge=bridge,
            mac=guest.mac,
            cgroup=place.group,
            supervisors_cgroup=f"{group_of_instance(self._instance)}/supervisors",
            cores=guest.cores,
            memory_mib=guest.memory_mib,
            seed=seed_files(guest),
        )

    def _launch(self, place: GuestPlace, lock: int) -> None:
        # The supervisor shares the lock until it can be seen: if this process is killed now, the
        # next act on the guest waits for it instead of passing it unseen.
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-S", "-m", "lab.hypervisor.guests.supervisor",
             str(place.directory / "orders.json"), str(lock)],
            pass_fds=(lock,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(place.directory / "supervisor.log").open("ab"),
            start_new_session=True,
            # Nothing of the API's environment goes into a guest.
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
                "LC_ALL": "C.UTF-8",
            },
        )  # fmt: skip
        assert supervisor.stdout is not None  # noqa: S101 - told to the type checker
        with supervisor.stdout as stream:
            ready, _, _ = select.select([stream], [], [], START_SECONDS)
            answer = stream.readline().decode().strip() if ready else "it does not answer"
        supervisor.wait(timeout=START_SECONDS)
        if answer != "ready":
            self._pull_the_plug_locked(place)
            raise GuestRuntimeError(
                f"Unable to start VM {place.vmid}: {answer or place.last_words()}. "
                f"Look at {place.directory.name}/supervisor.log and console.log."
            )

    async def _power_off(self, place: GuestPlace, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        next_signal = 0.0
        while place.is_alive():
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError(f"VM {place.vmid} quit/powerdown failed - got timeout")
            init = place.init()
            if init is not None and now >= next_signal:
                # A young init has no handler yet and the signal is lost: it is sent again.
                init.kill(_POWER_OFF)
                next_signal = now + 2.0
            await asyncio.sleep(0.05)

    def _pull_the_plug(self, place: GuestPlace) -> None:
        with self._locked(place.vmid):
            self._pull_the_plug_locked(place)

    def _pull_the_plug_locked(self, place: GuestPlace) -> None:
        (place.directory / "reset").unlink(missing_ok=True)
        deadline = time.monotonic() + STOP_SECONDS
        while place.is_alive():
            place.cgroup.kill_all()
            if time.monotonic() > deadline:
                supervisor = place.supervisor()
                if supervisor is not None:
                    supervisor.kill()
                deadline += STOP_SECONDS
            time.sleep(0.02)
        self._sweep(place)

    def _reset(self, place: GuestPlace) -> None:
        with self._locked(place.vmid) as lock:
            before, supervisor = place.init(), place.supervisor()
            if supervisor is None:
                self._pull_the_plug_locked(place)
                self._launch(place, lock)
                return
            (place.directory / "reset").touch()
            place.forget_holds()
            place.cgroup.kill_all()
            deadline = time.monotonic() + RESET_SECONDS
            while (after := place.init()) is None or after == before:
                if time.monotonic() > deadline or not place.is_alive():
                    raise GuestRuntimeError(
                        f"Unable to reset VM {place.vmid}: {place.last_words()}. Start it again."
                    )
                time.sleep(0.02)

    def _sweep(self, place: GuestPlace) -> None:
        """Take away what a dead guest may have left; its mounts went with its last process."""
        place.cgroup.kill_all()
        detach_link(self._netns, place.vmid)
        place.cgroup.remove()
        place.forget_run()

    def _delete_disk(self, disk_id: str) -> None:
        image = str(self._disks.path(disk_id))
        self._disks.delete(disk_id)
        for place in self._places():
            orders = place.orders()
            if orders is not None and orders.disk == image and not place.is_alive():
                shutil.rmtree(place.directory, ignore_errors=True)

    def _recover(self) -> None:
        self._disks.discard_partial_copies()
        for place in self._places():
            with self._locked(place.vmid):
                # Ordered by a process that died before it could do it.
                (place.directory / "reset").unlink(missing_ok=True)
                if not place.is_alive():
                    self._sweep(place)


def _raise_inotify_limit() -> None:
    if int(INOTIFY_INSTANCES.read_text()) < NEEDED_INOTIFY_INSTANCES:
        INOTIFY_INSTANCES.write_text(str(NEEDED_INOTIFY_INSTANCES))
