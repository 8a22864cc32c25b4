"""Changing a machine's configuration: PUT and POST .../config, and the drives that come with it.

Why: the provider configures a clone with one big PUT; every rule that a real cluster applies to it
(types, privileges, digest, drives that appear and disappear, what waits for a stop) is here.

Promises: everything is checked before anything changes. `delete=` of an absent key succeeds.
"""

from __future__ import annotations

import crypt
import re
from typing import Any

from lab.hypervisor.exceptions import ApiError, ParameterError
from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.models_access import Token, require
from lab.hypervisor.models_storage import CLOUDINIT_BYTES, GIB
from lab.hypervisor.models_vm import (
    HIDDEN,
    VirtualMachine,
    drive_volume,
    format_drive,
    format_network,
    format_size,
    parse_network,
    split_options,
)
from lab.hypervisor.parameters import split_list
from lab.hypervisor.vm_schema import is_drive, is_immediate, is_known, privilege

Changes = dict[str, Any]


def check(
    hypervisor: Hypervisor, token: Token, vmid: int, changes: Changes, pool: str | None
) -> None:
    """Refuse keys that the token may not change, and storages that it may not use."""
    for key, value in changes.items():
        text = None if value is None else str(value)
        wanted = privilege(key, text)
        if wanted is None:
            raise ApiError(f"only root can set '{key}' config")
        require(token, f"/vms/{vmid}", wanted, pool)
        if text is None or not is_drive(key):
            continue
        storage, separator, name = drive_volume(text).partition(":")
        if separator:
            hypervisor.storage.storage(storage)
            if name == "cloudinit" or re.fullmatch(r"[\d.]+", name):
                require(token, f"/storage/{storage}", "Datastore.AllocateSpace", pool)


def read_deletions(text: str | None) -> list[str]:
    """The keys of `delete=`; a name that Proxmox does not know is refused."""
    keys = split_list(text)
    if unknown := [key for key in keys if not is_known(key)]:
        raise ParameterError({"delete": f"unknown setting '{unknown[0]}'"})
    return keys


def check_digest(vm: VirtualMachine, digest: str | None) -> None:
    """Refuse when somebody else changed the configuration since it was read."""
    if digest is not None and digest != vm.digest():
        raise ApiError("detected modified configuration - file changed by other user? Try again.")


async def update(
    hypervisor: Hypervisor, vm: VirtualMachine, changes: Changes, deletions: list[str]
) -> None:
    """Apply changes that were checked; the caller holds the machine's lock."""
    is_running = await hypervisor.state(vm) != "stopped"
    for key in deletions:
        if key not in changes:
            await delete_key(hypervisor, vm, key, is_running)
    for key, value in changes.items():
        stored = await _prepare(hypervisor, vm, key, value)
        if is_running and not is_immediate(key):
            if vm.config.get(key) == stored:
                vm.pending.pop(key, None)
            else:
                vm.pending[key] = stored
        else:
            vm.config[key] = stored
            vm.pending.pop(key, None)
    hypervisor.save(vm)


async def delete_key(
    hypervisor: Hypervisor, vm: VirtualMachine, key: str, is_running: bool
) -> None:
    """Take a key out; a disk's volume stays as `unusedN`, an unused one's is destroyed."""
    vm.pending.pop(key, None)
    if key not in vm.config:
        return
    if key == "protection" or not vm.config.get("protection"):
        pass
    elif is_drive(key) or key.startswith("unused"):
        raise ApiError(f"can't remove VM {vm.vmid} disk '{key}' - protection mode enabled")
    if is_running and not is_immediate(key):
        vm.pending[key] = None
        return
    value = str(vm.config.pop(key))
    volume = hypervisor.storage.find(drive_volume(value)) if _holds_volume(key) else None
    if volume is None:
        return
    if key.startswith("unused") or "media=cdrom" in value:
        await hypervisor.free_volume(volume)
    else:
        number = next(n for n in range(256) if f"unused{n}" not in vm.config)
        vm.config[f"unused{number}"] = volume.volid


def _holds_volume(key: str) -> bool:
    return is_drive(key) or key.startswith("unused")


async def _prepare(hypervisor: Hypervisor, vm: VirtualMachine, key: str, value: Any) -> Any:
    if re.fullmatch(r"net\d+", key):
        return format_network(_keep_mac(vm, key, str(value)))
    if is_drive(key):
        return await _drive(hypervisor, vm, key, str(value))
    if key == "cipassword":
        if value == HIDDEN:
            return vm.config.get("cipassword")
        return crypt.crypt(str(value), crypt.METHOD_SHA256)
    if key == "sshkeys" and not re.fullmatch(r"(%[0-9a-fA-F]{2}|[-+/_.~\w])*", str(value)):
        raise ParameterError(
            {"sshkeys": "invalid format - invalid urlencoded string: " + str(value)[:20]}
        )
    return value


def _keep_mac(vm: VirtualMachine, key: str, text: str) -> dict[str, str]:
    """A device that is written again without its address gets a new one, as on Proxmox."""
    network = parse_network(text)
    if not re.fullmatch(r"([0-9A-F]{2}:){5}[0-9A-F]{2}", network["macaddr"]):
        raise ParameterError(
            {key: f"invalid format - macaddr: '{network['macaddr']}' of VM {vm.vmid}"}
        )
    return network


async def _drive(hypervisor: Hypervisor, vm: VirtualMachine, key: str, text: str) -> str:
    options = split_options(text, "file")
    if "file" not in options:
        raise ParameterError({key: "invalid format - file: property is missing"})
    if "import-from" in options:
        raise ApiError(
            "Drive option 'import-from' is not simulated by the lab's hypervisor", status=501
        )
    storage, separator, name = options["file"].partition(":")
    if options["file"] in ("none", "cdrom"):
        return format_drive(options)
    if not separator:
        raise ParameterError(
            {key: f"invalid format - unable to parse volume ID '{options['file']}'"}
        )
    if name == "cloudinit":
        return await _cloudinit_drive(hypervisor, vm, storage)
    options.pop("format", None)
    if re.fullmatch(r"\d+(\.\d+)?", name):
        await _detach_previous(hypervisor, vm, key)
        size = int(float(name) * GIB)
        volume = hypervisor.storage.allocate(storage, vm.node, vm.vmid, size)
        if volume.disk_id is not None:
            await hypervisor.runtime.create_disk(volume.disk_id, size, None)
        return format_drive({**options, "file": volume.volid, "size": format_size(size)})
    known = hypervisor.storage.find(options["file"], vm.node)
    if known is None:
        raise ApiError(f"volume '{options['file']}' does not exist")
    if drive_volume(str(vm.config.get(key, "none"))) != known.volid:
        await _detach_previous(hypervisor, vm, key)
    for other in [k for k, v in vm.config.items() if k.startswith("unused") and v == known.volid]:
        del vm.config[other]
    return format_drive({**options, "size": format_size(known.size)})


async def _detach_previous(hypervisor: Hypervisor, vm: VirtualMachine, key: str) -> None:
    if key in vm.config:
        await delete_key(hypervisor, vm, key, is_running=False)


async def _cloudinit_drive(hypervisor: Hypervisor, vm: VirtualMachine, storage: str) -> str:
    name = f"vm-{vm.vmid}-cloudinit"
    volume = hypervisor.storage.find(f"{storage}:{name}", vm.node)
    if volume is None:
        volume = hypervisor.storage.allocate(storage, vm.node, vm.vmid, CLOUDINIT_BYTES, name=name)
    options = {"file": volume.volid, "media": "cdrom", "size": format_size(CLOUDINIT_BYTES)}
    return format_drive(options)


async def resize(hypervisor: Hypervisor, vm: VirtualMachine, disk: str, size: int) -> None:
    """Grow a disk to `size` bytes; the caller holds the machine's lock."""
    options = split_options(str(vm.config[disk]), "file")
    volume = hypervisor.storage.find(options["file"], vm.node)
    if volume is None:
        raise ApiError(f"volume '{options['file']}' does not exist")
    if size < volume.size:
        raise ApiError("shrinking disks is not supported")
    if size > volume.size:
        hypervisor.storage.resize(volume, size, vm.node)
    if volume.disk_id is not None:
        await hypervisor.runtime.resize_disk(volume.disk_id, size)
    vm.config[disk] = format_drive({**options, "size": format_size(size)})
    hypervisor.save(vm)
