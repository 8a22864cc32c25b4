"""What is done with machines that a run which was cut short has left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.adoption import StateEntry, Step, awaits_lock, decide, orphaned_disks
from domain.hypervisors import VirtualMachine, Volume
from domain.machines import machines
from domain.ownership import outside_the_spec, owns, tags
from domain.specs import EXAMPLE, parse_spec

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent.parent / "cases" / "adoptions.yaml").read_text(encoding="utf-8")
)
SPEC = parse_spec(EXAMPLE)
BY_ID = {machine.vm_id: machine for machine in machines(SPEC)}
NOW = 1_800_000_000.0


def found(vm_id: int, **given: Any) -> VirtualMachine:
    derived = BY_ID.get(vm_id)
    return VirtualMachine(
        vm_id=vm_id,
        name=given.get("name", derived.name if derived else f"other-{vm_id}"),
        node=given.get("node", derived.hypervisor if derived else "pve1"),
        status=given.get("status", "running"),
        is_template=given.get("is_template", False),
        pool=given.get("pool", "demo"),
        tags=frozenset(given.get("tags", ["infraflows", "cluster-demo"])),
        lock=given.get("lock"),
        mac_addresses=frozenset(given.get("macs", [derived.mac_address] if derived else [])),
        addresses=frozenset(given.get("addresses", [derived.address] if derived else [])),
        is_config_known=given.get("is_config_known", True),
    )


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_each_leftover_is_treated_as_it_must_be(case: dict[str, Any]) -> None:
    decisions = decide(
        SPEC,
        [found(vm_id, **given) for vm_id, given in case["found"].items()],
        {name: StateEntry(**entry) for name, entry in case["state"].items()},
    )
    told = [f"{d.step.value} {d.machine} {d.vm_id}: {d.reason}" for d in decisions]
    assert told == case["decisions"]


def test_nothing_that_may_have_been_part_of_a_cluster_is_ever_deleted() -> None:
    for machine in machines(SPEC):
        for pool in ("demo", None, "other"):
            for name in (machine.name, "web"):
                vm = found(machine.vm_id, pool=pool, name=name)
                steps = {d.step for d in decide(SPEC, [vm], {})}
                assert Step.DELETE not in steps


def test_a_machine_that_is_not_ours_is_never_touched() -> None:
    for address in ([], ["10.90.0.51"]):
        vm = found(200, name="web", pool="other", tags=[], addresses=address)
        assert [d.step for d in decide(SPEC, [vm], {})] == [Step.REFUSE]


def test_a_locked_machine_in_our_place_is_waited_for_whoever_it_is() -> None:
    nameless = found(200, name="VM200", pool=None, tags=[], lock="clone")
    elsewhere = found(777, lock="clone")
    assert awaits_lock(SPEC, [nameless, elsewhere, found(201)]) == [nameless]


@pytest.mark.parametrize(
    ("made_pool", "created_at", "is_ours"),
    [
        (True, None, True),
        (True, int(NOW) - 3600, True),
        (True, int(NOW) - 7 * 86400, False),
        (False, int(NOW) - 3600, False),
    ],
)
def test_an_orphaned_disk_is_ours_only_when_young_and_in_a_pool_that_we_made(
    made_pool: bool, created_at: int | None, is_ours: bool
) -> None:
    volume = Volume("vmstore:vm-200-disk-0", "pve1", 200, created_at)
    judged = orphaned_disks(SPEC, [], [volume], made_pool=made_pool, now_seconds=NOW)
    assert [disk.is_ours for disk in judged] == [is_ours]


def test_disks_of_machines_that_exist_and_of_other_places_are_no_orphans() -> None:
    volumes = [Volume("s:vm-200-disk-0", "pve1", 200), Volume("s:vm-777-disk-0", "pve1", 777)]
    assert not orphaned_disks(SPEC, [found(200)], volumes, made_pool=True, now_seconds=NOW)


def test_ownership_needs_vmid_name_and_mark() -> None:
    machine = BY_ID[200]
    assert owns(SPEC, machine, found(200))
    assert not owns(SPEC, machine, found(200, name="web"))
    assert not owns(SPEC, machine, found(200, pool=None, tags=[]))
    assert not owns(SPEC, BY_ID[201], found(200))


def test_machines_of_a_larger_spec_are_told_by_tag_and_name() -> None:
    larger = found(219, name="demo-worker-10")
    assert outside_the_spec(SPEC, [found(200), larger, found(300, name="demo-db")]) == [larger]


def test_tags_are_sorted_and_legal_in_proxmox() -> None:
    for machine in machines(SPEC):
        made = tags(SPEC.name, machine)
        assert made == sorted(made)
        assert all(tag.replace("-", "").isalnum() and tag.islower() for tag in made)
