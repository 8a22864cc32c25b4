"""Answers of the Proxmox VE API, read into types of our own.

Promises that a missing or odd field becomes its stated default and never a crash in a caller.
Refuses to guess: what cannot be read from an answer stays empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from domain.hypervisors import (
    AgentInterface,
    Node,
    Privileges,
    Quorum,
    Storage,
    VirtualMachine,
    Volume,
)

MAC_PATTERN = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
IPV4_PATTERN = re.compile(r"(?:^|,)ip=(\d+\.\d+\.\d+\.\d+)")
Entry = Mapping[str, Any]


def quorum(entries: Iterable[Entry]) -> Quorum:
    """Read `cluster/status`; a single hypervisor has no cluster entry and is always quorate."""
    listed = list(entries)
    nodes = [entry for entry in listed if entry.get("type") == "node"]
    online = sum(bool(entry.get("online")) for entry in nodes)
    for entry in listed:
        if entry.get("type") == "cluster":
            return Quorum(
                cluster=str(entry.get("name", "")),
                is_quorate=bool(entry.get("quorate")),
                members_online=online,
                members=int(entry.get("nodes") or len(nodes)),
            )
    return Quorum(None, is_quorate=True, members_online=online or 1, members=len(nodes) or 1)


def nodes(entries: Iterable[Entry]) -> tuple[Node, ...]:
    """Read `nodes`."""
    return tuple(
        Node(
            name=str(entry["node"]),
            is_online=entry.get("status") == "online",
            cores=int(entry.get("maxcpu") or 0),
            memory_bytes=int(entry.get("maxmem") or 0),
            memory_used_bytes=int(entry.get("mem") or 0),
        )
        for entry in sorted(entries, key=lambda entry: str(entry["node"]))
    )


def storages(node: str, entries: Iterable[Entry]) -> list[Storage]:
    """Read `nodes/<node>/storage`."""
    return [
        Storage(
            node=node,
            name=str(entry["storage"]),
            kind=str(entry.get("type", "")),
            content=frozenset(filter(None, str(entry.get("content", "")).split(","))),
            is_active=bool(entry.get("active")),
            is_enabled=bool(entry.get("enabled", 1)),
            is_shared=bool(entry.get("shared")),
            total_bytes=int(entry.get("total") or 0),
            free_bytes=int(entry.get("avail") or 0),
        )
        for entry in entries
    ]


def volumes(node: str, entries: Iterable[Entry]) -> list[Volume]:
    """Read the disks of `nodes/<node>/storage/<storage>/content` that have an owner."""
    return [
        Volume(
            volume_id=str(entry["volid"]),
            node=node,
            vm_id=int(entry["vmid"]),
            created_at=int(entry["ctime"]) if entry.get("ctime") else None,
        )
        for entry in entries
        if entry.get("vmid") and entry.get("content", "images") == "images"
    ]


def privileges(answer: Mapping[str, Any]) -> Privileges:
    """Read `access/permissions`."""
    return {
        str(path): {str(name): bool(reaches) for name, reaches in (held or {}).items()}
        for path, held in answer.items()
    }


def tags(text: Any) -> frozenset[str]:
    """Read a machine's tags, which are joined by semicolons."""
    return frozenset(tag for tag in re.split(r"[;, ]+", str(text or "")) if tag)


def machine(entry: Entry, config: Entry | None) -> VirtualMachine:
    """Read one machine from `cluster/resources` and its own configuration, if that was readable."""
    known = config or {}
    cards = [str(value) for key, value in known.items() if re.fullmatch(r"net\d+", key)]
    settings = [str(value) for key, value in known.items() if re.fullmatch(r"ipconfig\d+", key)]
    agent = str(known.get("agent", "0"))
    return VirtualMachine(
        vm_id=int(entry["vmid"]),
        # The resource list lags some seconds behind the configuration.
        name=str(known.get("name") or entry.get("name") or ""),
        node=str(entry.get("node", "")),
        status=str(entry.get("status", "unknown")),
        is_template=bool(int(entry.get("template") or known.get("template") or 0)),
        pool=str(entry["pool"]) if entry.get("pool") else None,
        tags=tags(known.get("tags") if config is not None else entry.get("tags")),
        lock=known.get("lock") or entry.get("lock") or None,
        mac_addresses=frozenset(
            found.group(0).upper() for card in cards if (found := MAC_PATTERN.search(card))
        ),
        addresses=frozenset(
            found.group(1) for line in settings if (found := IPV4_PATTERN.search(line))
        ),
        has_agent=agent.split(",")[0] in ("1", "enabled=1") or "enabled=1" in agent.split(","),
        uptime_seconds=int(entry.get("uptime") or 0),
        is_config_known=config is not None,
    )


def interfaces(answer: Mapping[str, Any]) -> tuple[AgentInterface, ...]:
    """Read the agent's `network-get-interfaces`; only IPv4 addresses are kept."""
    return tuple(
        AgentInterface(
            name=str(card.get("name", "")),
            mac_address=str(card.get("hardware-address", "")).upper(),
            addresses=tuple(
                str(address["ip-address"])
                for address in card.get("ip-addresses") or []
                if address.get("ip-address-type") == "ipv4"
            ),
        )
        for card in answer.get("result") or []
    )
