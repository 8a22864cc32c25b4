"""Each fault of the lab: the product gets through it, or ends in one clear error and then heals.

Each test proves that its fault was met, and that in the end exactly what the spec says exists.
Faults that hit the making of machines meet a new cluster; the others share one that is whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from lab.driver import Driver, RunView
from lab.services.credentials import PROXMOX_TOKEN_ID
from lab.small_cluster import SmallCluster, plain_spec

pytestmark = [pytest.mark.lab, pytest.mark.chaos]
MakeCluster = Callable[..., SmallCluster]
WAIT_SECONDS = 300.0
TEMPLATE_ID = 9000


def _fired(driver: Driver, name: str) -> int:
    return sum(int(fault.get("fired", 0)) for fault in driver.faults() if fault["name"] == name)


def _wait_until_fired(driver: Driver, run: str, name: str, times: int = 1) -> None:
    driver.wait_until(run, lambda _: _fired(driver, name) >= times, f"{name} to hit", WAIT_SECONDS)


def _held_at_the_gate(cluster: SmallCluster) -> str:
    """Start a run and hold it between plan and apply, where a fault then meets a sound plan."""
    driver = cluster.driver
    driver.set_gate("approval")
    run = cluster.start()
    driver.wait_until(run, lambda view: view.state == "PAUSED", "the gate", WAIT_SECONDS)
    driver.set_gate("automatic")
    return run


# --- faults that meet a cluster that is being made -------------------------------------------


def test_clones_that_fail_half_way_are_made_again_in_the_same_run(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    """The first leaves its disk behind, the second nothing."""
    cluster = make_cluster("clone-fails")
    driver.set_fault("clone-fails", count=1, leave="disk")
    driver.set_fault("clone-fails", count=1, leave="nothing")
    view = cluster.build()
    assert _fired(driver, "clone-fails") == 2
    cluster.require_whole(view)


def test_a_locked_half_of_a_clone_is_named_with_the_command_that_removes_it(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("clone-locked")
    (vm_id,) = cluster.wanted
    driver.set_fault("clone-fails", count=1, leave="machine")
    cluster.fail()
    view = cluster.fail()
    assert f"qm unlock {vm_id}" in view.message
    assert f"qm destroy {vm_id}" in view.message
    cluster.clear_machines()
    cluster.require_whole(cluster.build())


def test_a_full_storage_is_refused_before_and_during_and_leaves_nothing_half_made(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("storage-full")
    driver.set_fault("storage-full", storage="vmstore")
    before = cluster.fail()
    assert before.phases["preflight"] == "failed"
    assert "storage vmstore" in before.message
    driver.clear_faults()
    run = _held_at_the_gate(cluster)
    driver.set_fault("storage-full", storage="vmstore")
    driver.approve(run)
    during = cluster.fail(run)
    assert during.phases["apply"] == "failed"
    assert "out of space" in during.message
    assert driver.inventory().of(cluster.name).machines == ()
    assert cluster.disks_of_no_machine() == []
    driver.clear_faults()
    cluster.require_whole(cluster.build())


def test_a_task_that_hangs_is_waited_for_and_not_begun_again(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("task-hangs")
    driver.set_fault("task-hangs", type="qmclone", count=1)
    run = cluster.start()
    _wait_until_fired(driver, run, "task-hangs")
    time.sleep(5)
    held = driver.view(run)
    assert held.phases["apply"] == "running"
    clones = [task for task in driver.inventory().running_tasks if task.startswith("qmclone")]
    assert len(clones) == 1
    driver.clear_faults()
    cluster.require_whole(driver.complete(run))


def test_an_api_that_fails_at_a_rate_is_got_through(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("api-error")
    driver.set_fault("api-error", status="596", rate=0.03)
    driver.set_fault("api-error", status="500", rate=0.02, method="GET")
    driver.set_fault("api-error", status="timeout", rate=0.01, seconds=3)
    view = cluster.build()
    assert _fired(driver, "api-error") > 0
    driver.clear_faults()
    cluster.require_whole(view)


def test_a_quorum_that_is_lost_and_comes_back_during_the_apply_is_waited_for(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("quorum-lost")
    run = _held_at_the_gate(cluster)
    driver.set_fault("quorum-lost")
    driver.approve(run)
    _wait_until_fired(driver, run, "quorum-lost")
    driver.clear_faults()
    cluster.require_whole(driver.complete(run))


def test_a_template_that_somebody_else_locks_is_waited_for(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("machine-locked")
    driver.set_fault("machine-locked", vmid=TEMPLATE_ID)
    run = cluster.start()
    _wait_until_fired(driver, run, "machine-locked")
    driver.clear_faults()
    cluster.require_whole(driver.complete(run))


# --- faults that meet a cluster that is whole ------------------------------------------------


@pytest.fixture(scope="module")
def built(driver: Driver) -> Iterator[SmallCluster]:
    """One whole cluster; each test that uses it leaves it whole."""
    cluster = SmallCluster(driver, plain_spec("lasting", index=1))
    driver.clear_faults()
    cluster.clear()
    cluster.build()
    yield cluster
    driver.clear_faults()
    cluster.clear()


@pytest.fixture
def lasting(driver: Driver, built: SmallCluster) -> Iterator[SmallCluster]:
    """The whole cluster, without faults before and after."""
    driver.clear_faults()
    yield built
    driver.clear_faults()


def _heals(cluster: SmallCluster) -> RunView:
    """Take the faults away; the same spec converges and no machine is made anew."""
    driver = cluster.driver
    driver.clear_faults()
    view = cluster.build()
    cluster.require_whole(view)
    assert view.phases["apply"] == "skipped", "machines were changed to heal a fault"
    return view


def test_a_lost_quorum_is_refused_before_anything_is_changed(
    driver: Driver, lasting: SmallCluster
) -> None:
    driver.set_fault("quorum-lost")
    view = lasting.fail()
    assert view.phases["preflight"] == "failed"
    assert "quorum" in view.message


def test_a_revoked_token_ends_in_an_error_that_says_how_to_renew_it(
    driver: Driver, lasting: SmallCluster
) -> None:
    driver.set_fault("token-revoked", token=PROXMOX_TOKEN_ID)
    view = lasting.fail()
    assert "the API token was refused" in view.message
    assert "OpenBao" in view.message
    assert view.phases["plan"] == "waiting"


def test_an_offline_hypervisor_is_named_and_its_cluster_heals_when_it_is_back(
    driver: Driver, lasting: SmallCluster
) -> None:
    """It answered the API too: its address is refused, and the others are asked."""
    driver.set_fault("node-offline", node="pve1")
    view = lasting.fail()
    assert view.phases["preflight"] == "failed"
    assert "hypervisor pve1: is offline" in view.message
    _heals(lasting)


def test_a_guest_that_hangs_for_a_while_is_waited_for(
    driver: Driver, lasting: SmallCluster
) -> None:
    (vm_id,) = lasting.wanted
    driver.set_fault("guest-hangs", vmid=vm_id)
    run = lasting.start()
    driver.wait_phase(run, "inventory")
    time.sleep(10)
    assert driver.view(run).phases["inventory"] == "running"
    driver.clear_faults()
    lasting.require_whole(driver.complete(run))


def test_a_guest_that_hangs_during_configure_is_found_out_and_reached_again(
    driver: Driver, lasting: SmallCluster
) -> None:
    ((vm_id, name),) = lasting.wanted.items()
    run = lasting.start()
    driver.wait_phase(run, "configure")
    driver.wait_until(
        run,
        lambda _: "ansible-playbook" in driver.leftover_children().values(),
        "a playbook",
        WAIT_SECONDS,
    )
    driver.set_fault("guest-hangs", vmid=vm_id)

    def is_found_out(_: RunView) -> bool:
        lines = driver.log_lines(run)
        return any("Unable to reach machines by SSH" in line and name in line for line in lines)

    driver.wait_until(run, is_found_out, "the hang to be found out", WAIT_SECONDS)
    driver.clear_faults()
    lasting.require_whole(driver.complete(run))


def test_a_full_disk_of_a_guest_fails_by_name_and_heals(
    driver: Driver, lasting: SmallCluster
) -> None:
    ((vm_id, name),) = lasting.wanted.items()
    driver.set_fault("guest-disk-full", vmid=vm_id)
    view = lasting.fail()
    assert name in view.message
    assert "space" in view.message
    _heals(lasting)


def test_a_sealed_openbao_is_told_before_anything_is_changed(
    driver: Driver, lasting: SmallCluster
) -> None:
    driver.set_fault("openbao-sealed")
    view = lasting.fail()
    assert view.phases["preflight"] == "failed"
    assert "sealed" in view.message
    assert "bao operator unseal" in view.message


def test_an_openbao_that_is_sealed_during_a_run_ends_it_clearly_and_the_next_run_heals(
    driver: Driver, lasting: SmallCluster
) -> None:
    run = lasting.start()
    driver.wait_phase(run, "configure")
    driver.set_fault("openbao-sealed")
    view = lasting.fail(run)
    assert "sealed" in view.message
    _heals(lasting)
