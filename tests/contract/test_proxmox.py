"""What the product relies on in Proxmox VE; true of the simulator and of a real cluster alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blocks.proxmox import ProxmoxApi
from domain.errors import NotFound

POOL = "infraflows-contract"


@pytest.fixture
def pool(api: ProxmoxApi) -> Iterator[str]:
    yield POOL
    api.delete_pool(POOL)


def test_the_version_has_a_major_number(api: ProxmoxApi) -> None:
    assert api.version().major >= 8


def test_privileges_are_told_by_path(api: ProxmoxApi) -> None:
    privileges = api.privileges()
    assert privileges
    assert all(path.startswith("/") for path in privileges)


def test_the_cluster_is_quorate_and_counts_its_members(api: ProxmoxApi) -> None:
    quorum = api.quorum()
    assert quorum.is_quorate
    assert 1 <= quorum.members_online <= quorum.members


def test_online_hypervisors_tell_cores_and_memory(api: ProxmoxApi) -> None:
    online = [node for node in api.nodes() if node.is_online]
    assert online
    assert all(node.cores > 0 and node.memory_bytes > 2**30 for node in online)
    assert all(0 <= node.memory_free_mib <= node.memory_bytes // 2**20 for node in online)


def test_storages_tell_content_and_space(api: ProxmoxApi) -> None:
    node = next(node.name for node in api.nodes() if node.is_online)
    storages = api.storages(node)
    assert any("images" in storage.content for storage in storages)
    assert all(s.free_bytes <= s.total_bytes for s in storages if s.is_active)


def test_a_pool_is_made_once_and_removed_once(api: ProxmoxApi, pool: str) -> None:
    assert api.create_pool(pool, "contract suite") is True
    assert api.create_pool(pool, "contract suite") is False
    assert ("contract suite") in [p.comment for p in api.pools() if p.name == pool]
    assert api.delete_pool(pool) is True
    assert api.delete_pool(pool) is False


def test_machines_are_listed_with_their_configuration(api: ProxmoxApi) -> None:
    found = api.machines()
    assert found
    assert all(vm.vm_id >= 100 and vm.node for vm in found)
    templates = [vm for vm in found if vm.is_template]
    assert templates
    assert any(vm.mac_addresses for vm in templates)


def test_a_machine_that_does_not_exist_is_not_found(api: ProxmoxApi) -> None:
    with pytest.raises(NotFound):
        api.machine(999_999_990)


def test_the_configuration_of_an_absent_machine_is_not_found(api: ProxmoxApi) -> None:
    node = next(node.name for node in api.nodes() if node.is_online)
    with pytest.raises(NotFound, match=r"^Unable to read the configuration of machine 999999990: "):
        api.config(999_999_990, node)


def test_deleting_an_absent_machine_succeeds(api: ProxmoxApi) -> None:
    node = next(node.name for node in api.nodes() if node.is_online)
    assert api.delete_machine(999_999_990, node, expected_name="absent") is False
