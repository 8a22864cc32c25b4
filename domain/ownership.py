"""Which virtual machines belong to a cluster of ours.

Promises that a machine counts as a cluster's own only when its VMID and its name are the derived
ones **and** it carries the cluster's mark: the pool or the tag. Refuses a match by name alone: a
name is easily reused, and what is taken for ours may be deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from domain.hypervisors import VirtualMachine
from domain.machines import Machine, machines
from domain.specs import ClusterSpec

PRODUCT_TAG = "infraflows"


def cluster_tag(cluster: str) -> str:
    """Return the tag that marks a cluster's machines (Proxmox VE tags hold no colon)."""
    return f"cluster-{cluster}"


def pool_comment(cluster: str) -> str:
    """Return the comment by which a pool is known to be made by the product."""
    return f"Cluster {cluster}, made by Infraflows"


def tags(cluster: str, machine: Machine) -> list[str]:
    """Return a machine's tags, sorted as Proxmox VE returns them."""
    return sorted([PRODUCT_TAG, cluster_tag(cluster), f"role-{machine.role.value}"])


def carries_mark(spec: ClusterSpec, found: VirtualMachine) -> bool:
    """Return whether a machine is in the cluster's pool or carries its tag."""
    return found.pool == spec.proxmox.pool or cluster_tag(spec.name) in found.tags


def owns(spec: ClusterSpec, machine: Machine, found: VirtualMachine) -> bool:
    """Return whether `found` is the machine that the spec stands for."""
    return (
        found.vm_id == machine.vm_id
        and found.name == machine.name
        and not found.is_template
        and carries_mark(spec, found)
    )


def outside_the_spec(spec: ClusterSpec, found: Iterable[VirtualMachine]) -> list[VirtualMachine]:
    """Return machines that carry the cluster's tag and a name of its form, and are not derived.

    They come from a spec that was larger, or placed its VMIDs elsewhere.
    """
    own = own_machines(spec, found := list(found))
    form = re.compile(rf"{re.escape(spec.name)}-(server|worker)-\d{{1,2}}")
    return [
        vm
        for vm in found
        if cluster_tag(spec.name) in vm.tags
        and form.fullmatch(vm.name)
        and not vm.is_template
        and all(vm.vm_id != mine.vm_id for mine in own.values())
    ]


def own_machines(spec: ClusterSpec, found: Iterable[VirtualMachine]) -> dict[str, VirtualMachine]:
    """Return the spec's machines that exist, by name."""
    by_id = {vm.vm_id: vm for vm in found}
    return {
        machine.name: by_id[machine.vm_id]
        for machine in machines(spec)
        if machine.vm_id in by_id and owns(spec, machine, by_id[machine.vm_id])
    }
