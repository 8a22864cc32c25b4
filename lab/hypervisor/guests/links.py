"""A guest's network link: a veth pair between its own network namespace and the lab's bridge.

Why: the far end carries the name that Proxmox VE gives it (`tap101i0`), so that a person finds it
and a fault can cut it; the near end is `eth0` with the MAC that the API promised.

Promises: deleting is synchronous and an absent link is fine.
Refuses: to leave a dead guest's link for reuse. A TCP socket that waits for its last
acknowledgement keeps the dead network namespace alive, and that one would go on answering.
"""

from __future__ import annotations

import subprocess

from lab.network import NetworkError


def port_name(vmid: int) -> str:
    """The name of the bridge's end of the guest's first interface."""
    return f"tap{vmid}i0"


def bridge_name(bridge: str, vlan: int | None) -> str:
    """One bridge per VLAN, as Proxmox VE makes on a bridge that is not VLAN-aware."""
    return bridge if vlan is None else f"{bridge}v{vlan}"


def attach_link(namespace: str, vmid: int, bridge: str, mac: str) -> None:
    """Make the pair; called from inside the guest's network namespace."""
    port = port_name(vmid)
    detach_link(namespace, vmid)
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "eth0", "address", mac, "type", "veth",
        "peer", "name", port, "netns", namespace)  # fmt: skip
    _ip("-n", namespace, "link", "set", port, "master", bridge, "up")


def detach_link(namespace: str, vmid: int) -> None:
    """Take the pair away (both ends go together)."""
    subprocess.run(
        ["ip", "-n", namespace, "link", "delete", port_name(vmid)], check=False, capture_output=True
    )


def set_link(namespace: str, vmid: int, *, is_up: bool) -> None:
    """Plug or pull the cable."""
    _ip("-n", namespace, "link", "set", port_name(vmid), "up" if is_up else "down")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NetworkError(
            f"Unable to run `ip {' '.join(arguments)}`: {done.stderr.strip()}. "
            "Look whether the lab's network is up."
        )
