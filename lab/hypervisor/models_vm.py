"""A virtual machine's record, and the small languages inside its configuration values.

Why: `net0`, `scsi0`, `ipconfig0` and their like are texts with a grammar. They are read here once,
and a guest's real hardware and cloud-init answers are derived from them alone.

Promises: what the guest gets is what the configuration says; nothing else reaches it.
Refuses: to start a machine that a guest cannot be made of (no disk, no network) by name.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

from lab.hypervisor.exceptions import ApiError, NotSimulated
from lab.hypervisor.guest_runtime import GuestConfig
from lab.hypervisor.parameters import split_list
from lab.hypervisor.vm_schema import is_drive

Config = dict[str, Any]
UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
NETWORK_MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3")
HIDDEN = "**********"


@dataclass
class VirtualMachine:
    """One machine: where it is, what it is, what waits for its next start, its snapshots."""

    vmid: int
    node: str
    config: Config
    pending: dict[str, Any] = field(default_factory=dict)  # None: the key is to be deleted
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    parent: str | None = None

    def document(self) -> dict[str, Any]:
        """What is stored."""
        return asdict(self)

    @property
    def name(self) -> str:
        """The name, or Proxmox's stand-in for a machine without one."""
        return str(self.config.get("name", f"VM{self.vmid}"))

    @property
    def is_template(self) -> bool:
        """A template can be cloned, never started."""
        return bool(self.config.get("template"))

    @property
    def has_agent(self) -> bool:
        """True when the configuration switches the guest agent on."""
        first = str(self.config.get("agent", "0")).partition(",")[0]
        return first in ("1", "enabled=1")

    @property
    def cpus(self) -> int:
        """Virtual CPUs."""
        return int(self.config.get("cores", 1)) * int(self.config.get("sockets", 1))

    @property
    def memory_mib(self) -> int:
        """Memory in MiB."""
        return int(str(self.config.get("memory", "512")).removeprefix("current="))

    def digest(self) -> str:
        """The SHA-1 that guards against lost updates."""
        text = "\n".join(f"{key}: {value}" for key, value in sorted(self.config.items()))
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def with_pending(self) -> Config:
        """The configuration as it will be at the next start."""
        merged = {**self.config, **self.pending}
        return {key: value for key, value in merged.items() if value is not None}

    def apply_pending(self) -> None:
        """The machine is stopped: what waited becomes true."""
        self.config = self.with_pending()
        self.pending = {}

    def drives(self) -> dict[str, str]:
        """Drive keys and their volume ids, without empty CD-ROMs."""
        return {
            key: drive_volume(str(value))
            for key, value in self.config.items()
            if is_drive(key) and not str(value).startswith("none")
        }

    def boot_drive(self) -> str | None:
        """The key of the disk that the machine boots from."""
        order = split_list(str(self.config.get("boot", "")).removeprefix("order="))
        order += [str(self.config.get("bootdisk", "")), *sorted(self.drives())]
        for key in order:
            value = str(self.config.get(key, ""))
            if is_drive(key) and value and "media=cdrom" not in value:
                return key
        return None


def split_options(text: str, first: str) -> dict[str, str]:
    """`a,b=c` as {first: a, b: c}; the first part may also be spelt `first=a`."""
    options: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            key, value = first, part
        options[key] = value
    return options


def drive_volume(text: str) -> str:
    """The volume id of a drive's value."""
    return split_options(text, "file").get("file", "none")


def format_drive(options: dict[str, str]) -> str:
    """A drive's value as Proxmox writes it: the volume first, then options by name."""
    rest = sorted((key, value) for key, value in options.items() if key != "file")
    return ",".join([options["file"], *(f"{key}={value}" for key, value in rest)])


def parse_size(text: str) -> int:
    """Bytes of `10G`, `512M` or plain bytes."""
    unit = text[-1:].upper()
    amount = text[:-1] if unit in UNITS else text
    try:
        return int(float(amount) * UNITS.get(unit, 1))
    except ValueError:
        raise ApiError(f"unable to parse size '{text}'", status=400) from None


def format_size(size_bytes: int) -> str:
    """The largest unit that divides the size, as Proxmox writes it."""
    for unit in ("T", "G", "M", "K"):
        if size_bytes and size_bytes % UNITS[unit] == 0:
            return f"{size_bytes // UNITS[unit]}{unit}"
    return str(size_bytes)


def new_mac() -> str:
    """An address with Proxmox's own prefix."""
    tail = secrets.token_bytes(3)
    return "BC:24:11:" + ":".join(f"{octet:02X}" for octet in tail)


def parse_network(text: str) -> dict[str, str]:
    """A network device as {model, macaddr, bridge, ...}; a missing address is made up."""
    options = split_options(text, "model")
    for model in NETWORK_MODELS:
        if model in options:  # the form that Proxmox stores: virtio=MAC
            options["model"], options["macaddr"] = model, options.pop(model)
    if options.get("model") not in NETWORK_MODELS:
        raise ApiError(f"unable to parse network options '{text}'", status=400)
    options["macaddr"] = options.get("macaddr", new_mac()).upper()
    return options


def format_network(options: dict[str, str]) -> str:
    """A network device as Proxmox stores it."""
    head = f"{options['model']}={options['macaddr']}"
    rest = sorted((k, v) for k, v in options.items() if k not in ("model", "macaddr"))
    return ",".join([head, *(f"{key}={value}" for key, value in rest)])


def new_identity(config: Config) -> None:
    """Give a configuration its own UUIDs, keeping the rest of its SMBIOS values."""
    smbios = split_options(str(config.get("smbios1", "")), "uuid")
    smbios["uuid"] = str(uuid.uuid4())
    config["smbios1"] = ",".join(f"{key}={value}" for key, value in smbios.items())
    config["vmgenid"] = str(uuid.uuid4())


def visible(config: Config) -> Config:
    """A configuration for the eye: a password is never shown, not even as a hash."""
    shown = dict(config)
    if "cipassword" in shown:
        shown["cipassword"] = HIDDEN
    return shown


def guest_config(vm: VirtualMachine, disk_id: str) -> GuestConfig:
    """What the guest runtime is given to boot this machine."""
    config = vm.config
    if "net0" not in config:
        raise NotSimulated(f"Starting VM {vm.vmid} without a network device net0")
    network = parse_network(str(config["net0"]))
    addressing = split_options(str(config.get("ipconfig0", "")), "ip")
    addresses = [addressing[key] for key in ("ip", "ip6") if key in addressing]
    if unsupported := [text for text in addresses if "/" not in text]:
        raise NotSimulated(f"Address configuration '{unsupported[0]}' of VM {vm.vmid}")
    keys = unquote(str(config.get("sshkeys", ""))).splitlines()
    smbios = split_options(str(config.get("smbios1", "")), "uuid")
    return GuestConfig(
        vmid=vm.vmid,
        name=vm.name,
        uuid=smbios.get("uuid", str(uuid.UUID(int=vm.vmid))),
        disk_id=disk_id,
        cores=vm.cpus,
        memory_mib=vm.memory_mib,
        mac=network["macaddr"],
        bridge=network.get("bridge", "vmbr0"),
        vlan=int(network["tag"]) if "tag" in network else None,
        user=config.get("ciuser"),
        ssh_keys=tuple(key for key in keys if key.strip()),
        addresses=tuple(addresses),
        gateway=addressing.get("gw"),
        nameservers=tuple(split_list(config.get("nameserver"))),
        searchdomain=config.get("searchdomain"),
        agent_enabled=vm.has_agent,
        password_hash=config.get("cipassword"),
    )
