"""What the guest agent answers, taken from the guest itself.

Why: a real template carries qemu-guest-agent, which talks over a virtio port that a container does
not have. Here the host enters the guest's namespaces and control group and does the agent's acts
there: same processes, same files, same addresses.

Promises: answers only once the guest's message bus is up (an agent does not answer before that),
and says so while a guest stands still instead of waiting for ever. A cancelled command is killed
with all that it started.
Refuses: to read files by the host's paths, where a link inside the guest would lead outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.guests.cgroups import hierarchies, joining

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
}


def is_agent_up(init_pid: int) -> bool:
    """True once the guest has come as far as an agent's service would."""
    return Path(f"/proc/{init_pid}/root/run/dbus/system_bus_socket").exists()


async def run_in_guest(
    init_pid: int, argv: Sequence[str], input_data: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Run a command as root inside: (exit code, stdout, stderr)."""
    enter = ["nsenter", f"--target={init_pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
    enter += ["--cgroup", "--root", "--wd", "--", *argv]
    process = await asyncio.create_subprocess_exec(
        *joining(_groups_of(init_pid), enter),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    try:
        stdout, stderr = await process.communicate(input_data)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode or 0, stdout, stderr


async def read_guest_file(init_pid: int, path: str) -> bytes:
    """The content of a file inside."""
    code, stdout, stderr = await run_in_guest(init_pid, ["cat", "--", path])
    if code != 0:
        _raise_for_file("read", path, stderr)
    return stdout


async def write_guest_file(init_pid: int, path: str, content: bytes) -> None:
    """Write a file inside."""
    command = ["sh", "-c", 'cat >"$1"', "write", path]
    code, _, stderr = await run_in_guest(init_pid, command, content)
    if code != 0:
        _raise_for_file("write", path, stderr)


async def guest_interfaces(init_pid: int) -> list[dict[str, object]]:
    """The `result` of network-get-interfaces."""
    process = await asyncio.create_subprocess_exec(
        "nsenter", f"--net=/proc/{init_pid}/ns/net", "--",
        "ip", "-json", "-statistics", "address", "show",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stdout, stderr = await process.communicate()
    if process.returncode != 0:
        raise GuestRuntimeError(
            f"Unable to list the guest's interfaces: {stderr.decode().strip()}. "
            "The guest may just have ended: look at its state."
        )
    return [_interface(link) for link in json.loads(stdout) if link]


def _interface(link: dict[str, object]) -> dict[str, object]:
    described: dict[str, object] = {
        "name": link["ifname"],
        "hardware-address": link.get("address", "00:00:00:00:00:00"),
    }
    addresses = link.get("addr_info")
    if isinstance(addresses, list) and addresses:
        described["ip-addresses"] = [
            {
                "ip-address": address["local"],
                "ip-address-type": "ipv6" if address["family"] == "inet6" else "ipv4",
                "prefix": address["prefixlen"],
            }
            for address in addresses
        ]
    counters = link.get("stats64")
    if isinstance(counters, dict):
        described["statistics"] = {
            f"{way}-{ours}": counters[way][theirs]
            for way in ("rx", "tx")
            for ours, theirs in (
                ("bytes", "bytes"),
                ("packets", "packets"),
                ("errs", "errors"),
                ("dropped", "dropped"),
            )
        }
    return described


def _groups_of(init_pid: int) -> list[str]:
    """The control groups of the guest's init: a command inside is charged to the guest."""
    paths: dict[frozenset[str], str] = {}
    for line in Path(f"/proc/{init_pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        paths[frozenset(names.split(",")) if names else frozenset()] = path
    files = []
    for hierarchy in hierarchies():
        key = frozenset() if hierarchy.is_v2 else hierarchy.controllers
        if key in paths:
            files.append(str(hierarchy.root / paths[key].lstrip("/") / "cgroup.procs"))
    return files


def _raise_for_file(act: str, path: str, stderr: bytes) -> None:
    cause = stderr.decode(errors="replace").strip().rpartition(": ")[2]
    if cause in ("No such file or directory", "nonexistent directory") or cause.endswith(
        "nonexistent"
    ):
        raise FileNotFoundError(2, "No such file or directory", path)
    raise GuestRuntimeError(
        f"Unable to {act} {path} in the guest: {cause}. Look at the file inside the guest."
    )
