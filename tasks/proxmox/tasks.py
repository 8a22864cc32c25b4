"""The steps on Proxmox VE itself: looking before anything is done, and leaving nothing behind.

Promises that a part of the facts which cannot be read is told as unknown with its reason, and
that only machines which are the cluster's own are ever removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prefect import task
from prefect.logging import get_run_logger

from blocks.proxmox import ProxmoxApi, connected
from domain.errors import Conflict, LifecycleError
from domain.hypervisors import HypervisorFacts, Node, Storage, VirtualMachine
from domain.ownership import outside_the_spec, own_machines, pool_comment
from domain.specs import ClusterSpec
from tasks.retry_rules import TEMPORARY

TAGS = ["system:proxmox"]
T = TypeVar("T")


@task(name="gather Proxmox VE facts", tags=TAGS, **TEMPORARY)
def gather_proxmox_facts(environment: str, spec: ClusterSpec) -> HypervisorFacts:
    """Read everything about the hypervisors that the preflight asks for; nothing is changed."""
    unknown: dict[str, str] = {}
    try:
        api = connected(environment)
    except LifecycleError as error:
        return HypervisorFacts(unknown={"everything": str(error)})

    def read(part: str, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except LifecycleError as error:
            unknown[part] = str(error)
            return None

    version = read("the version", api.version)
    if version is None:
        # Nothing else will answer either, and one reason is enough for a person.
        return HypervisorFacts(unknown=unknown)
    nodes = read("the list of hypervisors", api.nodes)
    return HypervisorFacts(
        version=version,
        privileges=read("the token's privileges", api.privileges),
        quorum=read("the quorum", api.quorum),
        nodes=nodes,
        storages=read("the storages", lambda: _storages(api, spec, nodes or ())),
        pools=read("the pools", api.pools),
        machines=read("the machines", api.machines),
        unknown=unknown,
    )


def _storages(api: ProxmoxApi, spec: ClusterSpec, nodes: tuple[Node, ...]) -> tuple[Storage, ...]:
    wanted = [node.name for node in nodes if node.is_online and node.name in spec.proxmox.nodes]
    return tuple(storage for name in wanted for storage in api.storages(name))


def _remains(api: ProxmoxApi, spec: ClusterSpec) -> list[VirtualMachine]:
    """Return the cluster's machines that exist: the derived ones and those of an older spec."""
    found = api.machines()
    remains = [*own_machines(spec, found).values(), *outside_the_spec(spec, found)]
    return sorted({vm.vm_id: vm for vm in remains}.values(), key=lambda vm: vm.vm_id)


@task(name="look for machines that are left", tags=TAGS, **TEMPORARY)
def machines_left(environment: str, spec: ClusterSpec) -> list[str]:
    """Return the names of the cluster's machines that exist, and of its pool if we made it."""
    api = connected(environment)
    left = [f"{vm.name} ({vm.vm_id} on {vm.node})" for vm in _remains(api, spec)]
    if _made_pool(api, spec):
        left.append(f"pool {spec.proxmox.pool}")
    return left


@task(name="remove machines outside the state", tags=TAGS, **TEMPORARY)
def remove_leftover_machines(environment: str, spec: ClusterSpec) -> list[str]:
    """Remove the cluster's machines that OpenTofu's destroy has not known; return their names."""
    api = connected(environment)
    removed = []
    for vm in _remains(api, spec):
        get_run_logger().warning("Removing %s (%s), which no state knows.", vm.name, vm.vm_id)
        api.delete_machine(vm.vm_id, vm.node, expected_name=vm.name)
        removed.append(vm.name)
    return removed


def _made_pool(api: ProxmoxApi, spec: ClusterSpec) -> bool:
    wanted = (spec.proxmox.pool, pool_comment(spec.name))
    return any((pool.name, pool.comment) == wanted for pool in api.pools())


@task(name="remove the pool", tags=TAGS, **TEMPORARY)
def remove_pool(environment: str, spec: ClusterSpec) -> bool:
    """Remove the pool if this cluster's run made it and nothing is in it; return whether it did."""
    api = connected(environment)
    if not _made_pool(api, spec):
        return False
    try:
        return api.delete_pool(spec.proxmox.pool)
    except Conflict as error:
        get_run_logger().warning("The pool stays, as others use it: %s", error)
        return False
