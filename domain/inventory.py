"""The Ansible inventory of a cluster: what Git holds as the record of which machine is what.

Promises that the same spec and machines give the same document, key order included, so that a
re-export is the same file and a difference is a change. Refuses secrets: only names, addresses
and switches are here, since the document is committed and shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domain.errors import InvalidSpec
from domain.machines import Machine, Role
from domain.specs import ClusterSpec

SERVERS_GROUP = "rke2_servers"
AGENTS_GROUP = "rke2_agents"
HIGHEST_VRRP_PRIORITY = 200


@dataclass(frozen=True)
class ArtifactSource:
    """Where machines fetch RKE2: a mirror of the site, or the vendor's own release pages."""

    url: str
    """The release archive is read from `<url>/<version>/rke2.linux-amd64.tar.gz`."""
    ca_certificate: str = ""
    """PEM text of the CA of the mirror; the system's own CAs if empty."""


def build_inventory(
    spec: ClusterSpec,
    machines: Sequence[Machine],
    addresses: Mapping[str, str],
    artifacts: ArtifactSource,
) -> dict[str, Any]:
    """Return the inventory of `machines`, reached at `addresses` (by machine name).

    Raises:
        InvalidSpec: naming every machine without an address, and every one whose address is not
            the one that the spec gives it.
    """
    problems = []
    for machine in machines:
        found = addresses.get(machine.name)
        if found is None:
            problems.append(f"{machine.name}: has no address. Wait until its guest agent answers")
        elif found != machine.address:
            problems.append(
                f"{machine.name}: answers at {found}, and the spec says {machine.address}. "
                "Look for a second machine with its name, or correct the spec"
            )
    if problems:
        raise InvalidSpec("the machines' addresses", problems)
    servers = [machine for machine in machines if machine.role is Role.SERVER]
    workers = [machine for machine in machines if machine.role is Role.WORKER]
    return {
        "all": {
            "vars": _cluster_variables(spec, machines, artifacts),
            "children": {
                SERVERS_GROUP: _group(servers, {"rke2_type": "server"}),
                AGENTS_GROUP: _group(workers, {"rke2_type": "agent"}),
            },
        }
    }


def _cluster_variables(
    spec: ClusterSpec, machines: Sequence[Machine], artifacts: ArtifactSource
) -> dict[str, Any]:
    network, plane = spec.network, spec.control_plane
    return {
        "cluster_name": spec.name,
        "cluster_environment": spec.environment,
        "cluster_domain": network.domain,
        "cluster_addresses": {machine.name: machine.address for machine in machines},
        "network_cidr": network.cidr,
        "network_admin_cidrs": sorted({network.cidr, *network.admin_networks}),
        "network_dns_servers": list(network.dns_servers),
        "vip_address": plane.virtual_ip,
        # One router id per address: two clusters in one network must not answer each other.
        "vip_router_id": int(plane.virtual_ip.rpartition(".")[2]) or 255,
        "rke2_version": spec.kubernetes.version,
        "rke2_artifact_url": artifacts.url.rstrip("/"),
        "rke2_artifact_ca_certificate": artifacts.ca_certificate,
        "rke2_pod_cidr": network.pod_cidr,
        "rke2_service_cidr": network.service_cidr,
        "rke2_secrets_encryption": spec.kubernetes.secrets_encryption,
        "rke2_audit_log": spec.kubernetes.audit_log,
    }


def _group(machines: Sequence[Machine], variables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vars": dict(variables),
        "hosts": {machine.name: _host_variables(machine) for machine in machines},
    }


def _host_variables(machine: Machine) -> dict[str, Any]:
    variables: dict[str, Any] = {
        "ansible_host": machine.address,
        "node_address": machine.address,
        "node_prefix_length": machine.prefix_length,
        "node_labels": {
            "topology.kubernetes.io/zone": machine.hypervisor,
            "node.kubernetes.io/instance-type": f"{machine.cores}c-{machine.memory_mib}m",
        },
    }
    if machine.role is Role.SERVER:
        variables["rke2_is_first"] = machine.is_first_server
        variables["vip_priority"] = HIGHEST_VRRP_PRIORITY - machine.index
    return variables


def hosts_of(inventory: Mapping[str, Any]) -> dict[str, str]:
    """Return each host's address by its name, servers first."""
    children = inventory["all"]["children"]
    return {
        name: variables["ansible_host"]
        for group in (SERVERS_GROUP, AGENTS_GROUP)
        for name, variables in (children.get(group, {}).get("hosts") or {}).items()
    }


@dataclass(frozen=True)
class InventoryChange:
    """One difference between two inventories."""

    kind: str
    """`added`, `removed` or `changed`."""
    place: str
    """The path of keys, joined by slashes: names of groups and hosts hold none, labels do."""
    old: Any = None
    new: Any = None

    def __str__(self) -> str:
        """One line for a table or a commit message."""
        if self.kind == "added":
            return f"added {self.place}"
        if self.kind == "removed":
            return f"removed {self.place}"
        return f"changed {self.place}: {self.old!r} to {self.new!r}"


def inventory_diff(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[InventoryChange]:
    """Return the differences from `old` (none yet: everything is added) to `new`, in key order."""
    return list(_differences(old or {}, new, ()))


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> list[InventoryChange]:
    place = "/".join(path)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[InventoryChange] = []
        for key in sorted({*old, *new}, key=str):
            here = (*path, str(key))
            if key not in old:
                found.append(InventoryChange("added", "/".join(here), new=new[key]))
            elif key not in new:
                found.append(InventoryChange("removed", "/".join(here), old=old[key]))
            else:
                found += _differences(old[key], new[key], here)
        return found
    return [] if old == new else [InventoryChange("changed", place, old, new)]
