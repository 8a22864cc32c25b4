"""Storages and their volumes, with honest book-keeping of space.

Why: "storage full" is the commonest failure of a clone; here a volume is counted with its whole
size when it is made, as thick-provisioned storage does, and refused when it does not fit.

Promises: `allocate` either records a volume or raises in Proxmox's words and records nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from lab.hypervisor.exceptions import ApiError
from lab.hypervisor.faults import Faults
from lab.hypervisor.store import Store

GIB = 1024**3
CLOUDINIT_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Storage:
    """One storage of the cluster's storage.cfg."""

    name: str
    type: str
    content: tuple[str, ...]
    total_bytes: int
    is_shared: bool
    path: str


STORAGES = {
    storage.name: storage
    for storage in (
        Storage(
            "local",
            "dir",
            ("backup", "iso", "snippets", "vztmpl"),
            100 * GIB,
            False,
            "/var/lib/vz",
        ),
        Storage("vmstore", "zfspool", ("images", "rootdir"), 500 * GIB, True, "/dev/zvol/vmstore"),
    )
}


@dataclass
class Volume:
    """A disk image, a cloud-init drive or a backup. `disk_id` names it to the guest runtime."""

    storage: str
    name: str
    node: str | None
    vmid: int
    size: int
    format: str
    content: str
    ctime: int
    disk_id: str | None = None
    parent: str | None = None
    notes: str | None = None
    protected: int = 0

    @property
    def volid(self) -> str:
        """`storage:name`, the way configurations name it."""
        prefix = f"{self.parent}/" if self.parent else ""
        return f"{self.storage}:{prefix}{self.name}"


class StoragePool:
    """All volumes on all storages."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults
        self._volumes = {key: Volume(**document) for key, document in store.load("volume").items()}

    def storage(self, name: str) -> Storage:
        """A storage, or 500 in Proxmox's words."""
        if name not in STORAGES:
            raise ApiError(f"storage '{name}' does not exist")
        return STORAGES[name]

    def volumes(self, storage: str | None = None, node: str | None = None) -> list[Volume]:
        """Volumes of a storage that a node sees."""
        return [
            volume
            for volume in self._volumes.values()
            if storage in (None, volume.storage)
            and (volume.node is None or node in (None, volume.node))
        ]

    def find(self, volid: str, node: str | None = None) -> Volume | None:
        """A volume by its id."""
        for volume in self._volumes.values():
            if volume.volid == volid and (volume.node is None or node in (None, volume.node)):
                return volume
        return None

    def owned_by(self, vmid: int) -> list[Volume]:
        """Every disk image of a machine, referenced or not."""
        return [v for v in self._volumes.values() if v.vmid == vmid and v.content == "images"]

    def used_bytes(self, storage: Storage, node: str) -> int:
        """Space that is taken; a full storage (a fault) has all of it taken."""
        if self._faults.active("storage-full", storage=storage.name):
            return storage.total_bytes
        return sum(volume.size for volume in self.volumes(storage.name, node))

    def status(self, name: str, node: str) -> dict[str, Any]:
        """A storage as a node's storage list shows it."""
        storage = self.storage(name)
        used = self.used_bytes(storage, node)
        return {
            "storage": name,
            "type": storage.type,
            "content": ",".join(storage.content),
            "active": 1,
            "enabled": 1,
            "shared": int(storage.is_shared),
            "total": storage.total_bytes,
            "used": used,
            "avail": storage.total_bytes - used,
            "used_fraction": used / storage.total_bytes,
        }

    def reserve(self, storage: Storage, node: str, size: int, name: str) -> None:
        """Refuse when `size` more bytes do not fit."""
        if self.used_bytes(storage, node) + size <= storage.total_bytes:
            return
        self._faults.take("storage-full", storage=storage.name)
        if storage.type == "zfspool":
            raise ApiError(f"zfs error: cannot create '{storage.name}/{name}': out of space")
        raise ApiError(f"unable to write '{storage.path}/{name}': No space left on device")

    def allocate(
        self,
        storage_name: str,
        node: str,
        vmid: int,
        size: int,
        *,
        name: str | None = None,
        content: str = "images",
        parent: str | None = None,
        volume_format: str = "raw",
    ) -> Volume:
        """Make a volume of `size` bytes; the name of a disk is the first free one."""
        storage = self.storage(storage_name)
        if content not in storage.content:
            raise ApiError(f"storage '{storage_name}' does not support content-type '{content}'")
        owner = None if storage.is_shared else node
        name = name or self._free_name(storage_name, vmid)
        if any(
            v.name == name and v.storage == storage_name for v in self.volumes(storage_name, node)
        ):
            raise ApiError(
                f"zfs error: cannot create '{storage_name}/{name}': dataset already exists"
            )
        self.reserve(storage, node, size, name)
        volume = Volume(
            storage_name, name, owner, vmid, size, volume_format, content, int(time.time())
        )
        volume.parent = parent
        if "-disk-" in name:
            volume.disk_id = self._free_disk_id(f"{storage_name}.{name}")
        self.save(volume)
        return volume

    def _free_name(self, storage: str, vmid: int) -> str:
        taken = {v.name.partition("-")[2] for v in self.volumes(storage) if v.vmid == vmid}
        number = next(n for n in range(1000) if f"{vmid}-disk-{n}" not in taken)
        return f"vm-{vmid}-disk-{number}"

    def _free_disk_id(self, wanted: str) -> str:
        # A disk that became a template's base was renamed but keeps its id: do not reuse it.
        taken = {volume.disk_id for volume in self._volumes.values()}
        candidates = [wanted, *(f"{wanted}.{n}" for n in range(2, 1000))]
        return next(candidate for candidate in candidates if candidate not in taken)

    def resize(self, volume: Volume, size: int, node: str) -> None:
        """Record a new size; the storage must have room for the difference."""
        self.reserve(self.storage(volume.storage), node, size - volume.size, volume.name)
        volume.size = size
        self.save(volume)

    def rename(self, volume: Volume, name: str) -> None:
        """Give a volume another name (a template's disk becomes `base-...`)."""
        self._store.delete("volume", _key(volume))
        del self._volumes[_key(volume)]
        volume.name = name
        self.save(volume)

    def free(self, volume: Volume) -> None:
        """Forget a volume; refuse while linked clones stand on it."""
        children = [v for v in self._volumes.values() if v.parent == volume.name]
        if children:
            raise ApiError(f"base volume '{volume.volid}' is still in use by linked cloned")
        self._volumes.pop(_key(volume), None)
        self._store.delete("volume", _key(volume))

    def save(self, volume: Volume) -> None:
        """Write a volume's record."""
        self._volumes[_key(volume)] = volume
        self._store.put("volume", _key(volume), asdict(volume))


def _key(volume: Volume) -> str:
    return f"{volume.storage}:{volume.node or ''}:{volume.name}"
