"""The configuration keys of a machine: their types, their privileges, and what waits for a stop.

Why: the provider refuses a reply whose numbers are strings, a real cluster refuses a key that the
token may not change, and a running machine takes some changes only at its next start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lab.hypervisor.parameters import (
    DNS_NAME,
    Param,
    Schema,
    boolean,
    integer,
    number,
    string,
)

DISK_INDEXES = {"ide": 4, "sata": 6, "scsi": 31, "virtio": 16}
INDEXES = {**DISK_INDEXES, "net": 32, "ipconfig": 32, "unused": 256, "serial": 4}
_DRIVE = re.compile(r"(ide|sata|scsi|virtio)\d+")

_WINDOWS = ("wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11")
OS_TYPES = ("other", *_WINDOWS, "l24", "l26", "solaris")
CONFIG: Mapping[str, Param] = {
    "acpi": boolean(),
    "agent": string(),
    "autostart": boolean(),
    "balloon": integer(0),
    "bios": string(choices=("seabios", "ovmf")),
    "boot": string(),
    "bootdisk": string(pattern=r"(ide|sata|scsi|virtio)\d+"),
    "cipassword": string(),
    "citype": string(choices=("configdrive2", "nocloud", "opennebula")),
    "ciupgrade": boolean(),
    "ciuser": string(),
    "cores": integer(1),
    "cpu": string(),
    "cpulimit": number(0, 128),
    "cpuunits": integer(1, 262144),
    "description": string(max_length=8192),
    "freeze": boolean(),
    "hotplug": string(),
    "ide[n]": string(),
    "ipconfig[n]": string(),
    "keyboard": string(),
    "kvm": boolean(),
    "localtime": boolean(),
    "lock": string(),
    "machine": string(),
    "memory": string(pattern=r"(current=)?[1-9]\d*"),
    "name": DNS_NAME,
    "nameserver": string(),
    "net[n]": string(),
    "numa": boolean(),
    "onboot": boolean(),
    "ostype": string(choices=OS_TYPES),
    "protection": boolean(),
    "reboot": boolean(),
    "rng0": string(),
    "sata[n]": string(),
    "scsi[n]": string(),
    "scsihw": string(
        choices=("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi")
    ),
    "searchdomain": string(),
    "serial[n]": string(pattern=r"(/dev/.+|socket)"),
    "shares": integer(0, 50000),
    "smbios1": string(max_length=512),
    "sockets": integer(1),
    "sshkeys": string(),
    "startdate": string(),
    "startup": string(),
    "tablet": boolean(),
    "tags": string(pattern=r"([a-z0-9_][a-z0-9_\-+.]*([;, ]+[a-z0-9_][a-z0-9_\-+.]*)*)?[;, ]*"),
    "tdf": boolean(),
    "template": boolean(),
    "unused[n]": string(),
    "vcpus": integer(1),
    "vga": string(),
    "virtio[n]": string(),
    "vmgenid": string(),
    "watchdog": string(),
}
SCHEMA = Schema(CONFIG, INDEXES)

# Real keys that change what a guest is in ways nspawn cannot follow: refused by name with 501.
UNSIMULATED = re.compile(
    r"(affinity|allow-ksm|amd-sev|arch|args|audio0|cdrom|cicustom|efidisk0|hookscript|hugepages"
    r"|hostpci\d+|ivshmem|keephugepages|migrate_(downtime|speed)|numa\d+|parallel\d+"
    r"|spice_enhancements|tpmstate0|usb\d+|virtiofs\d+|vmstatestorage|import-working-storage)"
)

# A running machine takes these at once; everything else waits until it was stopped.
_IMMEDIATE = re.compile(
    r"(name|onboot|shares|startup|description|protection|tags|lock|template|vmgenid|hotplug"
    r"|ci(user|password|type|upgrade)|sshkeys|nameserver|searchdomain|ipconfig\d+|cpulimit|cpuunits"
    r"|(ide|sata|scsi|virtio|net|unused)\d+)"
)

_PRIVILEGES: tuple[tuple[str, str], ...] = (
    (r"(cores|sockets|cpu|vcpus|cpulimit|cpuunits|numa)", "VM.Config.CPU"),
    (r"(memory|balloon|shares)", "VM.Config.Memory"),
    (r"(net\d+)", "VM.Config.Network"),
    (
        r"(ci(user|password|type)|sshkeys|nameserver|searchdomain|ipconfig\d+)",
        "VM.Config.Network|VM.Config.Cloudinit",
    ),
    (r"((ide|sata|scsi|virtio|unused)\d+|bootdisk)", "VM.Config.Disk"),
    (r"(bios|machine|scsihw|vga|keyboard|kvm|acpi|tablet|watchdog|rng0)", "VM.Config.HWType"),
    (r"(serial\d+|tdf|localtime|smbios1|vmgenid)", "VM.Config.HWType"),
    (
        r"(agent|autostart|boot|description|freeze|hotplug|name|onboot|ostype|protection|reboot"
        r"|startdate|startup|tags|template)",
        "VM.Config.Options",
    ),
)


def is_drive(key: str) -> bool:
    """True for ide0, sata0, scsi0, virtio0 and their like."""
    return _DRIVE.fullmatch(key) is not None


def is_immediate(key: str) -> bool:
    """True when a running machine takes a change of this key at once."""
    return _IMMEDIATE.fullmatch(key) is not None


def privilege(key: str, value: str | None) -> str | None:
    """The privilege that changing a key needs; None when only root@pam may."""
    if is_drive(key) and value is not None and "media=cdrom" in value:
        return "VM.Config.CDROM"
    if is_drive(key) and value is not None and value.partition(",")[0].endswith(":cloudinit"):
        return "VM.Config.CDROM|VM.Config.Cloudinit"
    for pattern, wanted in _PRIVILEGES:
        if re.fullmatch(pattern, key):
            return wanted
    return None


def is_known(key: str) -> bool:
    """True for every key that Proxmox knows, simulated or not (for `delete=`)."""
    return SCHEMA.find(key) is not None or UNSIMULATED.fullmatch(key) is not None
