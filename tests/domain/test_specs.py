"""Specs that are wrong are refused with every problem; specs that are right give fixed machines."""

from __future__ import annotations

import copy
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidSpec
from domain.machines import Role, machines
from domain.specs import EXAMPLE, ClusterSpec, parse_spec

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent.parent / "cases" / "bad_specs.yaml").read_text(encoding="utf-8")
)


def changed(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    for key, value in change.items():
        if value == "__remove__":
            base.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            changed(base[key], value)
        else:
            base[key] = copy.deepcopy(value)
    return base


def spec_with(change: dict[str, Any]) -> ClusterSpec:
    return parse_spec(changed(copy.deepcopy(EXAMPLE), change))


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_a_bad_spec_is_refused_with_every_problem(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec_with(case["change"])
    assert list(caught.value.problems) == case["problems"]


def test_there_are_at_least_thirty_bad_specs_and_no_two_are_the_same() -> None:
    assert len(CASES) >= 30
    assert len({yaml.safe_dump(case["change"]) for case in CASES}) == len(CASES)


def test_every_problem_names_a_field_and_ends_with_what_to_do() -> None:
    for case in CASES:
        for problem in case["problems"]:
            field, _, rest = problem.partition(": ")
            assert field
            assert ". " in rest, problem


def test_the_example_is_a_right_spec_and_survives_a_round_trip() -> None:
    spec = parse_spec(EXAMPLE)
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert ClusterSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert spec.secrets_path == "clusters/demo"


def test_a_document_that_is_a_list_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="the document: is not a group of fields"):
        parse_spec([1, 2])


def test_one_server_without_workers_is_allowed() -> None:
    spec = spec_with(
        {"control_plane": {"count": 1}, "workers": {"count": 0, "first_address": None}}
    )
    assert spec.is_single_server
    assert [machine.name for machine in machines(spec)] == ["demo-server-1"]


def test_the_examples_machines_are_these() -> None:
    found = {m.name: (m.vm_id, m.hypervisor, m.address) for m in machines(parse_spec(EXAMPLE))}
    assert found == {
        "demo-server-1": (200, "pve1", "10.90.0.51"),
        "demo-server-2": (201, "pve2", "10.90.0.52"),
        "demo-server-3": (202, "pve3", "10.90.0.53"),
        "demo-worker-1": (210, "pve1", "10.90.0.61"),
        "demo-worker-2": (211, "pve2", "10.90.0.62"),
    }


sizes = st.builds(
    lambda servers, workers, nodes: {
        "control_plane": {"count": servers, "first_address": "10.0.0.10", "virtual_ip": "10.0.0.9"},
        "workers": {"count": workers, "first_address": "10.0.0.30"},
        "network": {"cidr": "10.0.0.0/24", "gateway": "10.0.0.1", "dns_servers": ["10.0.0.1"]},
        "platform": {"metallb": None},
        "proxmox": {"nodes": [f"pve{n}" for n in range(1, nodes + 1)]},
    },
    st.sampled_from([1, 3, 5, 7]),
    st.integers(0, 60),
    st.integers(1, 6),
)


@given(sizes)
def test_machines_never_share_an_identity(change: dict[str, Any]) -> None:
    spec = spec_with(change)
    found = machines(spec)
    assert found == machines(spec)
    for identity in ("name", "vm_id", "address", "mac_address"):
        values = [getattr(machine, identity) for machine in found]
        assert len(values) == len(set(values)), identity


@given(sizes)
def test_a_role_is_spread_evenly_over_the_hypervisors(change: dict[str, Any]) -> None:
    spec = spec_with(change)
    for role in Role:
        per_node = [
            sum(m.hypervisor == node and m.role is role for m in machines(spec))
            for node in spec.proxmox.nodes
        ]
        assert max(per_node) - min(per_node) <= 1


@given(sizes)
def test_every_machine_lies_in_the_network(change: dict[str, Any]) -> None:
    spec = spec_with(change)
    assert all(
        IPv4Address("10.0.0.0") < IPv4Address(m.address) < IPv4Address("10.0.0.255")
        for m in machines(spec)
    )
