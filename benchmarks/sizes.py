"""The clusters that are measured: how many servers and workers, and their specs."""

from __future__ import annotations

from typing import Any

from lab.layout import ENVIRONMENT, GATEWAY, NETWORK, NODE_ADDRESSES, ZONE

SIZES: dict[int, tuple[int, int]] = {1: (1, 0), 3: (3, 0), 5: (3, 2), 10: (3, 7)}
"""Servers and workers by number of nodes."""
KUBERNETES_VERSION = "v1.36.3+rke2r1"
WARM_UP = "bench-warm-up"
ABSENT = "bench-absent"


def cluster_name(nodes: int) -> str:
    """Return the name of the cluster of a size."""
    return f"bench-{nodes}"


def spec(nodes: int, name: str = "") -> dict[str, Any]:
    """Return the spec of a cluster of one of the sizes; all differ in name and numbers only."""
    servers, workers = SIZES[nodes]
    cluster = name or cluster_name(nodes)
    return {
        "name": cluster,
        "environment": ENVIRONMENT,
        "proxmox": {
            "pool": cluster,
            "nodes": list(NODE_ADDRESSES),
            "storage": "vmstore",
            "template": "debian-12-cloud",
            "first_vm_id": 300,
            "bridge": "vmbr0",
        },
        "network": {
            "cidr": NETWORK,
            "gateway": GATEWAY,
            "dns_servers": [GATEWAY],
            "domain": ZONE,
        },
        "control_plane": {
            "count": servers,
            "cores": 2,
            "memory_mib": 2048,
            "disk_gib": 10,
            "first_address": "10.90.0.51",
            "virtual_ip": "10.90.0.50",
        },
        "workers": {
            "count": workers,
            "cores": 1,
            "memory_mib": 1024,
            "disk_gib": 10,
            "first_address": "10.90.0.61",
        },
        "kubernetes": {"version": KUBERNETES_VERSION},
        "platform": {
            "metallb": {"first_address": "10.90.0.200", "last_address": "10.90.0.219"},
        },
    }
