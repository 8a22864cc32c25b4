"""Brings the state and the hypervisors together again after a run was cut short.

Promises that a machine which was made and not recorded is adopted, one that was half-made and
never used is removed, and anything else is named and left alone. Refuses to go on beside a machine
that it cannot judge.
"""

from __future__ import annotations

import time
from contextlib import suppress

from prefect.logging import get_run_logger

from domain.adoption import (
    Decision,
    OrphanedDisk,
    Step,
    awaits_lock,
    decide,
    orphaned_disks,
)
from domain.errors import Conflict, TemporaryError
from domain.hypervisors import VirtualMachine
from domain.machines import machines
from domain.ownership import cluster_tag, pool_comment
from domain.specs import ClusterSpec
from tasks.terraform.workspace import Opened


def _relevant(spec: ClusterSpec, opened: Opened) -> tuple[VirtualMachine, ...]:
    ids = {machine.vm_id for machine in machines(spec)}
    tag = cluster_tag(spec.name)
    return opened.api.machines(
        lambda entry: (
            int(entry["vmid"]) in ids
            or entry.get("pool") == spec.proxmox.pool
            or tag in str(entry.get("tags") or "")
        )
    )


def _settled(spec: ClusterSpec, opened: Opened) -> tuple[VirtualMachine, ...]:
    """Return the cluster's machines once no task of the run before holds any of them."""
    found = _relevant(spec, opened)
    held = awaits_lock(spec, found)
    for vm in held:
        get_run_logger().info("Waiting for machine %s, locked by: %s.", vm.vm_id, vm.lock)
        # A lock that does not end is judged below, together with everything else that is wrong.
        with suppress(Conflict):
            opened.api.wait_unlocked(vm.vm_id, vm.node)
    return _relevant(spec, opened) if held else found


def _carry_out(opened: Opened, decision: Decision) -> str:
    name, vm_id, node = decision.machine, decision.vm_id, decision.node
    if decision.step is Step.DELETE:
        opened.api.delete_machine(vm_id, node, expected_name=name)
        if decision.is_in_state:
            opened.tofu.forget_machine(name)
        done = "removed"
    elif decision.step is Step.ADOPT:
        opened.tofu.import_machine(name, node, vm_id)
        done = "adopted"
    else:
        opened.tofu.untaint_machine(name)
        done = "taken as whole"
    return f"{name} ({vm_id} on {node}) was {done}: {decision.reason}"


def _orphaned_disks(
    spec: ClusterSpec, opened: Opened, found: tuple[VirtualMachine, ...]
) -> list[OrphanedDisk]:
    api, wanted = opened.api, spec.proxmox
    volumes = {
        (volume.volume_id, volume.node if not storage.is_shared else ""): volume
        for node in api.nodes()
        if node.is_online and node.name in wanted.nodes
        for storage in api.storages(node.name)
        if storage.name == wanted.storage and storage.is_active
        for volume in api.volumes(node.name, storage.name)
    }
    comments = {pool.name: pool.comment for pool in api.pools()}
    return orphaned_disks(
        spec,
        found,
        volumes.values(),
        made_pool=comments.get(wanted.pool) == pool_comment(spec.name),
        now_seconds=time.time(),
    )


def _remove_disks(spec: ClusterSpec, opened: Opened, disks: list[OrphanedDisk]) -> list[str]:
    """Remove disks that a failed clone has left; return one sentence for each.

    Raises:
        TemporaryError: one is still there.
    """
    names = {machine.vm_id: machine.name for machine in machines(spec)}
    for vm_id, node in {disk.volume.vm_id: disk.volume.node for disk in disks}.items():
        opened.api.delete_disks_of(vm_id, node, names[vm_id], spec.proxmox.pool)
    for disk in disks:
        volume = disk.volume
        storage = volume.volume_id.partition(":")[0]
        if volume.volume_id in {v.volume_id for v in opened.api.volumes(volume.node, storage)}:
            raise TemporaryError(f"Unable to confirm that {volume.volume_id} is gone: try again.")
    return [
        f"the disk {disk.volume.volume_id} was removed: a clone that failed left it"
        for disk in disks
    ]


def settle(spec: ClusterSpec, opened: Opened) -> list[str]:
    """Adopt or remove what a run before has left; return one sentence for each.

    Raises:
        Conflict: some machine needs a person.
    """
    # First, because it waits for a tofu that a killed worker has left to end in good order.
    state = opened.tofu.state_machines()
    found = _settled(spec, opened)
    decisions = decide(spec, found, state)
    disks = _orphaned_disks(spec, opened, found)
    refused = [
        f"{d.machine} ({d.vm_id} on {d.node}): {d.reason}"
        for d in decisions
        if d.step is Step.REFUSE
    ]
    refused += [
        f"{disk.volume.volume_id}: no machine owns it. If it is not needed, run on "
        f"{disk.volume.node}: pvesm free {disk.volume.volume_id}"
        for disk in disks
        if not disk.is_ours
    ]
    if refused:
        listed = "; ".join(refused)
        raise Conflict(
            f"Unable to use what is in the cluster's place: {listed}. "
            "Look at each by hand: remove it, rename it, or correct the spec."
        )
    told = [_carry_out(opened, decision) for decision in decisions]
    told += _remove_disks(spec, opened, disks)
    for sentence in told:
        get_run_logger().warning("A run before was cut short: %s.", sentence)
    return told
