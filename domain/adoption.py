"""What to do with machines that a run which was cut short has left behind.

OpenTofu writes its state at intervals: a machine that was made just before it was killed exists
and stands in no state, and the next apply would fail on its VMID. Promises that a whole machine is
adopted and only one that never got its network settings (and so was never part of a cluster) is
deleted. Refuses to touch a machine that is not the cluster's own, or one it cannot judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from domain.hypervisors import VirtualMachine, Volume
from domain.machines import Machine, machines
from domain.ownership import carries_mark, cluster_tag, owns
from domain.specs import ClusterSpec

OLDEST_ORPHAN_SECONDS = 24 * 3600


class Step(StrEnum):
    """What is done with one leftover."""

    ADOPT = "adopt"
    """Import it into the state."""
    UNTAINT = "untaint"
    """It is in the state marked as half-made, but it is whole."""
    DELETE = "delete"
    """It is half-made and was never used."""
    REFUSE = "refuse"
    """A person must look."""


@dataclass(frozen=True)
class StateEntry:
    """One machine as the state knows it."""

    vm_id: int
    is_tainted: bool = False


@dataclass(frozen=True)
class Decision:
    """One leftover and what is done with it."""

    step: Step
    machine: str
    vm_id: int
    node: str
    reason: str
    is_in_state: bool = False


def is_whole(machine: Machine, found: VirtualMachine) -> bool:
    """Return whether a machine got everything that it is configured with before its first start."""
    return (
        found.lock is None
        and machine.mac_address in found.mac_addresses
        and machine.address in found.addresses
    )


def is_aborted_clone(found: VirtualMachine) -> bool:
    """Return whether a machine is what a clone leaves whose hypervisor died: locked, nameless."""
    return found.lock == "clone" and found.name in ("", f"VM{found.vm_id}", f"VM {found.vm_id}")


def was_never_used(found: VirtualMachine) -> bool:
    """Return whether a machine cannot have been part of a cluster: it has no address of its own."""
    return found.is_config_known and not found.addresses


def _decide(
    spec: ClusterSpec, machine: Machine, found: VirtualMachine, entry: StateEntry | None
) -> Decision | None:
    def decision(step: Step, reason: str) -> Decision:
        return Decision(step, machine.name, found.vm_id, found.node, reason, entry is not None)

    if is_aborted_clone(found):
        return decision(
            Step.REFUSE,
            f"an aborted clone left it locked, which only root may end. On {found.node} run: "
            f"qm unlock {found.vm_id} && qm destroy {found.vm_id}",
        )
    if not owns(spec, machine, found):
        return decision(
            Step.REFUSE, f"VMID {found.vm_id} is {found.name!r}, which is not this cluster's"
        )
    if entry is not None and not entry.is_tainted:
        return None
    if not found.is_config_known:
        return decision(Step.REFUSE, f"{found.node} does not answer for its configuration")
    if was_never_used(found):
        return decision(Step.DELETE, "it is half-made: it never got its address")
    if not is_whole(machine, found):
        return decision(Step.REFUSE, "its MAC address, address or lock is not what the spec says")
    if entry is not None:
        return decision(Step.UNTAINT, "it is whole")
    return decision(Step.ADOPT, "it is whole, and the state does not know it")


def decide(
    spec: ClusterSpec,
    found: Iterable[VirtualMachine],
    state: Mapping[str, StateEntry],
) -> list[Decision]:
    """Return what to do with each leftover; an empty list when nothing was left behind.

    `state` names, by machine name, what the state holds. Machines that carry the cluster's mark
    and are no longer in the spec are the plan's business when the state knows them, and a
    person's when it does not.
    """
    by_id = {vm.vm_id: vm for vm in found}
    wanted = machines(spec)
    decisions = [
        made
        for machine in wanted
        if machine.vm_id in by_id
        and (made := _decide(spec, machine, by_id[machine.vm_id], state.get(machine.name)))
    ]
    known = {m.vm_id for m in wanted} | {entry.vm_id for entry in state.values()}
    for vm in sorted(by_id.values(), key=lambda vm: vm.vm_id):
        is_ours = carries_mark(spec, vm) and cluster_tag(spec.name) in vm.tags
        if is_ours and vm.vm_id not in known and not vm.is_template:
            decisions.append(
                Decision(
                    Step.REFUSE,
                    vm.name,
                    vm.vm_id,
                    vm.node,
                    "it carries the cluster's tag, and neither the spec nor the state knows it",
                )
            )
    return decisions


@dataclass(frozen=True)
class OrphanedDisk:
    """A disk at the place of a machine that does not exist, and whether it may be deleted."""

    volume: Volume
    is_ours: bool


def orphaned_disks(
    spec: ClusterSpec,
    found: Iterable[VirtualMachine],
    volumes: Iterable[Volume],
    *,
    made_pool: bool,
    now_seconds: float,
) -> list[OrphanedDisk]:
    """Return disks that stand in the way of a clone, as one that failed half-way leaves them.

    A disk bears no mark. It is taken for ours when the cluster's pool was made by the product,
    so that a run has begun here, and the disk is no older than a day or does not tell its age.
    """
    existing = {vm.vm_id for vm in found}
    ids = {machine.vm_id for machine in machines(spec)} - existing
    return [
        OrphanedDisk(
            volume,
            made_pool
            and (
                volume.created_at is None or now_seconds - volume.created_at < OLDEST_ORPHAN_SECONDS
            ),
        )
        for volume in sorted(volumes, key=lambda volume: volume.volume_id)
        if volume.vm_id in ids
    ]


def awaits_lock(spec: ClusterSpec, found: Iterable[VirtualMachine]) -> list[VirtualMachine]:
    """Return machines in the cluster's place that a task holds, to be waited for before deciding.

    A clone has neither name nor pool before it ends, so the VMID alone decides here.
    """
    ids = {machine.vm_id for machine in machines(spec)}
    return [vm for vm in found if vm.vm_id in ids and vm.lock]
