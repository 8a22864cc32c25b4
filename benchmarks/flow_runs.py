"""Runs the product's flows as an operator would, and reads their own figures.

Promises times of Prefect and of the run's phases artifact, never of this process' clock, and a
light hand: while a run is timed it is asked for its state once a second and for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from benchmarks.results import FlowTimes
from lab.driver import Driver, DriverFailed

POLL_SECONDS = 1.0
TIMEOUT_SECONDS = 3600.0
_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _ended(driver: Driver, run: str) -> Mapping[str, Any]:
    """Wait for the end of a run, approving the plan that it shows at the gate."""
    until = time.monotonic() + TIMEOUT_SECONDS
    is_approved = False
    while True:
        seen: Mapping[str, Any] = driver.api("GET", f"flow_runs/{run}")
        kind = (seen.get("state") or {}).get("type")
        if kind == "COMPLETED":
            return seen
        if kind in _FINAL:
            raise DriverFailed(f"a measured run did not complete.\n{driver.explain(run)}")
        if kind == "PAUSED" and not is_approved:
            driver.approve(run, approver="benchmark")
            is_approved = True
        if time.monotonic() > until:
            raise DriverFailed(f"a measured run takes too long.\n{driver.explain(run)}")
        time.sleep(POLL_SECONDS)


def timed_run(driver: Driver, deployment: str, spec: Mapping[str, Any]) -> FlowTimes:
    """Run a deployment to its good end."""
    return _timed(driver, deployment, spec)[1]


def _timed(driver: Driver, deployment: str, spec: Mapping[str, Any]) -> tuple[str, FlowTimes]:
    run = driver.start(deployment, spec)
    return run, times_of(driver, run)


def times_of(driver: Driver, run: str) -> FlowTimes:
    """Wait for the good end of a run that was started, and return its figures."""
    seen = _ended(driver, run)
    created, running, end = (_moment(seen[key]) for key in ("created", "start_time", "end_time"))
    return FlowTimes(
        start_seconds=round((running - created).total_seconds(), 2),
        phases=dict(driver.view(run).seconds),
        whole_seconds=round((end - created).total_seconds(), 2),
    )


def bootstrap(driver: Driver, spec: Mapping[str, Any]) -> FlowTimes:
    """Build the cluster."""
    return timed_run(driver, "bootstrap-cluster/lab", spec)


def unchanged_bootstrap(driver: Driver, spec: Mapping[str, Any]) -> FlowTimes:
    """Run again on the finished cluster; a run that changes anything is no figure of this kind."""
    run, times = _timed(driver, "bootstrap-cluster/lab", spec)
    rows = driver.artifacts(run)[f"{spec['name']}-phases"]
    found = {row["phase"]: row["summary"] for row in rows}
    if found["record"] != "no change":
        raise DriverFailed(f"the second run changed something.\n{driver.explain(run)}")
    return times


def decommission(driver: Driver, spec: Mapping[str, Any]) -> FlowTimes:
    """Remove the cluster, and see that the pool is empty for who comes next."""
    times = timed_run(driver, "decommission-cluster/lab", spec)
    left = driver.inventory().of(str(spec["name"])).lines()
    if left:
        raise DriverFailed("the removal left something:\n" + "\n".join(left))
    return times


def start_samples(driver: Driver, spec: Mapping[str, Any], count: int) -> list[float]:
    """Return seconds from creation to Running of flows that have nothing to do."""
    return [timed_run(driver, "decommission-cluster/lab", spec).start_seconds for _ in range(count)]
