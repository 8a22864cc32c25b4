"""What is known of a Proxmox VE cluster, in types of our own.

Promises that a fact that could not be read is absent and said to be (`unknown` names the part and
the reason) and is never an empty list that looks like "there is none". Refuses to hold anything
secret: these facts are shown in artifacts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1024**2
GIB = 1024**3

GUEST_AGENT_PRIVILEGES_SINCE = 9
"""From this release on `VM.Monitor` is split into rights of the guest agent's own."""


@dataclass(frozen=True)
class ApiVersion:
    """The release of the Proxmox VE API that answers."""

    release: str

    @property
    def major(self) -> int:
        """The first number of the release; 0 when it cannot be read."""
        found = re.match(r"(\d+)", self.release)
        return int(found.group(1)) if found else 0


@dataclass(frozen=True)
class Quorum:
    """Whether the cluster may change anything."""

    cluster: str | None
    """Name of the cluster; None for a single hypervisor that never joined one."""
    is_quorate: bool
    members_online: int
    members: int


@dataclass(frozen=True)
class Node:
    """One hypervisor."""

    name: str
    is_online: bool
    cores: int = 0
    memory_bytes: int = 0
    memory_used_bytes: int = 0

    @property
    def memory_free_mib(self) -> int:
        """Memory that is not in use now."""
        return max(0, self.memory_bytes - self.memory_used_bytes) // MIB


@dataclass(frozen=True)
class Storage:
    """One storage as one hypervisor sees it."""

    node: str
    name: str
    kind: str
    content: frozenset[str]
    is_active: bool
    is_enabled: bool
    is_shared: bool
    total_bytes: int
    free_bytes: int

    @property
    def free_gib(self) -> int:
        """Whole GiB that are free."""
        return self.free_bytes // GIB


@dataclass(frozen=True)
class Volume:
    """A disk on a storage."""

    volume_id: str
    """As `vmstore:vm-550-disk-0`."""
    node: str
    vm_id: int
    created_at: int | None = None
    """Seconds since 1970; None where the storage does not tell."""


@dataclass(frozen=True)
class Pool:
    """A resource pool."""

    name: str
    comment: str = ""


@dataclass(frozen=True)
class VirtualMachine:
    """One virtual machine or template, with what of its configuration decides something here."""

    vm_id: int
    name: str
    node: str
    status: str
    is_template: bool = False
    pool: str | None = None
    tags: frozenset[str] = frozenset()
    lock: str | None = None
    mac_addresses: frozenset[str] = frozenset()
    """In upper case."""
    addresses: frozenset[str] = frozenset()
    """IPv4 addresses that cloud-init gives it, without prefix length."""
    has_agent: bool = False
    uptime_seconds: int = 0
    is_config_known: bool = True
    """False when its hypervisor did not answer for the configuration."""

    @property
    def is_running(self) -> bool:
        """True when its process runs."""
        return self.status == "running"


Privileges = Mapping[str, Mapping[str, bool]]
"""By path: each privilege held there, and whether it reaches the paths below."""


def holds(privileges: Privileges, path: str, privilege: str) -> bool:
    """Return whether a privilege is held on a path, there or handed down from above it.

    The nearest path with an entry decides alone, as an entry replaces what comes from above.
    """
    if path in privileges:
        return privilege in privileges[path]
    above = path
    while above not in ("", "/"):
        above = above.rpartition("/")[0] or "/"
        if above in privileges:
            return bool(privileges[above].get(privilege, False))
    return False


@dataclass(frozen=True)
class HypervisorFacts:
    """One look at a Proxmox VE cluster; each part is None when it could not be read."""

    version: ApiVersion | None = None
    privileges: Privileges | None = None
    quorum: Quorum | None = None
    nodes: tuple[Node, ...] | None = None
    storages: tuple[Storage, ...] | None = None
    pools: tuple[Pool, ...] | None = None
    machines: tuple[VirtualMachine, ...] | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)
    """By part that is None: why."""


@dataclass(frozen=True)
class AgentInterface:
    """A network card as the guest's agent tells it."""

    name: str
    mac_address: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class FinishedTask:
    """A task of the hypervisor that ended well."""

    upid: str
    exit_status: str
    seconds: float
