"""What belongs to a run as such: its progress, the lock on its target and the pause switch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from domain.errors import PermanentError, PolicyViolation
from domain.specs import ClusterSpec
from flows.bootstrap_cluster import bootstrap_cluster
from flows.decommission_cluster import decommission_cluster
from tasks.runs import progress
from tasks.runs.exclusive import (
    LEASE_SECONDS,
    RENEWAL_ATTEMPTS,
    RENEWED_EVERY_SECONDS,
    exclusive,
)
from tasks.runs.pause_switch import lift_pause, set_pause
from tasks.runs.progress import ProgressBoard

WEIGHTS = {"first": 25, "second": 75}
Artifacts = Callable[[FlowRun], dict[str, list[Any]]]


def board_run(body: Callable[[ProgressBoard], None]) -> str:
    """Run `body` with a board in a flow of its own; returns the run's name."""
    name = f"board {uuid4()}"

    @flow(name="board", flow_run_name=name, persist_result=False)
    def run() -> None:
        body(ProgressBoard("demo", WEIGHTS))

    run(return_state=True)
    return name


def two_phases(board: ProgressBoard) -> None:
    with board.phase("first") as phase:
        phase.summary = "all of it"
    with board.phase("second"):
        pass


def test_progress_is_one_table_and_one_bar_updated_in_place(
    run_named: Callable[[str], FlowRun], artifacts_of: Artifacts
) -> None:
    found = artifacts_of(run_named(board_run(two_phases)))
    assert sorted(found) == ["demo-phases", "demo-progress"]
    assert [len(versions) for versions in found.values()] == [1, 1]
    assert found["demo-progress"] == [100.0]
    rows = found["demo-phases"][0]
    assert [(row["phase"], row["state"]) for row in rows] == [
        ("first", "✔ done"),
        ("second", "✔ done"),
    ]
    assert rows[0]["summary"] == "all of it"


def test_a_phase_that_fails_is_shown_with_its_reason(
    run_named: Callable[[str], FlowRun], artifacts_of: Artifacts
) -> None:
    def fail(board: ProgressBoard) -> None:
        with board.phase("first"):
            pass
        with board.phase("second"):
            raise PermanentError("Unable to clone: the storage is full.\nFree some space.")

    run = run_named(board_run(fail))
    assert run.state
    assert run.state.is_failed()
    found = artifacts_of(run)
    assert found["demo-phases"][0][1]["state"] == "✘ failed"
    assert found["demo-phases"][0][1]["summary"] == "Unable to clone: the storage is full."
    assert found["demo-progress"] == [25.0]


def test_progress_within_a_phase_moves_the_bar(
    run_named: Callable[[str], FlowRun], artifacts_of: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MIN_INTERVAL_SECONDS", 0.0)
    seen: list[Any] = []
    name = f"board {uuid4()}"

    @flow(name="board", flow_run_name=name, persist_result=False)
    def run() -> None:
        board = ProgressBoard("demo", WEIGHTS)
        with board.phase("second"):
            board.advance("second", 0.4)
            seen.extend(artifacts_of(run_named(name))["demo-progress"])

    run()
    assert seen == [30.0]


def test_a_server_that_takes_no_progress_does_not_stop_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("no route")

    done = []

    @flow(name="board", persist_result=False)
    def run() -> None:
        monkeypatch.setattr(progress, "get_client", refuse)
        two_phases(ProgressBoard("demo", WEIGHTS))
        monkeypatch.undo()
        done.append(True)

    run()
    assert done == [True]


def test_a_second_run_on_a_target_waits_for_the_first(
    in_background: Callable[[Callable[[], Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    target, order = f"lab-{uuid4()}", []
    inside, may_end = Event(), Event()

    @flow(name="first", persist_result=False)
    def first() -> None:
        with exclusive(target):
            inside.set()
            may_end.wait(30)
            order.append("first ends")

    @flow(name="second", persist_result=False)
    def second() -> None:
        with exclusive(target):
            order.append("second begins")

    one = in_background(first)
    assert inside.wait(30)
    two = in_background(second)
    time.sleep(1.5)
    assert order == []
    may_end.set()
    one.join()
    two.join()
    assert order == ["first ends", "second begins"]


def test_runs_on_other_targets_do_not_wait(
    in_background: Callable[[Callable[[], Any]], Any],
) -> None:
    inside, may_end = Event(), Event()

    @flow(name="one target", persist_result=False)
    def holds() -> None:
        with exclusive(f"lab-{uuid4()}"):
            inside.set()
            may_end.wait(30)

    @flow(name="another target", persist_result=False)
    def passes() -> str:
        with exclusive(f"lab-{uuid4()}"):
            return "passed"

    held = in_background(holds)
    assert inside.wait(30)
    assert passes() == "passed"
    may_end.set()
    held.join()


def test_a_run_that_failed_lets_its_target_go() -> None:
    target = f"lab-{uuid4()}"

    @flow(name="holder", persist_result=False)
    def holds(fails: bool) -> str:
        with exclusive(target):
            if fails:
                raise PermanentError("Unable to go on.")
            return "passed"

    assert holds(True, return_state=True).is_failed()
    assert holds(False) == "passed"


@pytest.fixture
def paused() -> Iterator[None]:
    set_pause("lab", "a storage is being replaced", "Grace")
    yield
    lift_pause("lab")


@pytest.mark.usefixtures("paused")
@pytest.mark.parametrize("verb", [bootstrap_cluster, decommission_cluster])
def test_a_paused_environment_is_refused_before_anything_is_looked_at(
    verb: Callable[[ClusterSpec], None], site: Any, spec: ClusterSpec
) -> None:
    with pytest.raises(PolicyViolation, match=r"a storage is being replaced\. Ask Grace"):
        verb(spec)
    assert site.acts == []
    assert site.steps == []


def test_a_pause_ends(site: Any, spec: ClusterSpec) -> None:
    set_pause("lab", "for a moment", "Grace")
    lift_pause("lab")
    lift_pause("lab")
    bootstrap_cluster(spec)
    assert "apply" in site.acts


def test_a_lock_is_renewed_early_and_a_busy_server_does_not_cost_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []
    renew = SyncPrefectClient.renew_concurrency_lease

    def busy(client: Any, **lease: Any) -> None:
        asked.append(time.monotonic())
        if 1 < len(asked) <= RENEWAL_ATTEMPTS:
            raise httpx.ReadTimeout("the server is busy")
        renew(client, **lease)

    monkeypatch.setattr(SyncPrefectClient, "renew_concurrency_lease", busy)
    monkeypatch.setattr("prefect.concurrency._leases._RENEWAL_RETRY_MAX_DELAY", 0.01)

    @flow(name="holds long", persist_result=False)
    def holds() -> str:
        with exclusive(f"lab-{uuid4()}"):
            deadline = time.monotonic() + RENEWED_EVERY_SECONDS + 10
            while len(asked) <= RENEWAL_ATTEMPTS and time.monotonic() < deadline:
                time.sleep(0.1)
        return "held"

    assert holds() == "held"
    assert len(asked) == RENEWAL_ATTEMPTS + 1
    assert asked[1] - asked[0] < LEASE_SECONDS / 2
