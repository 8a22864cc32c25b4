"""The preflight's questions to Proxmox VE: may it, can it, and is the place free?

Promises to ask all of them and to count only machines that do not exist yet, so that a run that
was cut short finds no fault with its own work. Refuses to go on where a part is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

from domain.adoption import is_aborted_clone
from domain.findings import Finding, error, ok, warning
from domain.hypervisors import (
    GUEST_AGENT_PRIVILEGES_SINCE,
    MIB,
    HypervisorFacts,
    Node,
    Storage,
    VirtualMachine,
    holds,
)
from domain.machines import Machine, machines
from domain.ownership import own_machines
from domain.specs import ClusterSpec

OLDEST_MAJOR = 8
SUBJECT = "Proxmox VE"
LEAST_FREE_MEMORY_PERCENT = 10
POOL_PRIVILEGES = (
    "VM.Allocate",
    "VM.Audit",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.PowerMgmt",
)
"""What is done to the cluster's own machines; may be granted on the pool or on all machines."""


def check_hypervisor(spec: ClusterSpec, facts: HypervisorFacts | None) -> Iterator[Finding]:
    """Yield every finding about the hypervisors, `facts` being what could be read of them."""
    if facts is None:
        yield error(SUBJECT, "its state is not known", "Check its block and run again")
        return
    for part, reason in facts.unknown.items():
        yield error(
            SUBJECT, f"{part} could not be read ({reason.rstrip('.')})", "Mend it and retry"
        )
    yield from _version(facts)
    yield from _quorum(facts)
    yield from _nodes(spec, facts)
    yield from _template(spec, facts)
    yield from _rights(spec, facts)
    yield from _storage(spec, facts)
    yield from _memory(spec, facts)
    yield from _conflicts(spec, facts)


def _version(facts: HypervisorFacts) -> Iterator[Finding]:
    version = facts.version
    if version is None:
        return
    if version.major < OLDEST_MAJOR:
        yield error(
            SUBJECT,
            f"release {version.release} is too old",
            f"Upgrade to {OLDEST_MAJOR}.0 or later",
        )
    else:
        yield ok(SUBJECT, f"release {version.release} answers")


def _quorum(facts: HypervisorFacts) -> Iterator[Finding]:
    quorum = facts.quorum
    if quorum is None:
        return
    counted = f"{quorum.members_online} of {quorum.members} members online"
    if not quorum.is_quorate:
        yield error(
            "quorum",
            f"the cluster has none ({counted}), so it refuses every change",
            "Bring members back until more than half are online",
        )
    elif quorum.members_online < quorum.members:
        yield warning("quorum", counted, "Bring the missing member back")
    else:
        yield ok("quorum", counted)


def _nodes(spec: ClusterSpec, facts: HypervisorFacts) -> Iterator[Finding]:
    if facts.nodes is None:
        return
    by_name = {node.name: node for node in facts.nodes}
    good = True
    for name in spec.proxmox.nodes:
        node = by_name.get(name)
        subject = f"hypervisor {name}"
        if node is None:
            known = ", ".join(sorted(by_name)) or "none"
            yield error(subject, "is not known", f"Correct proxmox.nodes; known are: {known}")
        elif not node.is_online:
            yield error(subject, "is offline", "Start it or remove it from proxmox.nodes")
        else:
            yield from _cores(spec, node)
            continue
        good = False
    if good:
        yield ok("hypervisors", f"{', '.join(spec.proxmox.nodes)} are online")


def _cores(spec: ClusterSpec, node: Node) -> Iterator[Finding]:
    largest = max((m.cores for m in machines(spec) if m.hypervisor == node.name), default=0)
    if node.cores and largest > node.cores:
        yield error(
            f"hypervisor {node.name}",
            f"has {node.cores} cores, and one machine asks for {largest}",
            "Ask for fewer cores; a machine with more than its hypervisor does not start",
        )


def _template(spec: ClusterSpec, facts: HypervisorFacts) -> Iterator[Finding]:
    if facts.machines is None:
        return
    name = spec.proxmox.template
    subject = f"template {name}"
    named = [vm for vm in facts.machines if vm.name == name]
    templates = [vm for vm in named if vm.is_template]
    if not named:
        known = ", ".join(sorted(vm.name for vm in facts.machines if vm.is_template)) or "none"
        yield error(subject, "does not exist", f"Create it; templates that exist: {known}")
    elif not templates:
        yield error(
            subject,
            f"machine {named[0].vm_id} has this name but is no template",
            f"Convert it: qm template {named[0].vm_id}",
        )
    elif len(templates) > 1:
        ids = ", ".join(str(vm.vm_id) for vm in templates)
        yield error(subject, f"has several bearers ({ids})", "Give each its own name")
    elif not templates[0].is_config_known:
        yield error(subject, "its hypervisor does not answer", f"Start {templates[0].node}")
    elif not templates[0].has_agent:
        yield error(
            subject,
            "its guest agent is not enabled, so host keys cannot be read from a trusted place",
            f"Install qemu-guest-agent in it and run: qm set {templates[0].vm_id} --agent 1",
        )
    else:
        yield ok(subject, f"is {templates[0].vm_id} on {templates[0].node}, guest agent enabled")


def needed_privileges(
    spec: ClusterSpec, facts: HypervisorFacts
) -> list[tuple[tuple[str, ...], str]]:
    """Return each privilege that a run uses, with the paths of which one must grant it."""
    placement = spec.proxmox
    pool = f"/pool/{placement.pool}"
    needed: list[tuple[tuple[str, ...], str]] = [(("/",), "Sys.Audit")]
    needed += [((pool, "/vms"), privilege) for privilege in POOL_PRIVILEGES]
    needed += [((pool,), "Pool.Audit"), ((pool,), "Pool.Allocate")]
    storage = f"/storage/{placement.storage}"
    needed += [((storage,), "Datastore.AllocateSpace"), ((storage,), "Datastore.Audit")]
    needed += [((f"/sdn/zones/localnetwork/{placement.bridge}",), "SDN.Use")]
    templates = [vm for vm in facts.machines or () if vm.is_template]
    for template in (vm for vm in templates if vm.name == placement.template):
        path = f"/vms/{template.vm_id}"
        above = (f"/pool/{template.pool}",) if template.pool else ()
        needed += [((path, *above), "VM.Clone"), ((path, *above), "VM.Audit")]
    major = facts.version.major if facts.version else OLDEST_MAJOR
    if major >= GUEST_AGENT_PRIVILEGES_SINCE:
        needed += [((pool, "/vms"), f"VM.GuestAgent.{act}") for act in ("Audit", "FileRead")]
    else:
        needed += [((pool, "/vms"), "VM.Monitor")]
    return needed


def _rights(spec: ClusterSpec, facts: HypervisorFacts) -> Iterator[Finding]:
    if facts.privileges is None:
        return
    missing: dict[str, list[str]] = {}
    needed = needed_privileges(spec, facts)
    for paths, privilege in needed:
        if not any(holds(facts.privileges, path, privilege) for path in paths):
            missing.setdefault(paths[0], []).append(privilege)
    for path, privileges in missing.items():
        listed = ", ".join(privileges)
        yield error(
            "rights", f"the token lacks {listed} on {path}", f"Grant a role with {listed} on {path}"
        )
    if not missing:
        yield ok("rights", f"the token holds all {len(needed)} privileges that a run uses")


def _to_create(spec: ClusterSpec, facts: HypervisorFacts) -> list[Machine]:
    own = own_machines(spec, facts.machines or ())
    return [machine for machine in machines(spec) if machine.name not in own]


def _storage(spec: ClusterSpec, facts: HypervisorFacts) -> Iterator[Finding]:
    if facts.storages is None or facts.machines is None:
        return
    name = spec.proxmox.storage
    online = {node.name for node in facts.nodes or () if node.is_online}
    on_node = {s.node: s for s in facts.storages if s.name == name}
    usable: list[Storage] = []
    for node in spec.proxmox.nodes:
        if facts.nodes is not None and node not in online:
            continue
        subject, storage = f"storage {name} on {node}", on_node.get(node)
        if storage is None:
            yield error(subject, "does not exist", "Correct proxmox.storage or add it there")
        elif not (storage.is_active and storage.is_enabled):
            state = "not active" if storage.is_enabled else "disabled"
            yield error(subject, f"is {state}", "Bring it back, then run again")
        elif "images" not in storage.content:
            yield error(
                subject, "does not take disk images", f"Run: pvesm set {name} --content images"
            )
        else:
            usable.append(storage)
    yield from _space(spec, facts, usable)


def _space(
    spec: ClusterSpec, facts: HypervisorFacts, usable: Iterable[Storage]
) -> Iterator[Finding]:
    wanted: Counter[str] = Counter()
    for machine in _to_create(spec, facts):
        wanted[machine.hypervisor] += machine.disk_gib
    # A shared storage is one room with many doors: everything that is asked of it adds up.
    rooms: dict[str, tuple[int, int]] = {}
    for storage in usable:
        key = storage.name if storage.is_shared else f"{storage.name} on {storage.node}"
        free, need = rooms.get(key, (storage.free_gib, 0))
        rooms[key] = (min(free, storage.free_gib), need + wanted[storage.node])
    for key, (free, need) in rooms.items():
        if need > free:
            yield error(
                f"storage {key}",
                f"has {free} GiB free, and the new machines need {need} GiB",
                "Free space, choose another storage, or ask for smaller disks",
            )
        else:
            yield ok(f"storage {key}", f"{free} GiB free, {need} GiB needed")


def _memory(spec: ClusterSpec, facts: HypervisorFacts) -> Iterator[Finding]:
    if facts.nodes is None or facts.machines is None:
        return
    wanted: Counter[str] = Counter()
    for machine in _to_create(spec, facts):
        wanted[machine.hypervisor] += machine.memory_mib
    for node in facts.nodes:
        if node.name not in spec.proxmox.nodes or not node.is_online:
            continue
        need, free, total = wanted[node.name], node.memory_free_mib, node.memory_bytes // MIB
        subject, figures = f"memory of {node.name}", f"{free} MiB free, {need} MiB needed"
        if need > free:
            yield error(
                subject,
                f"has {free} MiB free, and the new machines need {need} MiB",
                "Free memory, add a hypervisor, or ask for less memory",
            )
        elif need and (free - need) * 100 < total * LEAST_FREE_MEMORY_PERCENT:
            yield warning(
                subject,
                f"{figures}: less than {LEAST_FREE_MEMORY_PERCENT} % would stay free",
                "Spread over more hypervisors",
            )
        else:
            yield ok(subject, figures)


def _conflicts(spec: ClusterSpec, facts: HypervisorFacts) -> Iterator[Finding]:
    if facts.machines is None:
        return
    own = own_machines(spec, facts.machines)
    own_ids = {vm.vm_id for vm in own.values()}
    others = [vm for vm in facts.machines if vm.vm_id not in own_ids]
    found = [
        finding
        for machine in machines(spec)
        for other in others
        for finding in _between(machine, other)
    ]
    found += list(_virtual_address(spec, facts.machines))
    yield from found
    blind = sorted({vm.node for vm in others if not vm.is_config_known})
    if blind:
        yield warning(
            "conflicts",
            f"the machines of {', '.join(blind)} could not be read for MAC and IP addresses",
            "Bring the hypervisor back, or check by hand",
        )
    if not found:
        yield ok("conflicts", f"{len(others)} other machines, none in the way; {len(own)} are ours")


def _between(machine: Machine, other: VirtualMachine) -> Iterator[Finding]:
    subject = f"machine {machine.name}"
    bearer = f"{other.name} ({other.vm_id} on {other.node})"
    taken = partial(error, subject)
    if other.vm_id == machine.vm_id and is_aborted_clone(other):
        # A run that was killed a moment ago has left it going; the plan waits, and judges then.
        yield warning(
            subject,
            f"a clone into VMID {machine.vm_id} is going on, or was aborted",
            "Nothing yet: the plan waits for its end, and says what to do if it was aborted",
        )
    elif other.vm_id == machine.vm_id:
        yield taken(
            f"VMID {machine.vm_id} belongs to {bearer}, which is not of this cluster",
            "Choose another proxmox.first_vm_id, or remove that machine",
        )
    elif other.name == machine.name:
        yield taken(f"its name is borne by {bearer}", "Rename that machine, or choose another name")
    if machine.mac_address in other.mac_addresses:
        yield taken(
            f"MAC address {machine.mac_address} belongs to {bearer}",
            "Give that machine another one",
        )
    if machine.address in other.addresses:
        yield taken(
            f"address {machine.address} belongs to {bearer}",
            "Choose another address in the spec, or remove it from that machine",
        )


def _virtual_address(spec: ClusterSpec, found: Iterable[VirtualMachine]) -> Iterator[Finding]:
    virtual = spec.control_plane.virtual_ip
    for vm in found:
        if virtual in vm.addresses:
            yield error(
                "virtual address",
                f"{virtual} belongs to {vm.name} ({vm.vm_id} on {vm.node})",
                "Choose another control_plane.virtual_ip",
            )
