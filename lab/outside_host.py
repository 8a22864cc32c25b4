"""The host outside the clusters whose NGINX answers some of the applications' names.

    python -m lab.outside_host

Why it exists: a site has such a host from its administrators, and the product is told its address
only. Promises a real machine of the lab's own hypervisor, made as an administrator makes one: it
trusts OpenBao's SSH CA, its NGINX runs, and its host key, read through the guest agent, lies in
OpenBao. What is there already is left as it is. Refuses to be part of `infraflows-lab up`: the lab
does without it, and then `outside_address` is empty.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab.holdings import ProxmoxAdmin, ProxmoxRefused
from lab.layout import ENVIRONMENT, GATEWAY, PREFIX_LENGTH, ZONE, Layout
from lab.services.files import write_atomically
from lab.services.openbao_setup import KV_MOUNT, SSH_MOUNT, root_client

ADDRESS = "10.90.0.6"
VM_ID = 9100
NAME = "outside"
NODE = "pve1"
TEMPLATE = 9000
USER = "infraflows"
HOST_KEYS_PATH = f"infraflows/{ENVIRONMENT}/outside-hosts"
HOST_KEY_FILE = "/etc/ssh/ssh_host_ed25519_key.pub"
DEADLINE_SECONDS = 180.0
# The distribution's own site answers every name on port 80, which nobody asked for.
START_NGINX = "rm -f /etc/nginx/sites-enabled/default && systemctl enable --now nginx.service"


def ensure_outside_host(layout: Layout) -> str:
    """Make the machine if there is none, and tell OpenBao its key; returns its address."""
    proxmox = ProxmoxAdmin(layout)
    machine = f"/nodes/{NODE}/qemu/{VM_ID}"
    try:
        proxmox.call("GET", f"{machine}/config")
    except ProxmoxRefused:
        _clone(layout, proxmox, machine)
    if proxmox.call("GET", f"{machine}/status/current")["status"] != "running":
        _wait(proxmox, proxmox.call("POST", f"{machine}/status/start"))
    key = _prepared(proxmox, machine)
    path = f"{KV_MOUNT}/data/{HOST_KEYS_PATH}"
    root_client(layout).call("POST", path, {"data": {ADDRESS: key}})
    write_atomically(_marker(layout), ADDRESS)
    return ADDRESS


def outside_address(layout: Layout) -> str:
    """Return the machine's address for the site's file; empty while the lab has none."""
    try:
        return _marker(layout).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def _marker(layout: Layout) -> Path:
    return layout.home / "outside-host"


def _clone(layout: Layout, proxmox: ProxmoxAdmin, machine: str) -> None:
    ca = root_client(layout).call("GET", f"{SSH_MOUNT}/config/ca")["data"]["public_key"].strip()
    trusted = f'cert-authority,principals="{USER}" {ca} infraflows-ca'
    source = f"/nodes/{NODE}/qemu/{TEMPLATE}/clone"
    _wait(proxmox, proxmox.call("POST", source, newid=VM_ID, name=NAME, full=1))
    proxmox.call(
        "PUT",
        f"{machine}/config",
        cores=1,
        memory=512,
        ciuser=USER,
        sshkeys=quote(trusted, safe=""),
        ipconfig0=f"ip={ADDRESS}/{PREFIX_LENGTH},gw={GATEWAY}",
        nameserver=GATEWAY,
        searchdomain=ZONE,
        onboot=1,
    )


def _prepared(proxmox: ProxmoxAdmin, machine: str) -> str:
    """Start NGINX through the guest agent; returns the public host key."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            _run(proxmox, machine, "cloud-init status --wait >/dev/null; " + START_NGINX)
            found = proxmox.call("GET", f"{machine}/agent/file-read", file=HOST_KEY_FILE)
            return " ".join(str(found["content"]).split()[:2])
        except (ProxmoxRefused, ValueError):
            # Its init runs, its agent or its host key not yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _run(proxmox: ProxmoxAdmin, machine: str, script: str) -> None:
    begun = proxmox.call("POST", f"{machine}/agent/exec", command=["sh", "-c", script])
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        state: dict[str, Any] = proxmox.call(
            "GET", f"{machine}/agent/exec-status", pid=begun["pid"]
        )
        if state.get("exited"):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"Unable to prepare {NAME}: no end. Look at the machine.")
        time.sleep(0.3)
    if state.get("exitcode"):
        words = str(state.get("err-data") or "no message").strip()
        raise ValueError(f"Unable to prepare {NAME}: {words}. Look at the machine.")


def _wait(proxmox: ProxmoxAdmin, task: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    path = f"/nodes/{NODE}/tasks/{quote(task, safe='')}/status"
    while (state := proxmox.call("GET", path))["status"] != "stopped":
        if time.monotonic() > deadline:
            raise TimeoutError(f"Unable to wait for {task}: no end. Look at its log.")
        time.sleep(0.3)
    if state["exitstatus"] != "OK":
        raise ProxmoxRefused(f"{task}: {state['exitstatus']}")


def main() -> None:
    """Make it, and say what comes next."""
    address = ensure_outside_host(Layout.from_environment())
    print(f"The NGINX outside the clusters is {address}. Now write the site's file and set it up.")


if __name__ == "__main__":
    main()
