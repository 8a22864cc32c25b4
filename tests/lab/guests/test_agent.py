"""The agent's answers come from the guest itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

pytestmark = pytest.mark.lab
VMID = 131


@pytest_asyncio.fixture
async def guest(guest_lab) -> AsyncIterator[int]:
    """A running guest."""
    await guest_lab.boot(VMID)
    yield VMID
    await guest_lab.destroy(VMID)


async def test_interfaces_show_the_promised_mac_and_address(guest_lab, guest):
    listed = {entry["name"]: entry for entry in await guest_lab.runtime.interfaces(guest)}
    assert set(listed) == {"lo", "eth0"}
    assert listed["eth0"]["hardware-address"] == "bc:24:11:00:00:83"
    assert {"ip-address": "10.90.0.131", "ip-address-type": "ipv4", "prefix": 24} in listed["eth0"][
        "ip-addresses"
    ]
    assert listed["eth0"]["statistics"]["rx-bytes"] > 0


async def test_a_command_runs_inside_with_input_output_and_exit_code(guest_lab, guest):
    code, stdout, stderr = await guest_lab.runtime.execute(
        guest, ["sh", "-c", "hostname; cat; echo bad >&2; exit 3"], b"given\n"
    )
    assert (code, stdout, stderr) == (3, b"guest-131\ngiven\n", b"bad\n")


async def test_a_command_inside_counts_as_the_guests(guest_lab, guest):
    _, stdout, _ = await guest_lab.runtime.execute(guest, ["cat", "/proc/self/cgroup"], b"")
    _, pid_one, _ = await guest_lab.runtime.execute(guest, ["cat", "/proc/1/cgroup"], b"")
    assert sorted(stdout.splitlines()) == sorted(pid_one.splitlines())


async def test_a_cancelled_command_ends_inside_too(guest_lab, guest):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(guest_lab.runtime.execute(guest, ["sleep", "4321"], b""), 1)
    await asyncio.sleep(0.3)
    code, _, _ = await guest_lab.runtime.execute(
        guest, ["pgrep", "-x", "-r", "R,S,D", "sleep"], b""
    )
    assert code == 1


async def test_files_are_read_and_written_inside_not_on_the_host(guest_lab, guest):
    await guest_lab.runtime.write_file(guest, "/root/note", b"\x00binary\xff")
    guest_lab.ssh(guest, "sudo ln -s /root/note /tmp/link")
    assert await guest_lab.runtime.read_file(guest, "/tmp/link") == b"\x00binary\xff"
    key = await guest_lab.runtime.read_file(guest, "/etc/ssh/ssh_host_ed25519_key.pub")
    assert key.decode().split()[1] in guest_lab.ssh(guest, "cat /etc/ssh/ssh_host_ed25519_key.pub")
    with pytest.raises(FileNotFoundError):
        await guest_lab.runtime.read_file(guest, "/root/absent")
    with pytest.raises(FileNotFoundError):
        await guest_lab.runtime.write_file(guest, "/absent/note", b"")


async def test_the_memory_cap_is_visible_and_enforced(guest_lab, guest):
    limit_bytes = str(512 * 1024 * 1024)
    _, shown, _ = await guest_lab.runtime.execute(
        guest,
        ["sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/../memory.max"
         " 2>/dev/null || cat /sys/fs/cgroup/memory.max"],
        b"",
    )  # fmt: skip
    assert limit_bytes in shown.decode()
    eater = "import sys; block = b'x' * (900 * 1024 * 1024); print(len(block))"
    assert guest_lab.ssh(guest, f'python3 -c "{eater}" 2>/dev/null', check=False) == ""
    assert guest_lab.can_log_in(guest)


async def test_usage_tells_what_the_guest_takes(guest_lab, guest):
    first = await guest_lab.runtime.usage(guest)
    assert 5 * 1024**2 < first.memory_bytes < 512 * 1024**2
    assert 0 < first.uptime_seconds < 300
    guest_lab.ssh(guest, "timeout 0.5 sh -c 'while :; do :; done'", check=False)
    second = await guest_lab.runtime.usage(guest)
    assert second.cpu_seconds > first.cpu_seconds


async def test_the_guest_has_what_the_roles_need_of_a_network_stack(guest_lab, guest):
    guest_lab.ssh(guest, "sudo sysctl -qw net.ipv4.ip_nonlocal_bind=1")
    guest_lab.ssh(guest, "sudo nft add table inet filter && sudo nft list table inet filter")
    configuration = (
        "vrrp_instance api {\\n interface eth0\\n virtual_router_id 51\\n priority 100\\n"
        " virtual_ipaddress {\\n 10.90.0.250/24\\n }\\n}\\n"
    )
    guest_lab.ssh(guest, f"printf '{configuration}' | sudo tee /etc/keepalived/keepalived.conf")
    guest_lab.ssh(guest, "sudo systemctl start keepalived")
    for _ in range(100):
        if "10.90.0.250" in guest_lab.ssh(guest, "ip -4 address show eth0"):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("keepalived never took the virtual address")
