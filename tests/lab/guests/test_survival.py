"""Guests outlive the runtime, and nothing outlives the guests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lab import network
from lab.hypervisor.guests.cgroups import hierarchies
from lab.hypervisor.guests.processes import load_identity

pytestmark = pytest.mark.lab
VMID = 141


def _leftovers(guest_lab, vmid: int) -> list[str]:
    directory = str(guest_lab.directory / "runtime")
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if directory in line]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        if directory in backing.read_text():
            found.append(str(backing))
    group = f"infraflows-{guest_lab.instance}/{vmid}"
    found += [str(h.root / group) for h in hierarchies() if (h.root / group).exists()]
    links = network.run_inside(guest_lab.instance, ["ip", "-o", "link"]).stdout
    found += [line for line in links.splitlines() if f"tap{vmid}i" in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{guest_lab.instance}-{vmid}" in process.read_text():
                found.append(str(process))
        except OSError:
            continue
    return found


async def test_nothing_is_left_of_a_deleted_guest(guest_lab):
    await guest_lab.boot(VMID)
    assert _leftovers(guest_lab, VMID)
    await guest_lab.destroy(VMID)
    assert _leftovers(guest_lab, VMID) == []
    assert not (guest_lab.directory / "runtime/guests" / str(VMID)).exists()


async def test_a_new_runtime_finds_the_guests_of_the_one_before(guest_lab):
    await guest_lab.boot(VMID)
    boot = guest_lab.ssh(VMID, "cat /proc/sys/kernel/random/boot_id")
    again = guest_lab.new_runtime()
    await again.recover()
    assert await again.state(VMID) == "running"
    await again.start(guest_lab.config(VMID))
    assert guest_lab.ssh(VMID, "cat /proc/sys/kernel/random/boot_id") == boot
    await again.stop(VMID, graceful_timeout_seconds=120)
    assert await again.state(VMID) == "stopped"
    await guest_lab.destroy(VMID)


_STARTER = """
import asyncio, sys
from pathlib import Path
from lab.hypervisor.guest_runtime import GuestConfig
from lab.hypervisor.guests.runtime import NspawnRuntime
from lab.toolchain.paths import guest_image

async def main():
    directory, netns, instance, vmid, key = sys.argv[1:6]
    runtime = NspawnRuntime(Path(directory), guest_image(), netns, instance)
    disk = f"vm-{vmid}-disk-0"
    await runtime.create_disk(disk, 1024**3, None)
    await runtime.start(GuestConfig(
        vmid=int(vmid), name=f"guest-{vmid}", uuid=f"5b0c1f0e-0000-4000-8000-{int(vmid):012d}",
        disk_id=disk, cores=1, memory_mib=512, mac="bc:24:11:00:00:8d", bridge="vmbr0",
        user="infraflows", ssh_keys=(key,), addresses=(f"10.90.0.{vmid}/24",)))
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def _starter(guest_lab, vmid: int) -> subprocess.Popen[str]:
    arguments = [
        str(guest_lab.directory / "runtime"),
        network.network_namespace(guest_lab.instance),
    ]
    arguments += [guest_lab.instance, str(vmid), guest_lab.key.with_suffix(".pub").read_text()]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_STARTER), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


async def test_a_guest_survives_the_death_of_the_process_that_started_it(guest_lab):
    with _starter(guest_lab, VMID) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        os.killpg(starter.pid, signal.SIGKILL)
    guest_lab.await_login(VMID)
    again = guest_lab.new_runtime()
    await again.recover()
    assert await again.state(VMID) == "running"
    guest_lab.ssh(VMID, "sudo systemctl reboot", check=False)
    await asyncio.sleep(0.5)
    guest_lab.await_login(VMID)
    await guest_lab.destroy(VMID)
    assert _leftovers(guest_lab, VMID) == []


@pytest.mark.parametrize("delay_seconds", [0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.1, 1.5])
async def test_a_start_cut_off_anywhere_is_simply_made_again(guest_lab, delay_seconds):
    with _starter(guest_lab, VMID) as starter:
        time.sleep(delay_seconds)
        os.killpg(starter.pid, signal.SIGKILL)
    again = guest_lab.new_runtime()
    await again.recover()
    config = guest_lab.config(VMID)
    await again.create_disk(config.disk_id, 1024**3, None)
    await again.start(config)
    guest_lab.await_login(VMID)
    await guest_lab.destroy(VMID)
    assert _leftovers(guest_lab, VMID) == []


@pytest.mark.parametrize("victim", ["supervisor.pid", "nspawn.pid", "init.pid"])
async def test_killing_any_of_a_guests_processes_leaves_a_guest_that_starts_again(
    guest_lab, victim
):
    await guest_lab.boot(VMID)
    identity = load_identity(guest_lab.directory / "runtime/guests" / str(VMID) / victim)
    assert identity is not None
    identity.kill()
    await asyncio.sleep(0.5)
    assert await guest_lab.runtime.is_running(VMID) == (victim == "supervisor.pid")
    await guest_lab.runtime.stop(VMID, graceful_timeout_seconds=None)
    await guest_lab.runtime.start(guest_lab.config(VMID))
    guest_lab.await_login(VMID)
    await guest_lab.destroy(VMID)
    assert _leftovers(guest_lab, VMID) == []


async def test_a_dead_guest_does_not_answer_through_a_socket_it_left(guest_lab):
    await guest_lab.boot(VMID)
    client = network.call_inside(
        guest_lab.instance, lambda: socket.create_connection(("10.90.0.141", 22), timeout=5)
    )
    await guest_lab.runtime.stop(VMID, graceful_timeout_seconds=None)
    done = network.run_inside(
        guest_lab.instance, ["ping", "-c1", "-W1", "10.90.0.141"], check=False
    )
    client.close()
    assert done.returncode != 0
    await guest_lab.destroy(VMID)


async def test_the_network_is_made_twice_and_removed_with_what_runs_inside():
    instance = f"test-net-{os.getpid()}"
    network.ensure_network(instance)
    network.ensure_network(instance)
    shown = network.run_inside(instance, ["ip", "-4", "address", "show", "vmbr0"]).stdout
    for address in ("10.90.0.1/24", "10.90.0.11/24", "10.90.0.12/24", "10.90.0.13/24"):
        assert address in shown
    with subprocess.Popen(network.inside(instance, ["sleep", "600"])) as sleeper:
        time.sleep(0.2)
        assert network.processes_inside(instance) == [sleeper.pid]
        network.remove_network(instance)
        assert sleeper.wait(timeout=5) != 0
    assert not network.network_exists(instance)
    assert not network.namespace_path(instance).exists()
    network.remove_network(instance)


async def test_a_namespace_file_without_a_namespace_is_made_good():
    instance = f"test-half-{os.getpid()}"
    network.NETNS_DIRECTORY.mkdir(exist_ok=True)
    network.namespace_path(instance).touch()
    assert not network.network_exists(instance)
    network.ensure_network(instance)
    assert network.network_exists(instance)
    network.remove_network(instance)
