"""What every test that breaks something shares: one lab and small clusters.

Clusters of different tests have different names, addresses and VMIDs; each is cleared by force
before and after its test, and whatever a test broke is mended.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from lab import network
from lab.driver import Driver
from lab.layout import Layout
from lab.small_cluster import SmallCluster, plain_spec

LAB_TIMEOUT_SECONDS = 600


def _lab(action: str, *options: str) -> None:
    argv = [sys.executable, "-m", "lab.cli", action, *options]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=LAB_TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    """The environment's lab, set up; one that was not up before is taken away at the end."""
    layout = Layout.from_environment()
    was_up = network.network_exists(layout.instance)
    if not was_up:
        _lab("up")
    made = Driver(layout)
    made.clear_faults()
    made.set_up()
    yield made
    if not was_up:
        _lab("down", "--purge")


@pytest.fixture
def make_cluster(driver: Driver) -> Iterator[Callable[..., SmallCluster]]:
    """Make small clusters of a test; their pools are empty before, and nothing is left after."""
    made: list[SmallCluster] = []

    def make(name: str, servers: int = 1, workers: int = 0, index: int = 0) -> SmallCluster:
        cluster = SmallCluster(driver, plain_spec(name, servers, workers, index))
        cluster.clear()
        made.append(cluster)
        return cluster

    try:
        yield make
    finally:
        driver.clear_faults()
        driver.set_gate("automatic")
        driver.start_worker()
        for cluster in made:
            cluster.clear()
