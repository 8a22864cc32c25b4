"""A worker that is killed in any phase, and a run that is cancelled: the next run converges.

In each test the run's own artifact, read after the kill, proves that the phase was hit.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from domain.phases import BOOTSTRAP_WEIGHTS
from lab.driver import Driver, RunView
from lab.small_cluster import DECOMMISSION, SmallCluster, wait_until_no_children

pytestmark = [pytest.mark.lab, pytest.mark.chaos]
MakeCluster = Callable[..., SmallCluster]
PHASE_SECONDS = 600.0


def _wait(driver: Driver, what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PHASE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.05)


def _machine_is_being_made(cluster: SmallCluster) -> bool:
    """A clone runs: the configuration of its target exists from the start on."""
    entries = cluster.driver.proxmox().call("GET", "/cluster/resources", type="vm")
    return any(entry["vmid"] in cluster.wanted for entry in entries)


def _playbook_runs(cluster: SmallCluster) -> bool:
    return "ansible-playbook" in cluster.driver.leftover_children().values()


AT_WORK: dict[str, Callable[[SmallCluster], bool]] = {
    "apply": _machine_is_being_made,
    "configure": _playbook_runs,
}
"""What is waited for beyond the phase's begin, so that the kill comes in the middle of its work."""


@contextmanager
def _held(cluster: SmallCluster, phase: str) -> Iterator[None]:
    """Keep a phase that is over at once from ending: the gate by policy, the record by a lock."""
    driver = cluster.driver
    if phase == "gate":
        driver.set_gate("approval")
    if phase != "record":
        yield
        return
    with (driver.layout.ledger_directory / f"{cluster.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kill_in(cluster: SmallCluster, phase: str, *, is_machine_lost: bool = False) -> RunView:
    """Start a run, kill its worker in the phase, and return what the dead run shows."""
    driver = cluster.driver
    run = cluster.start()
    if phase == "record":
        driver.wait_phase(run, "verify", timeout_seconds=PHASE_SECONDS)
    with _held(cluster, phase):
        driver.wait_phase(run, phase, timeout_seconds=PHASE_SECONDS)
        if phase in AT_WORK:
            _wait(driver, f"the work of {phase}", lambda: AT_WORK[phase](cluster))
        driver.kill_worker(is_machine_lost=is_machine_lost)
        dead = driver.view(run)
    assert driver.flow_processes() == []
    assert dead.phases[phase] == "running", driver.explain(run)
    assert not dead.is_final
    driver.set_gate("automatic")
    return dead


@pytest.mark.parametrize("phase", BOOTSTRAP_WEIGHTS)
def test_a_worker_killed_in_any_phase_leaves_what_the_next_run_finishes(
    driver: Driver, make_cluster: MakeCluster, phase: str
) -> None:
    cluster = make_cluster(f"killed-{phase}")
    _kill_in(cluster, phase)
    wait_until_no_children(driver)
    driver.start_worker()
    driver.free_lock(cluster.name)
    cluster.require_whole(cluster.build())


def test_a_lost_worker_machine_is_got_over_without_help_once_its_lease_ended(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    """Everything dies at once: the locks of the run and of its state stay, nothing is put away."""
    cluster = make_cluster("lost")
    _kill_in(cluster, "apply", is_machine_lost=True)
    assert driver.leftover_children() == {}
    driver.start_worker()
    cluster.require_whole(cluster.build())


def test_a_cancelled_run_stops_its_programs_and_the_next_run_converges(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("cancelled")
    run = cluster.start()
    driver.wait_phase(run, "configure")
    _wait(driver, "a playbook", lambda: _playbook_runs(cluster))
    driver.cancel(run)
    ended = driver.wait_end(run)
    assert ended.state == "CANCELLED", driver.explain(run)
    wait_until_no_children(driver)
    assert driver.flow_processes() == []
    cluster.require_whole(cluster.build())


def test_a_decommission_killed_while_it_destroys_is_finished_by_the_next(
    driver: Driver, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster("killed-destroy")
    cluster.build()
    run = cluster.start(DECOMMISSION)
    driver.wait_until(run, lambda view: view.state == "PAUSED", "the gate", PHASE_SECONDS)
    driver.approve(run)
    driver.wait_phase(run, "destroy", timeout_seconds=PHASE_SECONDS)
    _wait(driver, "a destroy", lambda: "tofu" in driver.leftover_children().values())
    driver.kill_worker(is_machine_lost=False)
    assert driver.view(run).phases["destroy"] == "running"
    wait_until_no_children(driver)
    driver.start_worker()
    driver.free_lock(cluster.name)
    driver.destroy(cluster.spec)
    cluster.require_gone()
