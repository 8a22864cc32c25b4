"""Brings every application of an environment to its last good version, by the clock.

Exists because applications drift, certificates end, and runs are cut off while nobody looks.
Promises that each application is converged by the same flow that onboards it, in a run of its own,
a few at a time; that one application's trouble holds up nobody else's; and that the run fails in
the end with every failure at once. An application that a run is at already is left alone, one that
is being taken off is never brought back, and a plan that deletes waits for a person as always.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from domain.errors import LifecycleError, PermanentError, PolicyViolation, TemporaryError
from domain.onboarding.convergence import Convergence, End, UnderWay, convergences, problem_text
from domain.spec_fields import Name
from tasks.onboarding.remembered import remembered_applications
from tasks.runs.deployment_runs import LiveRun, RunLook, live_runs, look_at_run, start_run
from tasks.runs.exclusive import exclusive
from tasks.runs.pause_switch import refuse_if_paused
from tasks.runs.progress import LiveArtifact

NAME = "converge-apps"
DEPLOYMENT = "onboard-app/default"
TAGS = ("trigger:convergence",)
FLOWS_OF_AN_APP = ("onboard-app", "offboard-app", "deploy-app", "rollback-app")
POLL_SECONDS = 2.0
RUN_SECONDS = 3600.0
"""How long one application's run is waited for, its wait for a worker included."""
START_ATTEMPTS = 5

AppsAtOnce = Annotated[int, Field(ge=1, le=32)]


@flow(
    name=NAME,
    flow_run_name="converge the applications of {environment}",
    description="Brings every application of an environment to its last good version.",
    persist_result=False,
)
def converge_apps(environment: Name, at_once: AppsAtOnce = 4, dry_run: bool = False) -> None:
    """Converge every application that has a journal.

    Args:
        environment: Environment whose applications are looked at; names its blocks.
        at_once: Applications at a time. Each needs a place at the worker, beside this run's.
        dry_run: Show what would run and start nothing.

    Raises:
        PolicyViolation: the environment is paused. PermanentError: naming every application that
            could not be converged.
    """
    if dry_run:
        found = _look(environment)
        for each in found:
            if each.end is End.WAITS:
                each.end = End.WOULD_RUN
        _table(environment).show(_rows(found))
        return
    refuse_if_paused(environment)
    with exclusive(f"{environment}-applications"):
        _Convoy(environment, at_once).run(_look(environment))


def _look(environment: str) -> list[Convergence]:
    """Return every application and what is to be done with it."""
    remembered = remembered_applications(environment)
    under_way = [
        UnderWay(_app_of(run), run.flow, run.url)
        for run in live_runs(FLOWS_OF_AN_APP)
        if _environment_of(run) == environment and run.key != _key(_app_of(run))
    ]
    found = convergences(remembered.journals, remembered.unreadable, under_way)
    get_run_logger().info("%d applications are remembered.", len(found))
    return found


def _app_of(run: LiveRun) -> str:
    app = run.parameters.get("app")
    return str(app.get("name") if isinstance(app, Mapping) else run.parameters.get("name"))


def _environment_of(run: LiveRun) -> str:
    return str(run.parameters.get("environment"))


def _key(app: str) -> str:
    """Return what a run is started with: the same when this one is killed and started again."""
    return f"{NAME}-{flow_run.id}-{app}"


def _table(environment: str) -> LiveArtifact:
    return LiveArtifact(
        f"{environment}-convergence", "table", f"Convergence of the applications in {environment}"
    )


@dataclass
class _Running:
    """An application's run that is waited for."""

    app: Convergence
    run_id: UUID
    began: float


class _Convoy:
    """Starts runs as places come free, and waits for all of them; in the flow's own thread."""

    def __init__(self, environment: str, at_once: int) -> None:
        self._environment, self._at_once = environment, at_once
        self._table = _table(environment)
        self._running: list[_Running] = []

    def run(self, found: list[Convergence]) -> None:
        """Converge what waits.

        Raises:
            PermanentError: naming every application that could not be converged.
        """
        self._table.show(_rows(found))
        waiting = [each for each in found if each.end is End.WAITS]
        while waiting or self._running:
            while waiting and len(self._running) < self._at_once:
                self._start(waiting.pop(0))
            self._table.show(_rows(found))
            while self._running and not self._ended():
                time.sleep(POLL_SECONDS)
        self._table.show(_rows(found))
        if text := problem_text(self._environment, found):
            raise PermanentError(text)

    def _start(self, app: Convergence) -> None:
        if app.version is None:
            return
        parameters: dict[str, Any] = {
            "environment": self._environment,
            "app": app.version.app.model_dump(mode="json"),
            "project_id": app.version.project_id,
            "commit": "",
        }
        try:
            refuse_if_paused(self._environment)
            run_id, app.run_url = _started(parameters, _key(app.app))
        except PolicyViolation as error:
            app.finish(End.LEFT, str(error))
        except LifecycleError as error:
            app.finish(End.FAILED, str(error))
        else:
            app.end = End.RUNS
            self._running.append(_Running(app, run_id, time.monotonic()))

    def _ended(self) -> bool:
        """Look at what runs; true when something ended."""
        before = len(self._running)
        self._running = [each for each in self._running if not _has_ended(each)]
        return len(self._running) < before


def _started(parameters: Mapping[str, Any], key: str) -> tuple[UUID, str]:
    """Start a run; the key makes it the same run when an answer was lost."""
    for _ in range(START_ATTEMPTS - 1):
        try:
            return start_run(DEPLOYMENT, parameters, key, TAGS)
        except TemporaryError:
            time.sleep(POLL_SECONDS)
    return start_run(DEPLOYMENT, parameters, key, TAGS)


def _has_ended(running: _Running) -> bool:
    app = running.app
    waited = time.monotonic() - running.began
    try:
        look = look_at_run(running.run_id)
    except TemporaryError as error:
        if waited < RUN_SECONDS:
            return False
        app.finish(End.FAILED, str(error))
        return True
    except LifecycleError as error:
        app.finish(End.FAILED, str(error))
        return True
    app.seconds = look.seconds
    return _is_settled(app, look, waited)


def _is_settled(app: Convergence, look: RunLook, waited: float) -> bool:
    if look.is_ended:
        app.finish(End.CONVERGED if look.is_good else End.FAILED, "" if look.is_good else look.text)
    elif look.is_paused:
        app.finish(End.APPROVAL, "Look at its plan, then approve or reject it.")
    elif waited > RUN_SECONDS:
        text = f"it has not ended in {RUN_SECONDS / 60:.0f} minutes: {look.text}. Look at the run."
        app.finish(End.FAILED, text)
    else:
        return False
    return True


def _rows(found: Sequence[Convergence]) -> str:
    return json.dumps([each.cells() for each in found])
