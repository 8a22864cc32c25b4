"""A cluster's OpenTofu workspace, opened with the credentials of one act.

Promises that every secret is read inside, handed to the child process alone and dropped at the
end, and that the machines which OpenTofu sees are the derived ones. Refuses a template that is
missing or ambiguous.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.openbao import OpenBaoSession, openbao
from blocks.proxmox import ProxmoxApi, proxmox
from blocks.tofu import TofuSession, TofuWorkspace, tofu
from domain.errors import NotFound
from domain.hypervisors import VirtualMachine
from domain.machines import Machine, machines
from domain.ownership import tags
from domain.specs import ClusterSpec

MODULE = Path(__file__).parent / "modules" / "cluster"
SSH_USER = "infraflows"


@dataclass(frozen=True)
class Opened:
    """What a step on one cluster's machines works with."""

    api: ProxmoxApi
    tofu: TofuSession
    workspace: TofuWorkspace
    state_credential: Mapping[str, str]
    parallelism: int


def state_name(environment: str, spec: ClusterSpec) -> str:
    """Return the name of a cluster's state."""
    return f"{environment}-{spec.name}"


def find_template(spec: ClusterSpec, api: ProxmoxApi) -> VirtualMachine:
    """Return the template to clone.

    Raises:
        NotFound: there is none of this name, or more than one.
    """
    name = spec.proxmox.template
    found = [vm for vm in api.machines(lambda entry: entry.get("name") == name) if vm.is_template]
    if len(found) != 1:
        raise NotFound(
            f"Unable to use the template {name}: {len(found)} templates bear this name. "
            "There must be exactly one."
        )
    return found[0]


def _template_or_none(spec: ClusterSpec, api: ProxmoxApi) -> VirtualMachine | None:
    """Return the template; None where it is gone, as a cluster is removed without it."""
    try:
        return find_template(spec, api)
    except NotFound:
        return None


def _machine_variables(spec: ClusterSpec, machine: Machine) -> dict[str, Any]:
    return {
        "vm_id": machine.vm_id,
        "node": machine.hypervisor,
        "tags": tags(spec.name, machine),
        "address": machine.address,
        "prefix_length": machine.prefix_length,
        "mac_address": machine.mac_address,
        "cores": machine.cores,
        "memory_mib": machine.memory_mib,
        "disk_gib": machine.disk_gib,
    }


def variables(
    environment: str,
    spec: ClusterSpec,
    template: VirtualMachine | None,
    ssh_authority: str,
    transit: tuple[str, str],
) -> dict[str, Any]:
    """Return the module's variables; nothing in them is secret."""
    network = spec.network
    authority = " ".join(ssh_authority.split()[:2])
    return {
        "cluster": spec.name,
        "environment": environment,
        "pool": spec.proxmox.pool,
        "storage": spec.proxmox.storage,
        "template": {
            "vm_id": template.vm_id if template else 0,
            "node": template.node if template else "",
        },
        "network": {
            "bridge": spec.proxmox.bridge,
            "vlan": spec.proxmox.vlan,
            "gateway": network.gateway,
            "dns_servers": network.dns_servers,
            "domain": network.domain,
        },
        "ssh_user": SSH_USER,
        "ssh_keys": [f'cert-authority,principals="{SSH_USER}" {authority} infraflows-ca'],
        "machines": {m.name: _machine_variables(spec, m) for m in machines(spec)},
        "transit_mount": transit[0],
        "transit_key": transit[1],
    }


def parallelism(spec: ClusterSpec, api: ProxmoxApi) -> int:
    """Return how many machines may be cloned at once.

    The limit is per storage: one that all hypervisors share takes all clones, and one that each
    has for itself takes only its own.
    """
    node = next((node.name for node in api.nodes() if node.is_online), spec.proxmox.nodes[0])
    shared = any(s.is_shared for s in api.storages(node) if s.name == spec.proxmox.storage)
    return spec.proxmox.parallel_clones * (1 if shared else len(spec.proxmox.nodes))


def _environment(
    bao: OpenBaoSession, api: ProxmoxApi, credential: Mapping[str, str]
) -> dict[str, str]:
    return {
        "BAO_ADDR": bao.address,
        "BAO_TOKEN": bao.token,
        "BAO_CACERT": bao.ca_file,
        "PROXMOX_VE_ENDPOINT": api.endpoint,
        "PROXMOX_VE_API_TOKEN": f"{credential['token_id']}={credential['token_secret']}",
    }


@contextmanager
def opened(environment: str, spec: ClusterSpec) -> Iterator[Opened]:
    """Open the workspace of a cluster; everything secret is gone when the block ends."""
    server, cluster, workspace = openbao(environment), proxmox(environment), tofu(environment)
    with server.session() as bao:
        credential = bao.read(cluster.credential)
        state_credential = bao.read(workspace.credential)
        api = cluster.api(credential)
        session = workspace.session(
            state_name(environment, spec),
            MODULE,
            variables(
                environment,
                spec,
                _template_or_none(spec, api),
                bao.ssh_ca_public_key(),
                (server.transit_mount, server.state_key),
            ),
            _environment(bao, api, credential),
            state_credential,
            [cluster.ca_file, workspace.ca_file, server.ca_file],
        )
        yield Opened(api, session, workspace, state_credential, parallelism(spec, api))
