"""Converging every application: what is started, what is left alone, and what is told.

Flow, lock, runs, parameters and artifacts are real, and so is the deployment that is started. What
stands in is the worker, which answers a run as the test says, and the journals in OpenBao.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling, Completed, Failed, Paused, Running, State

import flows.converge_apps
from deployments.setup import ensure_schedule
from domain.errors import NotFound, PermanentError, PolicyViolation
from domain.onboarding.app_spec import AppSpec
from domain.onboarding.saga import Attempt, Course, Journal, Version
from flows.converge_apps import converge_apps
from flows.offboard_app import offboard_app
from flows.onboard_app import onboard_app
from tasks.onboarding.remembered import Remembered
from tasks.runs import deployment_runs
from tasks.runs.deployment_runs import start_run
from tasks.runs.pause_switch import lift_pause, set_pause

ENVIRONMENT = "lab"
ENDED = "Flow run encountered an exception: PermanentError: Unable to onboard it: it is full."


def version(name: str) -> Version:
    app = AppSpec.model_validate(
        {
            "name": name,
            "team": "storefront",
            "repository": f"storefront/{name}",
            "owners": ["ada@example.org"],
            "kind": "python",
            "port": 8080,
            "environments": {"staging": {}, "production": {}},
        }
    )
    return Version(app=app, project_id=len(name))


def journal(name: str) -> Journal:
    return Journal(name=name, good=version(name))


@dataclass
class Worker:
    """Takes runs of onboard-app in the background and ends each as the test says."""

    fails: tuple[str, ...] = ()
    pauses: tuple[str, ...] = ()
    on_start: Callable[[str], None] = lambda _: None
    taken: dict[str, FlowRun] = field(default_factory=dict)
    most_at_once: int = 0

    def work(self) -> None:
        """Look once; a run is seen running for one look before it ends."""
        running = self._runs(StateType.RUNNING)
        waiting = self._runs(StateType.SCHEDULED)
        self.most_at_once = max(self.most_at_once, len(running) + len(waiting))
        for run in running:
            self._set(run, self._end(run.parameters["app"]["name"]))
        for run in waiting:
            name = run.parameters["app"]["name"]
            assert name not in self.taken, f"{name} was started twice"
            self.taken[name] = run
            self.on_start(name)
            self._set(run, Running())

    def _end(self, name: str) -> State[Any]:
        if name in self.pauses:
            return Paused(timeout_seconds=600)
        return Failed(message=ENDED) if name in self.fails else Completed()

    @staticmethod
    def _runs(kind: StateType) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[kind]))
                )
            )
        return [run for run in found if "app" in run.parameters]

    @staticmethod
    def _set(run: FlowRun, state: State[Any]) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, state, force=True)


@pytest.fixture(scope="module", autouse=True)
def _deployments() -> None:
    for flow in (onboard_app, offboard_app):
        flow.to_deployment("default").apply()  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    lift_pause(ENVIRONMENT)
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs():
            if run.state is not None and not run.state.is_final():
                client.set_flow_run_state(run.id, Completed(), force=True)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, in_background: Any) -> Iterator[Worker]:
    monkeypatch.setattr(flows.converge_apps, "POLL_SECONDS", 0.1)
    made, stopped = Worker(), threading.Event()

    def body() -> None:
        while not stopped.wait(0.05):
            made.work()

    running = in_background(body)
    yield made
    stopped.set()
    running.join()


@pytest.fixture
def remember(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(*journals: Journal, **unreadable: str) -> None:
        found = Remembered(list(journals), dict(unreadable))
        monkeypatch.setattr(flows.converge_apps, "remembered_applications", lambda _: found)

    return put


@pytest.fixture
def converge(run_named: Any, artifacts_of: Any) -> Callable[..., dict[str, dict[str, str]]]:
    """Run the flow; returns the rows of its table by application."""

    def run(name: str, error: Any = None, match: str = "", **options: Any) -> Any:
        body = converge_apps.with_options(flow_run_name=name)
        if error is None:
            body(ENVIRONMENT, **options)
        else:
            with pytest.raises(error, match=match):
                body(ENVIRONMENT, **options)
        shown = artifacts_of(run_named(name)).get("lab-convergence", [[]])
        return {row["app"]: row for row in shown[-1]}

    return run


def test_each_application_is_started_with_its_last_good_version_and_no_commit(
    worker: Worker, remember: Any, converge: Any
) -> None:
    remember(journal("cart"), journal("search"))
    rows = converge("all of them")
    assert set(worker.taken) == {"cart", "search"}
    for name, run in worker.taken.items():
        # What the journal remembers is what the flow takes.
        given: Any = onboard_app.validate_parameters(run.parameters)
        assert given["app"] == version(name).app
        assert (given["project_id"], given["commit"]) == (len(name), "")
        assert given["environment"] == ENVIRONMENT
        assert run.tags == ["trigger:convergence"]
        assert str(run.id) in rows[name]["run"]
        assert rows[name]["outcome"] == "✔ converged"


def test_only_a_few_run_at_a_time(worker: Worker, remember: Any, converge: Any) -> None:
    remember(*(journal(f"app-{number}") for number in range(5)))
    rows = converge("a few", at_once=2)
    assert len(worker.taken) == len(rows) == 5
    assert worker.most_at_once == 2


def test_all_failures_are_told_at_once_and_hold_nobody_up(
    worker: Worker, remember: Any, converge: Any
) -> None:
    worker.fails = ("bad-1", "bad-2")
    remember(journal("bad-1"), journal("bad-2"), journal("fine"), old="of another version")
    rows = converge(
        "two fail",
        PermanentError,
        r"(?s)3 of 4 applications.*bad-1: .*it is full\. \(http.*bad-2: .*old: of another version",
    )
    assert rows["fine"]["outcome"] == "✔ converged"
    assert rows["bad-1"]["outcome"] == "✘ failed"


def test_a_run_under_way_is_left_alone_and_linked(
    worker: Worker, remember: Any, converge: Any
) -> None:
    run_id, _ = start_run(
        "offboard-app/default", {"environment": ENVIRONMENT, "name": "leaving"}, "by a person"
    )
    other, _ = start_run(
        "offboard-app/default", {"environment": "elsewhere", "name": "staying"}, "elsewhere"
    )
    assert other != run_id
    remember(journal("leaving"), journal("staying"))
    rows = converge("one leaves")
    assert set(worker.taken) == {"staying"}
    assert rows["leaving"]["outcome"] == "= left alone"
    assert str(run_id) in rows["leaving"]["run"]


def test_a_run_that_hangs_in_its_cancellation_keeps_nobody_away(
    worker: Worker, remember: Any, converge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = start_run(
        "offboard-app/default", {"environment": ENVIRONMENT, "name": "hanging"}, "hangs"
    )
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Running(), force=True)
        client.set_flow_run_state(run_id, Cancelling(), force=True)
    remember(journal("hanging"))
    assert converge("being cancelled")["hanging"]["outcome"] == "= left alone"
    monkeypatch.setattr(deployment_runs, "STUCK_AFTER", timedelta(0))
    assert converge("cancelled long ago")["hanging"]["outcome"] == "✔ converged"


def test_a_dry_run_shows_what_would_run_and_starts_nothing(
    worker: Worker, remember: Any, converge: Any
) -> None:
    set_pause(ENVIRONMENT, "storage is being moved", "Ada")
    left = Attempt(target=None, course=Course.REMOVE, run_id="0badc0de-1")
    remember(journal("dry"), Journal(name="leaving", good=version("leaving"), attempt=left))
    rows = converge("dry", dry_run=True)
    assert rows["dry"]["outcome"] == "· would run"
    assert "offboard-app" in rows["leaving"]["note"]
    assert worker.taken == {}


def test_a_paused_environment_is_not_touched(worker: Worker, remember: Any, converge: Any) -> None:
    set_pause(ENVIRONMENT, "storage is being moved", "Ada")
    remember(journal("paused"))
    converge("paused", PolicyViolation, "storage is being moved")
    assert worker.taken == {}


def test_a_pause_in_the_middle_leaves_the_rest_alone(
    worker: Worker, remember: Any, converge: Any
) -> None:
    worker.on_start = lambda _: set_pause(ENVIRONMENT, "storage is being moved", "Ada")
    remember(journal("first"), journal("second"))
    rows = converge("half", at_once=1)
    assert set(worker.taken) == {"first"}
    assert rows["first"]["outcome"] == "✔ converged"
    assert rows["second"]["outcome"] == "= left alone"
    assert "storage is being moved" in rows["second"]["note"]


def test_a_run_that_waits_for_a_person_is_told_and_not_waited_for(
    worker: Worker, remember: Any, converge: Any
) -> None:
    worker.pauses = ("shrinking",)
    remember(journal("shrinking"), journal("plain"))
    rows = converge("waits", at_once=1)
    assert rows["shrinking"]["outcome"] == "! waits for a person's approval"
    assert rows["plain"]["outcome"] == "✔ converged"


def test_a_run_that_does_not_end_is_told_after_a_time(
    worker: Worker, remember: Any, converge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.converge_apps, "RUN_SECONDS", 0.0)
    monkeypatch.setattr(worker, "work", lambda: None)
    remember(journal("endless"))
    converge("endless", PermanentError, "it has not ended in 0 minutes")


def test_the_same_key_starts_no_second_run(worker: Worker) -> None:
    parameters = {"environment": ENVIRONMENT, "name": "once"}
    first: tuple[UUID, str] = start_run("offboard-app/default", parameters, "the same")
    assert start_run("offboard-app/default", parameters, "the same") == first


def test_a_deployment_that_is_not_there_is_told_with_what_to_do() -> None:
    with pytest.raises(NotFound, match="infraflows setup"):
        start_run("onboard-app/none", {}, "none")


def test_its_schedule_is_made_once_and_what_a_person_changed_stays(worker: Worker) -> None:
    converge_apps.to_deployment("default").apply()  # type: ignore[union-attr]
    name = "converge-apps/default"
    assert ensure_schedule(name, "site-a", "0 3 * * *", is_active=True) == "0 3 * * * UTC, active"
    assert ensure_schedule(name, "site-b", "5 4 * * *", is_active=False) == "5 4 * * * UTC, paused"
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(name)
        (first,) = (each for each in found.schedules if each.slug == "site-a")
        assert first.parameters == {"environment": "site-a"}
        client.update_deployment_schedule(found.id, first.id, active=False)
    assert ensure_schedule(name, "site-a", "0 9 * * *", is_active=True) == "as it was, paused"
