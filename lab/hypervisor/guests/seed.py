"""The cloud-init NoCloud seed of a guest, as Proxmox VE writes it on its cloud-init drive.

Why: the guest's cloud-init is the real one; it must read what it would read at a real site.
Promises: the same configuration gives the same seed, and any change of it a new instance-id, so
cloud-init runs its per-instance parts again exactly when something changed.
Refuses: to write a password; only its hash is ever known here.
"""

from __future__ import annotations

import hashlib
import json

import yaml

from lab.hypervisor.guest_runtime import GuestConfig

INTERFACE = "eth0"


def seed_files(guest: GuestConfig) -> dict[str, str]:
    """The seed's files by name."""
    user_data = "#cloud-config\n" + yaml.safe_dump(_user_data(guest), sort_keys=False)
    network = yaml.safe_dump(_network_config(guest), sort_keys=False)
    digest = hashlib.sha256((user_data + network).encode()).hexdigest()[:16]
    meta_data = {"instance-id": f"{guest.uuid}-{digest}", "local-hostname": guest.name}
    return {
        "meta-data": json.dumps(meta_data) + "\n",
        "user-data": user_data,
        "network-config": network,
    }


def _user_data(guest: GuestConfig) -> dict[str, object]:
    data: dict[str, object] = {"hostname": guest.name, "manage_etc_hosts": True}
    if guest.searchdomain:
        data["fqdn"] = f"{guest.name}.{guest.searchdomain}"
    if guest.user:
        data["user"] = guest.user
        if guest.user == "root":
            data["disable_root"] = False
    if guest.password_hash:
        data["password"] = guest.password_hash
    if guest.ssh_keys:
        data["ssh_authorized_keys"] = list(guest.ssh_keys)
    data["chpasswd"] = {"expire": False}
    data["users"] = ["default"]
    data["package_upgrade"] = False
    return data


def _network_config(guest: GuestConfig) -> dict[str, object]:
    interface: dict[str, object] = {"dhcp4": False, "dhcp6": False}
    if guest.addresses:
        interface["addresses"] = list(guest.addresses)
    if guest.gateway:
        # `gateway4` and `to: default` are not both known to every cloud-init; this route is.
        interface["routes"] = [{"to": "0.0.0.0/0", "via": guest.gateway}]
    if guest.nameservers or guest.searchdomain:
        interface["nameservers"] = {
            "addresses": list(guest.nameservers),
            "search": [guest.searchdomain] if guest.searchdomain else [],
        }
    return {"version": 2, "ethernets": {INTERFACE: interface}}
