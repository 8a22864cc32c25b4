"""Teams that push at once, and the runs that follow, as Prefect and the teams see them.

Promises times of Prefect's own, a light hand (one question every two seconds for all runs), and
that whatever happened the applications, their projects and their webhooks are taken away again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import yaml

from lab.driver import Driver, DriverFailed
from lab.layout import ENVIRONMENT
from lab.onboarding_demo import GROUP, ensure_project, gitlab, push

POLL_SECONDS = 2.0
PUSHES_AT_ONCE = 20
IMAGE = "registry.example.org/benchmark/answer:1.0.0"
DATABASE_EVERY = 4
POOL = "work_pools/infraflows"
_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
Run = Mapping[str, Any]


class ApplicationsFailed(Exception):
    """An application is not as it should be. The text names it."""


@dataclass(frozen=True)
class Team:
    """One application and its project."""

    name: str
    project_id: int
    has_database: bool

    def app_file(self) -> str:
        """Return its `app.yaml`: one stage, an image that is there already."""
        wish: dict[str, Any] = {"database": {"connections": 5}} if self.has_database else {}
        return yaml.safe_dump(
            {
                "name": self.name,
                "team": GROUP,
                "repository": f"{GROUP}/{self.name}",
                "owners": ["owner@lab.infraflows.internal"],
                "image": IMAGE,
                "port": 8080,
                "environments": {"development": {}},
                **wish,
            },
            sort_keys=False,
        )


def moment(text: str) -> datetime:
    """Return a time of Prefect's."""
    return datetime.fromisoformat(text)


def names(count: int) -> list[str]:
    """Names of a set, of which none is a part of another's."""
    return [f"set{count}-app{number:03d}" for number in range(1, count + 1)]


def make_teams(driver: Driver, count: int) -> list[Team]:
    """Make the projects of a set."""
    teams = []
    for number, name in enumerate(names(count), start=1):
        made = ensure_project(driver.layout, GROUP, name)
        teams.append(Team(name, int(made["id"]), number % DATABASE_EVERY == 0))
    return teams


def connect(driver: Driver, teams: Sequence[Team]) -> None:
    """Connect the projects with the gateway, as an operator would."""
    started = [
        driver.start_with(
            "connect-project/default",
            {"environment": ENVIRONMENT, "project": f"{GROUP}/{team.name}"},
        )
        for team in teams
    ]
    completed(driver, started)


def push_all(driver: Driver, teams: Sequence[Team]) -> dict[str, tuple[datetime, datetime]]:
    """Push every `app.yaml` at once; returns when each push began and ended."""

    def one(team: Team) -> tuple[datetime, datetime]:
        began = datetime.now(UTC)
        files = {"app.yaml": team.app_file()}
        push(driver.layout, files, "feat: the app", group=GROUP, project=team.name)
        return began, datetime.now(UTC)

    with ThreadPoolExecutor(min(PUSHES_AT_ONCE, len(teams))) as threads:
        found = threads.map(one, teams)
        return {team.name: each for team, each in zip(teams, found, strict=True)}


def _runs(driver: Driver, wanted: Mapping[str, Any]) -> list[Run]:
    found: list[Run] = []
    while page := driver.api(
        "POST", "flow_runs/filter", {**wanted, "limit": 200, "offset": len(found)}
    ):
        found += page
    return found


def _kind(run: Run) -> str:
    return str((run.get("state") or {}).get("type"))


def onboarded(
    driver: Driver, teams: Sequence[Team], since: datetime, timeout_seconds: float
) -> dict[str, Run]:
    """Wait until every application's run by its webhook is completed."""
    deployment = driver.api("GET", "deployments/name/onboard-app/default")["id"]
    wanted = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"expected_start_time": {"after_": since.isoformat()}},
    }
    own, deadline = {team.name for team in teams}, time.monotonic() + timeout_seconds
    while True:
        runs = {
            name: run
            for run in _runs(driver, wanted)
            if (name := run["parameters"]["app"]["name"]) in own
        }
        _refuse_ended_badly(driver, runs.values())
        if len(runs) == len(own) and all(_kind(run) == "COMPLETED" for run in runs.values()):
            return runs
        if time.monotonic() > deadline:
            states = {name: _kind(runs[name]) if name in runs else "no run" for name in own}
            raise ApplicationsFailed(f"Not onboarded in {timeout_seconds:g} s: {states}")
        time.sleep(POLL_SECONDS)


def _refuse_ended_badly(driver: Driver, runs: Sequence[Run] | Any) -> None:
    for run in runs:
        if _kind(run) in _FINAL and _kind(run) != "COMPLETED":
            raise ApplicationsFailed(f"{run['name']}: {driver.explain(str(run['id']))}")


def completed(
    driver: Driver, started: Sequence[str], timeout_seconds: float = 3600.0
) -> dict[str, Run]:
    """Wait until all runs are completed, answering every gate as the lab's administrator."""
    approved: set[str] = set()
    deadline = time.monotonic() + timeout_seconds
    while True:
        runs = {str(r["id"]): r for r in _runs(driver, {"flow_runs": {"id": {"any_": started}}})}
        _refuse_ended_badly(driver, runs.values())
        for number, run in runs.items():
            if _kind(run) == "PAUSED" and number not in approved:
                with suppress(DriverFailed, KeyError, TypeError):  # it is asked again
                    driver.approve(number, approver="benchmark")
                    approved.add(number)
        if len(runs) == len(started) and all(_kind(r) == "COMPLETED" for r in runs.values()):
            return runs
        if time.monotonic() > deadline:
            raise ApplicationsFailed(f"Runs do not end: {[_kind(r) for r in runs.values()]}")
        time.sleep(POLL_SECONDS)


def most_at_once(runs: Sequence[Run]) -> int:
    """Return how many runs were Running at the same moment, at most."""
    changes = [(moment(run["start_time"]), 1) for run in runs]
    changes += [(moment(run["end_time"]), -1) for run in runs]
    return max(accumulate(change for _, change in sorted(changes)))


def take_off(driver: Driver, teams: Sequence[Team]) -> dict[str, Run]:
    """Off-board all at once; returns each one's run."""
    started = {
        team.name: driver.start_with(
            "offboard-app/default",
            {"environment": ENVIRONMENT, "name": team.name, "project_id": team.project_id},
        )
        for team in teams
    }
    runs = completed(driver, list(started.values()))
    return {name: runs[number] for name, number in started.items()}


def dismiss(driver: Driver, teams: Sequence[Team]) -> None:
    """Take webhooks and projects away, as an operator and the teams would."""
    started = [
        driver.start_with(
            "disconnect-project/default",
            {"environment": ENVIRONMENT, "project_id": team.project_id},
        )
        for team in teams
    ]
    completed(driver, started)
    for team in teams:
        gitlab(driver.layout, "DELETE", f"projects/{team.project_id}", absent_is_none=True)


def rows_of(driver: Driver, run: Run, table: str, key: str) -> dict[str, float]:
    """Return the seconds that a table of the run's own tells."""
    app = run["parameters"]["app"]["name"]
    rows = driver.artifacts(str(run["id"])).get(f"app-{app}-{table}", [])
    return {str(row[key]): float(row["seconds"] or 0) for row in rows}


class Limited:
    """The worker's pool takes so many runs at once while the block lasts; None changes nothing."""

    def __init__(self, driver: Driver, runs_at_once: int | None) -> None:
        """Remember what to set."""
        self._driver, self._limit = driver, runs_at_once
        self._before: int | None = None

    def __enter__(self) -> None:
        """Set the limit."""
        self._before = self._driver.api("GET", POOL)["concurrency_limit"]
        if self._limit is not None:
            self._driver.api("PATCH", POOL, {"concurrency_limit": self._limit})

    def __exit__(self, *_: object) -> None:
        """Set what was there before."""
        self._driver.api("PATCH", POOL, {"concurrency_limit": self._before})


Say = Callable[[str], None]
