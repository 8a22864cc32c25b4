"""Workers come and go with the clusters that OpenBao knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.errors import PermanentError, Unreachable
from lab import clusters
from lab.argocd.__main__ import Seats, ports
from lab.layout import ARGOCD_PORT, Layout


class Recorder:
    """A worker that says what was done with it."""

    def __init__(self, name: str, kubeconfig: str) -> None:
        self.name, self.kubeconfig = name, kubeconfig
        self.steps, self.stops = 0, 0
        self.error: Exception | None = None

    def step(self) -> None:
        self.steps += 1
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self.stops += 1


class Watch:
    """`watch_clusters` in a thread, over clusters that the test names."""

    def __init__(self) -> None:
        self.clusters: dict[str, str] = {}
        self.is_openbao_up = True
        self.made: list[Recorder] = []
        self.gone: list[str] = []
        self.ending = threading.Event()

    def kubeconfigs(self, _layout: Layout, known: set[str]) -> dict[str, str | None]:
        if not self.is_openbao_up:
            raise OSError("sealed")
        return {n: None if n in known else k for n, k in self.clusters.items()}

    def make(self, name: str, kubeconfig: str) -> Recorder:
        self.made.append(Recorder(name, kubeconfig))
        return self.made[-1]

    def until(self, is_met: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 20
        while not is_met():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def watch(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    found = Watch()
    monkeypatch.setattr(clusters, "cluster_kubeconfigs", found.kubeconfigs)
    monkeypatch.setattr(clusters, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(clusters, "STEP_SECONDS", 0.01)
    monkeypatch.setattr(clusters, "LOST_SECONDS", 0.2)
    thread = threading.Thread(
        target=clusters.watch_clusters,
        args=(layout, found.make, found.ending),
        kwargs={"forget": found.gone.append},
    )
    thread.start()
    yield found
    found.ending.set()
    thread.join(20)
    assert all(worker.stops for worker in found.made)


def test_a_cluster_gets_a_worker_that_ends_with_it(watch: Watch) -> None:
    watch.clusters["demo"] = "k1"
    watch.until(lambda: watch.made and watch.made[0].steps > 2)
    del watch.clusters["demo"]
    watch.until(lambda: watch.gone == ["demo"])

    assert watch.made[0].kubeconfig == "k1"
    assert watch.made[0].stops == 1


def test_another_cluster_of_the_same_name_is_met_with_its_own_kubeconfig(watch: Watch) -> None:
    watch.clusters["demo"] = "k1"
    watch.until(lambda: watch.made and watch.made[0].steps)
    watch.clusters["demo"] = "k2"
    watch.made[0].error = PermanentError("Unable to trust it: another CA. Read it again.")
    watch.until(lambda: len(watch.made) > 1 and watch.made[1].steps)

    assert watch.made[1].kubeconfig == "k2"
    assert watch.made[0].stops == 1


def test_a_cluster_that_is_silent_for_long_loses_its_containers_and_may_come_back(
    watch: Watch,
) -> None:
    watch.clusters["demo"] = "k1"
    watch.until(lambda: watch.made and watch.made[0].steps)
    worker = watch.made[0]
    worker.error = Unreachable("Unable to reach it: no answer. Wait.")
    watch.until(lambda: worker.stops)
    worker.error, before = None, worker.steps
    watch.until(lambda: worker.steps > before + 2)

    assert len(watch.made) == 1


def test_while_openbao_is_away_the_known_clusters_are_looked_after(watch: Watch) -> None:
    watch.clusters["demo"] = "k1"
    watch.until(lambda: watch.made and watch.made[0].steps)
    watch.is_openbao_up = False
    before = watch.made[0].steps
    watch.until(lambda: watch.made[0].steps > before + 5)

    assert (watch.gone, watch.made[0].stops) == ([], 0)


def test_a_cluster_keeps_its_ports_until_it_is_gone(tmp_path: Path) -> None:
    seats = Seats(tmp_path / "ports.json")
    assert [seats.index(name) for name in ("a", "b", "a")] == [0, 1, 0]

    again = Seats(tmp_path / "ports.json")
    again.free("a")
    assert [again.index(name) for name in ("b", "c")] == [1, 0]


def test_no_two_clusters_share_a_port() -> None:
    used = [
        port
        for index in range(5)
        for found in [ports(index)]
        for port in (found.api, found.api_metrics, found.repo, found.repo_metrics, found.redis)
    ]

    assert len(set(used)) == len(used)
    assert ports(0).api == ARGOCD_PORT
