"""What the larger routes take: one schema each, as Proxmox VE 8 declares them.

Why: kept apart from `urls` so that the table of routes stays readable.
"""

from __future__ import annotations

from lab.hypervisor.parameters import (
    DNS_NAME,
    NODE,
    STORAGE_ID,
    VMID,
    Param,
    Schema,
    boolean,
    integer,
    string,
)
from lab.hypervisor.vm_schema import CONFIG, INDEXES, UNSIMULATED

UPDATE: dict[str, Param] = {
    **CONFIG,
    "delete": string(),
    "digest": string(max_length=64),
    "force": boolean(),
    "revert": string(),
    "skiplock": boolean(),
}
UPDATE_SCHEMA = Schema(UPDATE, INDEXES, UNSIMULATED)
UPDATE_ASYNC = Schema({**UPDATE, "background_delay": integer(1, 30)}, INDEXES, UNSIMULATED)
CREATE = Schema(
    {
        **CONFIG,
        "archive": string(),
        "bwlimit": integer(0),
        "force": boolean(),
        "live-restore": boolean(),
        "pool": string(),
        "start": boolean(),
        "storage": STORAGE_ID,
        "unique": boolean(),
        "vmid": VMID,
    },
    INDEXES,
    UNSIMULATED,
)
CLONE = Schema(
    {
        "bwlimit": integer(0),
        "description": string(),
        "format": string(choices=("raw", "qcow2", "vmdk")),
        "full": boolean(),
        "name": DNS_NAME,
        "newid": VMID,
        "pool": string(),
        "snapname": string(),
        "storage": STORAGE_ID,
        "target": string(),
    }
)
RESIZE = Schema(
    {
        "digest": string(max_length=64),
        "disk": string(required=True, pattern=r"(ide|sata|scsi|virtio)\d+"),
        "size": string(required=True, pattern=r"\+?\d+(\.\d+)?[KMGT]?"),
        "skiplock": boolean(),
    }
)
REBOOT = Schema({"timeout": integer(0)})
RESET = Schema({"skiplock": boolean()})
START = Schema(
    {
        "force-cpu": string(),
        "machine": string(),
        "skiplock": boolean(),
        "timeout": integer(0),
    }
)
STOP = Schema(
    {
        "keepActive": boolean(),
        "overrule-shutdown": boolean(),
        "skiplock": boolean(),
        "timeout": integer(0),
    }
)
SHUTDOWN = Schema(
    {
        "forceStop": boolean(),
        "keepActive": boolean(),
        "skiplock": boolean(),
        "timeout": integer(0),
    }
)
MIGRATE = Schema(
    {
        "bwlimit": integer(0),
        "force": boolean(),
        "online": boolean(),
        "target": NODE,
        "targetstorage": string(),
        "with-local-disks": boolean(),
    }
)
DESTROY = Schema(
    {"destroy-unreferenced-disks": boolean(), "purge": boolean(), "skiplock": boolean()}
)
VZDUMP = Schema(
    {
        "compress": string(choices=("0", "1", "gzip", "lzo", "zstd")),
        "mode": string(choices=("snapshot", "suspend", "stop")),
        "notes-template": string(max_length=1024),
        "protected": boolean(),
        "storage": STORAGE_ID,
        "vmid": string(required=True, pattern=r"\d+([,; ]\d+)*"),
    }
)
TASKS = Schema(
    {
        "errors": boolean(),
        "limit": integer(0),
        "since": integer(),
        "source": string(choices=("archive", "active", "all")),
        "start": integer(0),
        "typefilter": string(),
        "until": integer(),
        "userfilter": string(),
        "vmid": integer(100),
    }
)
POOL_CHANGE = {
    "allow-move": boolean(),
    "comment": string(),
    "delete": boolean(),
    "storage": string(),
    "vms": string(),
}
TOKEN = Schema({"comment": string(), "expire": integer(0), "privsep": boolean()})
TOKEN_CHANGE = Schema({**TOKEN.parameters, "delete": string()})
ACL_CHANGE = Schema(
    {
        "delete": boolean(),
        "groups": string(),
        "path": string(required=True),
        "propagate": boolean(),
        "roles": string(required=True),
        "tokens": string(),
        "users": string(),
    }
)
