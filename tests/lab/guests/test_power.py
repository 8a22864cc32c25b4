"""Guests are real machines: they boot, answer, stop, hang, reboot and come back."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from lab import network
from lab.hypervisor.guest_runtime import GuestNotRunning, GuestRuntimeError
from lab.hypervisor.guests.faults import GuestFaults

pytestmark = pytest.mark.lab
VMID = 101


@pytest_asyncio.fixture
async def guest(guest_lab) -> AsyncIterator[int]:
    """A running guest, booted fresh for the test."""
    await guest_lab.boot(VMID)
    yield VMID
    await guest_lab.destroy(VMID)


async def _until(condition, timeout_seconds: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not await condition():
        assert time.monotonic() < deadline, "the awaited state did not come"
        await asyncio.sleep(0.05)


async def test_a_guest_answers_ssh_and_its_user_may_sudo(guest_lab):
    config = guest_lab.config(VMID)
    await guest_lab.runtime.create_disk(config.disk_id, 1024**3, None)
    await guest_lab.runtime.start(config)
    guest_lab.await_login(VMID)
    assert guest_lab.ssh(VMID, "whoami; sudo id -u").split() == ["infraflows", "0"]
    await guest_lab.destroy(VMID)


async def test_cloud_init_is_done_without_errors_and_took_what_it_was_given(guest_lab, guest):
    status = guest_lab.ssh(guest, "cloud-init status --wait")
    assert "status: done" in status
    assert guest_lab.ssh(guest, "hostname --fqdn") == "guest-101.lab.infraflows.internal"
    assert "10.90.0.1" in guest_lab.ssh(guest, "resolvectl dns eth0")
    assert "bc:24:11:00:00:65" in guest_lab.ssh(guest, "cat /sys/class/net/eth0/address")
    assert guest_lab.ssh(guest, "ip route show default").startswith("default via 10.90.0.1")
    assert guest_lab.ssh(guest, "systemctl --failed --quiet") == ""


async def test_starting_a_running_guest_changes_nothing(guest_lab, guest):
    before = guest_lab.ssh(guest, "cat /proc/sys/kernel/random/boot_id")
    await guest_lab.runtime.start(guest_lab.config(guest))
    assert guest_lab.ssh(guest, "cat /proc/sys/kernel/random/boot_id") == before


async def test_a_graceful_stop_lets_the_guest_end_its_services(guest_lab, guest):
    guest_lab.ssh(guest, "sudo systemd-run -q -p ExecStop='/bin/touch /root/ended' sleep 600")
    await guest_lab.runtime.stop(guest, graceful_timeout_seconds=120)
    assert await guest_lab.runtime.state(guest) == "stopped"
    await guest_lab.runtime.start(guest_lab.config(guest))
    guest_lab.await_login(guest)
    assert guest_lab.ssh(guest, "sudo ls /root/ended") == "/root/ended"


async def test_a_pulled_plug_ends_no_service_and_the_guest_starts_again(guest_lab, guest):
    guest_lab.ssh(guest, "sudo systemd-run -q -p ExecStop='/bin/touch /root/ended' sleep 600")
    guest_lab.ssh(guest, "echo kept | sudo tee /root/note; sync")
    await guest_lab.runtime.stop(guest, graceful_timeout_seconds=None)
    assert not guest_lab.can_log_in(guest)
    await guest_lab.runtime.start(guest_lab.config(guest))
    guest_lab.await_login(guest)
    assert guest_lab.ssh(guest, "sudo cat /root/note; sudo ls /root/ended 2>&1 || true") == (
        "kept\nls: cannot access '/root/ended': No such file or directory"
    )


async def test_a_guest_that_powers_itself_off_is_stopped(guest_lab, guest):
    guest_lab.ssh(guest, "sudo systemctl poweroff", check=False)

    async def is_stopped() -> bool:
        return await guest_lab.runtime.state(guest) == "stopped"

    await _until(is_stopped)
    assert not await guest_lab.runtime.is_running(guest)


async def test_a_reboot_from_inside_comes_back_with_a_clean_network(guest_lab, guest):
    first = guest_lab.ssh(guest, "cat /proc/sys/kernel/random/boot_id")
    guest_lab.ssh(guest, "sudo ip address add 10.90.0.240/24 dev eth0; sudo nft add table ip left")
    guest_lab.ssh(guest, "sudo systemctl reboot", check=False)

    async def is_another_boot() -> bool:
        boot = guest_lab.ssh(guest, "cat /proc/sys/kernel/random/boot_id", check=False)
        return boot not in ("", first)

    await _until(is_another_boot)
    assert "10.90.0.240" not in guest_lab.ssh(guest, "ip -4 address show eth0")
    assert guest_lab.ssh(guest, "sudo nft list tables") == ""


async def test_a_reset_boots_again_and_asks_nobody(guest_lab, guest):
    first = guest_lab.ssh(guest, "cat /proc/sys/kernel/random/boot_id")
    await GuestFaults(guest_lab.runtime).hang(guest)
    await guest_lab.runtime.reset(guest)
    guest_lab.await_login(guest)
    assert guest_lab.ssh(guest, "cat /proc/sys/kernel/random/boot_id") != first


async def test_a_suspended_guest_stands_still_and_goes_on_where_it_was(guest_lab, guest):
    guest_lab.ssh(
        guest, "nohup sh -c 'while sleep 0.1; do date +%s%N >/tmp/beat; done' >/dev/null 2>&1 &"
    )
    await asyncio.sleep(0.5)
    await guest_lab.runtime.suspend(guest)
    assert await guest_lab.runtime.state(guest) == "paused"
    assert await guest_lab.runtime.is_running(guest)
    assert not guest_lab.can_log_in(guest)
    with pytest.raises(GuestRuntimeError, match="QEMU guest agent is not running"):
        await guest_lab.runtime.execute(guest, ["true"], b"")
    await guest_lab.runtime.resume(guest)
    assert await guest_lab.runtime.state(guest) == "running"
    first = guest_lab.ssh(guest, "cat /tmp/beat")
    await asyncio.sleep(0.4)
    assert guest_lab.ssh(guest, "cat /tmp/beat") != first


async def test_a_hung_guest_is_called_running_and_a_shutdown_of_it_times_out(guest_lab, guest):
    faults = GuestFaults(guest_lab.runtime)
    await faults.hang(guest)
    assert await guest_lab.runtime.state(guest) == "running"
    with pytest.raises(TimeoutError, match="got timeout"):
        await guest_lab.runtime.stop(guest, graceful_timeout_seconds=1)
    await faults.unhang(guest)


async def test_a_suspended_guest_can_be_stopped_hard(guest_lab, guest):
    await guest_lab.runtime.suspend(guest)
    await guest_lab.runtime.stop(guest, graceful_timeout_seconds=None)
    assert await guest_lab.runtime.state(guest) == "stopped"


async def test_a_cut_cable_is_silence_until_it_is_plugged_in(guest_lab, guest):
    faults = GuestFaults(guest_lab.runtime)
    await faults.cut(guest)
    assert not guest_lab.can_log_in(guest)
    assert await guest_lab.runtime.state(guest) == "running"
    await faults.uncut(guest)
    guest_lab.await_login(guest)


async def test_a_guest_that_does_not_run_refuses_what_needs_one(guest_lab):
    runtime = guest_lab.runtime
    for act in (runtime.reset, runtime.suspend, runtime.resume, runtime.usage, runtime.interfaces):
        with pytest.raises(GuestNotRunning, match="VM 199 not running"):
            await act(199)
    await runtime.stop(199, graceful_timeout_seconds=5)


async def test_two_guests_are_two_machines_and_reach_each_other(guest_lab):
    await asyncio.gather(guest_lab.boot(111), guest_lab.boot(112))
    ids = {guest_lab.ssh(vmid, "cat /etc/machine-id") for vmid in (111, 112)}
    keys = {guest_lab.ssh(vmid, "cat /etc/ssh/ssh_host_ed25519_key.pub") for vmid in (111, 112)}
    assert len(ids) == 2
    assert len(keys) == 2
    assert " 0% packet loss" in guest_lab.ssh(111, "ping -c 2 -i 0.2 10.90.0.112")
    await asyncio.gather(guest_lab.destroy(111), guest_lab.destroy(112))


async def test_guests_of_another_vlan_are_not_reached(guest_lab):
    config = dataclasses.replace(guest_lab.config(113), vlan=20)
    await guest_lab.runtime.create_disk(config.disk_id, 1024**3, None)
    await guest_lab.runtime.start(config)
    await asyncio.sleep(1)
    done = network.run_inside(
        guest_lab.instance, ["ping", "-c1", "-W1", "10.90.0.113"], check=False
    )
    assert done.returncode != 0
    ports = network.run_inside(
        guest_lab.instance, ["ip", "-o", "link", "show", "master", "vmbr0v20"]
    )
    assert "tap113i0" in ports.stdout
    await guest_lab.destroy(113)
