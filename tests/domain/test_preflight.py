"""What the preflight finds on sites of every kind, as YAML cases."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.findings import Level, errors, sentence
from domain.hypervisors import (
    GIB,
    ApiVersion,
    HypervisorFacts,
    Node,
    Quorum,
    Storage,
    VirtualMachine,
    holds,
)
from domain.machines import machines
from domain.preflight import (
    AddressFacts,
    ArtifactFacts,
    DnsFacts,
    OpenBaoFacts,
    SiteFacts,
    ToolFacts,
    check,
)
from domain.specs import EXAMPLE, ClusterSpec, parse_spec

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent.parent / "cases" / "preflight.yaml").read_text(encoding="utf-8")
)
ADMIN = (
    "Sys.Audit VM.Allocate VM.Audit VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit "
    "VM.Config.Disk VM.Config.HWType VM.Config.Memory VM.Config.Network VM.Config.Options "
    "VM.PowerMgmt VM.Monitor Pool.Audit Pool.Allocate Datastore.AllocateSpace Datastore.Audit "
    "SDN.Use"
)
GOOD: dict[str, Any] = {
    "hypervisor": {
        "version": "8.4.1",
        "privileges": {"/": dict.fromkeys(ADMIN.split(), True)},
        "quorum": {"is_quorate": True, "members_online": 3, "members": 3},
        "nodes": {name: {} for name in ("pve1", "pve2", "pve3")},
        "storages": {name: {} for name in ("pve1", "pve2", "pve3")},
        "machines": {9000: {"name": "debian-12-cloud", "is_template": True, "has_agent": True}},
        "unknown": {},
    },
    "openbao": {"is_reachable": True, "is_sealed": False, "version": "2.7.2"},
    "dns": {"is_reachable": True, "zone_exists": True, "record": None},
    "tools": {"tofu": "1.12.6", "proxmox provider": "0.111.1", "ansible": "2.19", "ssh": "9.2"},
    "artifacts": {"is_reachable": True, "has_version": True},
    "addresses": [],
}


def merged(base: Any, change: dict[Any, Any]) -> Any:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and value:
            merged(base[key], value)
        else:
            base[key] = copy.deepcopy(value)
    return base


def _machine(spec: ClusterSpec, vm_id: int, given: dict[str, Any]) -> VirtualMachine:
    macs = {m.name: m.mac_address for m in machines(spec)}
    known = {k: v for k, v in given.items() if k not in ("mac_of", "addresses", "tags")}
    return VirtualMachine(
        vm_id=vm_id,
        node=known.pop("node", "pve1"),
        status="running",
        mac_addresses=frozenset({macs[given["mac_of"]]} if "mac_of" in given else ()),
        addresses=frozenset(given.get("addresses", ())),
        tags=frozenset(given.get("tags", ())),
        **known,
    )


def _storage(node: str, given: dict[str, Any]) -> Storage:
    return Storage(
        node=node,
        name="vmstore",
        kind="zfspool",
        content=frozenset(given.get("content", ["images", "rootdir"])),
        is_active=given.get("is_active", True),
        is_enabled=given.get("is_enabled", True),
        is_shared=given.get("is_shared", True),
        total_bytes=500 * GIB,
        free_bytes=given.get("free_gib", 500) * GIB,
    )


def _hypervisor(spec: ClusterSpec, given: dict[str, Any]) -> HypervisorFacts:
    found = given["machines"]
    return HypervisorFacts(
        version=ApiVersion(given["version"]),
        privileges=given["privileges"],
        quorum=Quorum("lab", **given["quorum"]),
        nodes=tuple(
            Node(
                name,
                node.get("is_online", True),
                16,
                node.get("memory_gib", 64) * GIB,
                node.get("used_gib", 2) * GIB,
            )
            for name, node in given["nodes"].items()
        ),
        storages=tuple(
            _storage(node, storage)
            for node, storage in given["storages"].items()
            if storage is not None
        ),
        pools=(),
        machines=None
        if found is None
        else tuple(_machine(spec, vm_id, vm) for vm_id, vm in found.items()),
        unknown=given["unknown"],
    )


def site(spec: ClusterSpec, change: dict[str, Any]) -> SiteFacts:
    given = merged(copy.deepcopy(GOOD), change)
    openbao = given["openbao"]
    if openbao is not None:
        openbao["missing_paths"] = tuple(openbao.get("missing_paths", ()))
    return SiteFacts(
        hypervisor=_hypervisor(spec, given["hypervisor"]) if given["hypervisor"] else None,
        openbao=OpenBaoFacts(**openbao) if openbao else None,
        dns=DnsFacts(**given["dns"]) if given["dns"] else None,
        tools=ToolFacts(given["tools"]) if given["tools"] else None,
        artifacts=ArtifactFacts(**given["artifacts"]) if given["artifacts"] else None,
        addresses=None
        if given["addresses"] is None
        else AddressFacts(frozenset(given["addresses"])),
    )


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_the_preflight_finds_exactly_what_is_wrong(case: dict[str, Any]) -> None:
    spec = parse_spec(merged(copy.deepcopy(EXAMPLE), case.get("spec", {})))
    findings = check(spec, site(spec, case["facts"]))
    found = [f"{f.level.value} | {sentence(f)}" for f in findings if f.level is not Level.OK]
    assert found == case["findings"]


def test_a_good_site_is_told_part_by_part() -> None:
    spec = parse_spec(EXAMPLE)
    findings = check(spec, site(spec, {}))
    assert not errors(findings)
    subjects = {finding.subject for finding in findings}
    assert {"Proxmox VE", "quorum", "rights", "conflicts", "OpenBao", "DNS", "tools"} <= subjects


def test_every_finding_that_is_not_good_says_what_to_do() -> None:
    for case in CASES:
        spec = parse_spec(merged(copy.deepcopy(EXAMPLE), case.get("spec", {})))
        for finding in check(spec, site(spec, case["facts"])):
            assert (finding.level is Level.OK) == (finding.fix == ""), finding


def test_a_privilege_that_does_not_reach_below_is_not_held_below() -> None:
    privileges = {"/": {"Sys.Audit": False, "VM.Audit": True}}
    assert holds(privileges, "/", "Sys.Audit")
    assert not holds(privileges, "/nodes/pve1", "Sys.Audit")
    assert holds(privileges, "/vms/100", "VM.Audit")
    assert not holds({}, "/vms/100", "VM.Audit")
