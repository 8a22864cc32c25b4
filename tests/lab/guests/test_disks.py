"""Disks have a true size, grow while the guest runs, and are copied whole."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.guests.disks import loop_devices
from lab.hypervisor.guests.faults import GuestFaults

pytestmark = pytest.mark.lab
VMID = 121
DISK = "vm-121-disk-0"
MIB = 1024**2


def _size_mib(guest_lab, vmid: int = VMID) -> int:
    return int(guest_lab.ssh(vmid, "df --output=size -BM / | tail -n 1").rstrip("M"))


async def test_a_disk_is_as_large_as_promised_and_full_when_it_is_full(guest_lab):
    await guest_lab.boot(VMID, size_bytes=512 * MIB)
    assert 400 <= _size_mib(guest_lab) <= 512
    refused = guest_lab.ssh(
        VMID, "dd if=/dev/zero of=/var/tmp/large bs=1M count=600 2>&1; rm /var/tmp/large"
    )
    assert "No space left on device" in refused
    faults = GuestFaults(guest_lab.runtime)
    await faults.fill_disk(VMID)
    full = guest_lab.ssh(VMID, "sudo sh -c 'head -c 2M /dev/zero >/var/x' 2>&1; sudo rm -f /var/x")
    assert "No space left on device" in full
    await faults.empty_disk(VMID)
    assert guest_lab.ssh(VMID, "sudo sh -c 'head -c 2M /dev/zero >/var/x' && sudo rm /var/x") == ""
    await guest_lab.destroy(VMID)


async def test_a_running_guest_sees_its_disk_grow(guest_lab):
    await guest_lab.boot(VMID, size_bytes=512 * MIB)
    await guest_lab.runtime.resize_disk(DISK, 2048 * MIB)
    assert 1900 <= _size_mib(guest_lab) <= 2048
    await guest_lab.runtime.resize_disk(DISK, 2048 * MIB)
    await guest_lab.destroy(VMID)


async def test_a_disk_grown_while_stopped_is_larger_at_the_next_start(guest_lab):
    await guest_lab.boot(VMID, size_bytes=512 * MIB)
    await guest_lab.runtime.stop(VMID, graceful_timeout_seconds=120)
    await guest_lab.runtime.resize_disk(DISK, 1024 * MIB)
    await guest_lab.runtime.start(guest_lab.config(VMID))
    guest_lab.await_login(VMID)
    assert 900 <= _size_mib(guest_lab) <= 1024
    await guest_lab.destroy(VMID)


async def test_shrinking_is_refused(guest_lab):
    await guest_lab.runtime.create_disk(DISK, 512 * MIB, None)
    with pytest.raises(GuestRuntimeError, match="shrinking"):
        await guest_lab.runtime.resize_disk(DISK, 400 * MIB)
    await guest_lab.runtime.delete_disk(DISK)


async def test_a_rollback_brings_back_what_was_and_forgets_what_came_after(guest_lab):
    await guest_lab.boot(VMID)
    guest_lab.ssh(VMID, "echo before | sudo tee /root/note >/dev/null")
    await guest_lab.runtime.snapshot_disk(DISK, "clean")
    guest_lab.ssh(VMID, "echo after | sudo tee /root/note >/dev/null; sudo touch /root/later")
    with pytest.raises(GuestRuntimeError, match="in use"):
        await guest_lab.runtime.rollback_disk(DISK, "clean")
    await guest_lab.runtime.stop(VMID, graceful_timeout_seconds=None)
    await guest_lab.runtime.rollback_disk(DISK, "clean")
    await guest_lab.runtime.start(guest_lab.config(VMID))
    guest_lab.await_login(VMID)
    assert guest_lab.ssh(VMID, "sudo cat /root/note") == "before"
    assert guest_lab.ssh(VMID, "sudo ls /root/later 2>/dev/null || true") == ""
    await guest_lab.runtime.delete_snapshot(DISK, "clean")
    await guest_lab.runtime.delete_snapshot(DISK, "clean")
    await guest_lab.destroy(VMID)


async def test_a_rollback_to_an_unknown_snapshot_is_refused(guest_lab):
    await guest_lab.runtime.create_disk(DISK, 512 * MIB, None)
    with pytest.raises(GuestRuntimeError, match="no snapshot absent"):
        await guest_lab.runtime.rollback_disk(DISK, "absent")
    await guest_lab.runtime.delete_disk(DISK)


async def test_a_snapshot_of_a_running_guest_leaves_it_running(guest_lab):
    await guest_lab.boot(VMID)
    await guest_lab.runtime.snapshot_disk(DISK, "live")
    assert (
        guest_lab.ssh(VMID, "sudo sh -c 'echo written >/root/x' && sudo cat /root/x") == "written"
    )
    await guest_lab.destroy(VMID)
    assert not list((guest_lab.directory / "runtime/snapshots").iterdir())


async def test_a_clone_of_a_used_disk_is_another_machine_with_the_same_files(guest_lab):
    await guest_lab.boot(VMID)
    guest_lab.ssh(VMID, "echo mine | sudo tee /root/note >/dev/null")
    clone = dataclasses.replace(guest_lab.config(122), disk_id="vm-122-disk-0")
    await guest_lab.runtime.create_disk("vm-122-disk-0", 2048 * MIB, DISK)
    await guest_lab.runtime.start(clone)
    guest_lab.await_login(122)
    assert guest_lab.ssh(122, "sudo cat /root/note; hostname") == "mine\nguest-122"
    assert _size_mib(guest_lab, 122) > 1900
    keys = {guest_lab.ssh(vmid, "cat /etc/ssh/ssh_host_ed25519_key.pub") for vmid in (VMID, 122)}
    assert len(keys) == 2
    await asyncio.gather(guest_lab.destroy(VMID), guest_lab.destroy(122))


async def test_a_backup_restores_to_another_disk(guest_lab, tmp_path):
    await guest_lab.boot(VMID)
    guest_lab.ssh(VMID, "echo saved | sudo tee /root/note >/dev/null")
    await guest_lab.runtime.export_disk(DISK, tmp_path / "backup.img")
    await guest_lab.destroy(VMID)
    await guest_lab.runtime.import_disk("vm-123-disk-0", tmp_path / "backup.img")
    await guest_lab.runtime.start(guest_lab.config(123))
    guest_lab.await_login(123)
    assert guest_lab.ssh(123, "sudo cat /root/note") == "saved"
    await guest_lab.destroy(123)


async def test_a_disk_in_use_is_not_deleted_and_an_absent_one_is_fine(guest_lab):
    await guest_lab.boot(VMID)
    with pytest.raises(GuestRuntimeError, match="in use"):
        await guest_lab.runtime.delete_disk(DISK)
    image = guest_lab.directory / "runtime/disks" / f"{DISK}.img"
    assert loop_devices(image)
    await guest_lab.destroy(VMID)
    assert not loop_devices(image)
    await guest_lab.runtime.delete_disk(DISK)


async def test_a_disk_name_that_leaves_its_directory_is_refused(guest_lab):
    with pytest.raises(GuestRuntimeError, match="only letters"):
        await guest_lab.runtime.create_disk("../outside", 512 * MIB, None)
