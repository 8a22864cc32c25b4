from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.errors import InvalidSpec
from domain.inventory import ArtifactSource, build_inventory, hosts_of, inventory_diff
from domain.machines import machines
from domain.specs import EXAMPLE, parse_spec

CASES = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "inventory_differences.yaml").read_text()
)
SOURCE = ArtifactSource("https://mirror.example.org/rke2/")


def merged(base: Any, change: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return {
        key: merged(base.get(key), change[key]) if key in change else base[key] for key in base
    } | {key: value for key, value in change.items() if key not in base}


def inventory(change: dict[str, Any] | None = None) -> dict[str, Any]:
    spec = parse_spec(merged(copy.deepcopy(EXAMPLE), change or {}))
    found = machines(spec)
    return build_inventory(spec, found, {m.name: m.address for m in found}, SOURCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_a_changed_description_changes_only_what_follows_from_it(case: dict[str, Any]) -> None:
    found = [str(change) for change in inventory_diff(inventory(), inventory(case["change"]))]
    assert found == case["differences"]


def test_the_same_description_gives_the_same_bytes() -> None:
    first = yaml.safe_dump(inventory(), sort_keys=False)
    assert first == yaml.safe_dump(inventory(), sort_keys=False)


def test_a_document_that_went_through_yaml_is_no_difference() -> None:
    document = inventory()
    assert inventory_diff(yaml.safe_load(yaml.safe_dump(document)), document) == []


def test_without_an_earlier_inventory_all_of_it_is_added() -> None:
    assert [str(change) for change in inventory_diff(None, inventory())] == ["added all"]


def test_exactly_one_server_starts_the_cluster() -> None:
    servers = inventory()["all"]["children"]["rke2_servers"]["hosts"]
    assert [name for name, host in servers.items() if host["rke2_is_first"]] == ["demo-server-1"]


def test_every_server_has_its_own_vrrp_priority() -> None:
    servers = inventory()["all"]["children"]["rke2_servers"]["hosts"].values()
    assert len({host["vip_priority"] for host in servers}) == len(servers)


def test_the_document_holds_no_word_for_a_secret() -> None:
    text = json.dumps(inventory()).lower()
    assert not [word for word in ("token", "password", "private", "secret_id") if word in text]


def test_machines_without_an_address_are_all_named() -> None:
    spec = parse_spec(EXAMPLE)
    found = machines(spec)
    with pytest.raises(InvalidSpec) as error:
        build_inventory(spec, found, {found[0].name: found[0].address}, SOURCE)
    assert len(error.value.problems) == len(found) - 1


def test_a_machine_at_another_address_is_refused() -> None:
    spec = parse_spec(EXAMPLE)
    found = machines(spec)
    addresses = {m.name: m.address for m in found} | {"demo-server-2": "10.90.0.99"}
    with pytest.raises(InvalidSpec, match=r"demo-server-2: answers at 10\.90\.0\.99"):
        build_inventory(spec, found, addresses, SOURCE)


def test_hosts_come_servers_first_with_their_addresses() -> None:
    assert next(iter(hosts_of(inventory()).items())) == ("demo-server-1", "10.90.0.51")
    assert list(hosts_of(inventory()))[-1] == "demo-worker-2"
