"""A network and a runtime of the tests' own, with guests that are booted for each module."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from lab import network
from lab.hypervisor.guest_runtime import GuestConfig
from lab.hypervisor.guests.runtime import NspawnRuntime
from lab.toolchain.paths import guest_image

GIB = 1024**3


@dataclass
class GuestLab:
    """What a test needs to boot guests and to log in to them."""

    instance: str
    directory: Path
    key: Path
    runtime: NspawnRuntime

    def new_runtime(self) -> NspawnRuntime:
        """A second runtime object over the same files, as after a restart of the API."""
        namespace = network.network_namespace(self.instance)
        return NspawnRuntime(self.directory / "runtime", guest_image(), namespace, self.instance)

    def config(self, vmid: int, *, memory_mib: int = 512, name: str | None = None) -> GuestConfig:
        """A guest with an address made of its number (101 -> 10.90.0.101)."""
        return GuestConfig(
            vmid=vmid,
            name=name or f"guest-{vmid}",
            uuid=f"5b0c1f0e-0000-4000-8000-{vmid:012d}",
            disk_id=f"vm-{vmid}-disk-0",
            cores=1,
            memory_mib=memory_mib,
            mac=f"bc:24:11:00:00:{vmid % 256:02x}",
            bridge="vmbr0",
            user="infraflows",
            ssh_keys=(self.key.with_suffix(".pub").read_text().strip(),),
            addresses=(f"10.90.0.{vmid}/24",),
            gateway="10.90.0.1",
            nameservers=("10.90.0.1",),
            searchdomain="lab.infraflows.internal",
            agent_enabled=True,
        )

    async def boot(self, vmid: int, *, memory_mib: int = 512, size_bytes: int = GIB) -> None:
        """Create the disk, start the guest and wait until a person can log in."""
        config = self.config(vmid, memory_mib=memory_mib)
        await self.runtime.create_disk(config.disk_id, size_bytes, None)
        await self.runtime.start(config)
        self.await_login(vmid)

    async def destroy(self, vmid: int) -> None:
        """Pull the plug and delete the disk."""
        await self.runtime.stop(vmid, graceful_timeout_seconds=None)
        await self.runtime.delete_disk(f"vm-{vmid}-disk-0")

    def ssh(self, vmid: int, command: str, *, check: bool = True) -> str:
        """What a command says over SSH as `infraflows`."""
        options = [
            "-oBatchMode=yes",
            "-oStrictHostKeyChecking=no",
            "-oUserKnownHostsFile=/dev/null",
        ]
        options += ["-oConnectTimeout=2", "-oLogLevel=ERROR", "-i", str(self.key)]
        done = network.run_inside(
            self.instance,
            ["ssh", *options, f"infraflows@10.90.0.{vmid}", command],
            check=False,
            timeout_seconds=60,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command!r} on {vmid} ended with {done.returncode}: {done}")
        return done.stdout.strip()

    def can_log_in(self, vmid: int) -> bool:
        """One quick try."""
        return self.ssh(vmid, "echo in", check=False) == "in"

    def await_login(self, vmid: int, timeout_seconds: float = 180.0) -> float:
        """Seconds until a login works (a few; many more on a machine that does other work)."""
        started = time.monotonic()
        while not self.can_log_in(vmid):
            assert time.monotonic() - started < timeout_seconds, f"no login on {vmid}"
            time.sleep(0.1)
        return time.monotonic() - started


@pytest.fixture(scope="module")
def guest_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestLab]:
    """The network, an SSH key and an empty runtime."""
    if os.geteuid() != 0:
        pytest.skip("guests need root")
    instance = f"test-{os.getpid()}"
    directory = tmp_path_factory.mktemp("guests")
    network.ensure_network(instance)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "key")], check=True
    )
    namespace = network.network_namespace(instance)
    runtime = NspawnRuntime(directory / "runtime", guest_image(), namespace, instance)
    lab = GuestLab(instance, directory, directory / "key", runtime)
    try:
        yield lab
    finally:
        runtime.clear_now()
        network.remove_network(instance)
        shutil.rmtree(directory)


@pytest_asyncio.fixture(autouse=True)
async def _no_guest_outlives_its_test(guest_lab: GuestLab) -> AsyncIterator[None]:
    """A test that fails half-way must not spoil the next one."""
    yield
    for disk in (guest_lab.directory / "runtime/disks").glob("vm-*.img"):
        await guest_lab.destroy(int(disk.name.split("-")[1]))
