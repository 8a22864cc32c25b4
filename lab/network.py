"""The lab's own network: one namespace, one bridge, and the ways to get inside.

Why: the lab gives addresses, ports and a DNS of its own, and must neither see the machine's
network nor be seen by it. Everything that talks to a guest runs inside the namespace
`infraflows-<instance>`; what a person needs outside is forwarded on purpose.

Promises: `ensure_network` and `remove_network` may be cut off anywhere and called again; removal
ends the processes that still run inside and leaves no namespace, bridge or veth behind.
Refuses: `ip netns exec`. It mounts a new /sys over the old one, and systemd-nspawn then finds no
cgroups; `nsenter --net` changes the network and nothing else. Refuses to remove the network that
the caller itself stands in.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

BRIDGE = "vmbr0"
ADDRESSES = ("10.90.0.1/24", "10.90.0.5/24", "10.90.0.11/24", "10.90.0.12/24", "10.90.0.13/24")
NETNS_DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000
_INSTANCE = re.compile(r"[a-z][a-z0-9-]{0,30}")
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkError(Exception):
    """The lab's network could not be made, entered or removed."""


def network_namespace(instance: str) -> str:
    """The name of the lab's network namespace."""
    if not _INSTANCE.fullmatch(instance):
        raise NetworkError(
            f"Unable to use the lab instance {instance!r}: it is not a name of lower-case letters, "
            "digits and dashes. Set INFRAFLOWS_LAB_INSTANCE to such a name."
        )
    return f"infraflows-{instance}"


def namespace_path(instance: str) -> Path:
    """The file that stands for the namespace."""
    return NETNS_DIRECTORY / network_namespace(instance)


def inside(instance: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the lab's network (for Popen and exec)."""
    return ["nsenter", f"--net={namespace_path(instance)}", "--", *argv]


def run_inside(
    instance: str,
    argv: Sequence[str],
    *,
    check: bool = True,
    input_text: str | None = None,
    timeout_seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in the lab's network."""
    return subprocess.run(
        inside(instance, argv),
        check=check,
        capture_output=True,
        text=True,
        input=input_text,
        timeout=timeout_seconds,
    )


def call_inside(instance: str, work: Callable[[], T]) -> T:
    """Call `work` in a thread that stands in the lab's network, and return what it returns.

    A socket belongs to the namespace in which it was opened, so a process outside can open its
    sockets here (a listener, a client) and use them from any of its threads.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            with namespace_path(instance).open("rb") as namespace:
                if _libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(namespace_path(instance)))
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=enter, name=f"inside-{instance}", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def network_exists(instance: str) -> bool:
    """True when the namespace is there and mounted (a bare file is a creation that was cut off)."""
    return _is_namespace(namespace_path(instance))


def ensure_network(instance: str, addresses: Sequence[str] = ADDRESSES) -> None:
    """Make what is missing of the namespace, its loopback, the bridge and its addresses."""
    if os.geteuid() != 0:
        raise NetworkError(
            "Unable to make the lab's network: this needs root. Run the lab as root."
        )
    path = namespace_path(instance)
    if not _is_namespace(path):
        path.unlink(missing_ok=True)
        _ip("netns", "add", path.name)
    inner = ("-n", path.name)
    _ip(*inner, "link", "set", "lo", "up")
    _ensure_bridge(path.name, BRIDGE)
    for address in addresses:
        _ip(*inner, "address", "replace", address, "dev", BRIDGE)


def ensure_bridge(namespace: str, bridge: str) -> None:
    """A further bridge in the lab's network, e.g. `vmbr0v20` for the guests of one VLAN."""
    _ensure_bridge(namespace, bridge)


def remove_network(instance: str, *, grace_seconds: float = 5.0) -> None:
    """End what still runs inside, then take the namespace away; an absent one is fine."""
    path = namespace_path(instance)
    if not _is_namespace(path):
        path.unlink(missing_ok=True)
        return
    if os.getpid() in processes_inside(instance):
        raise NetworkError(
            f"Unable to remove the lab's network {path.name}: the caller runs inside it. "
            "Call from outside the namespace."
        )
    _end_processes(instance, grace_seconds)
    for link in _links(path.name):
        _ip("-n", path.name, "link", "delete", link, check=False)
    _ip("netns", "delete", path.name, check=False)
    path.unlink(missing_ok=True)


def processes_inside(instance: str) -> list[int]:
    """The processes that stand in the lab's network (guests have namespaces of their own)."""
    try:
        wanted = namespace_path(instance).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = (entry / "ns/net").stat()
            if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.name))
    return found


def _end_processes(instance: str, grace_seconds: float) -> None:
    deadline = time.monotonic() + grace_seconds
    sent: set[int] = set()
    while pids := processes_inside(instance):
        is_late = time.monotonic() >= deadline
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if is_late:
                    os.kill(pid, signal.SIGKILL)
                elif pid not in sent:
                    os.kill(pid, signal.SIGTERM)
        sent.update(pids)
        if time.monotonic() >= deadline + grace_seconds:
            raise NetworkError(
                f"Unable to remove the lab's network: processes {pids} do not end. "
                "Look at them in ps, then try again."
            )
        time.sleep(0.05)


def _is_namespace(path: Path) -> bool:
    try:
        # A mounted namespace lies on nsfs, the file below it on the directory's file system.
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def _ensure_bridge(namespace: str, bridge: str) -> None:
    inner = ("-n", namespace)
    if _ip(*inner, "link", "show", bridge, check=False).returncode != 0:
        # A fixed MAC: left alone, a bridge takes the lowest of its ports' and so changes it
        # whenever a guest comes or goes, and every neighbour's ARP entry goes stale.
        _ip(*inner, "link", "add", bridge, "address", _bridge_mac(namespace, bridge),
            "type", "bridge", "stp_state", "0", "forward_delay", "0", check=False)  # fmt: skip
    # Snooping drops VRRP's multicast when nobody asks for it by IGMP.
    _ip(*inner, "link", "set", bridge, "type", "bridge", "mcast_snooping", "0", check=False)
    _ip(*inner, "link", "set", bridge, "up")


def _bridge_mac(namespace: str, bridge: str) -> str:
    digest = hashlib.sha256(f"{namespace}/{bridge}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _links(namespace: str) -> list[str]:
    listed = _ip("-n", namespace, "-o", "link", "show", check=False).stdout
    names = re.findall(r"^\d+: ([^:@]+)[:@]", listed, re.MULTILINE)
    return [name for name in names if name != "lo"]


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise NetworkError(
            f"Unable to run `ip {' '.join(arguments)}`: {done.stderr.strip()}. "
            "Look whether the lab's network was half removed, then try again."
        )
    return done
