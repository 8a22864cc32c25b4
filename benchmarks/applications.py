"""The command `python -m benchmarks.applications`: so many teams push at once; how long it takes.

In a lab with one cluster each team pushes an `app.yaml` to a GitLab project of its own: webhooks,
gateway, worker and flows do the rest, all at once. Promises that what is called independent was
looked for in every system with its administrator's rights, and that everything is taken off again.
A set in which anything failed ends with an error, and writes no page.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
import yaml

from benchmarks.__main__ import EXPECTED, PAGE, PARTIAL, ROOT
from benchmarks.applications_figures import (
    AppResults,
    AppTimes,
    Failures,
    Together,
    applications_section,
    read_applications,
    with_applications_section,
)
from benchmarks.applications_look import answers, look
from benchmarks.applications_picture import applications_picture
from benchmarks.applications_runs import (
    ApplicationsFailed,
    Limited,
    Run,
    Say,
    Team,
    connect,
    dismiss,
    make_teams,
    moment,
    most_at_once,
    onboarded,
    push_all,
    rows_of,
    take_off,
)
from benchmarks.flow_runs import bootstrap
from benchmarks.machine import this_machine
from benchmarks.own_lab import alone, forget_the_shell, own_lab
from benchmarks.results import Machine
from lab.driver import Driver
from lab.layout import Layout

FIGURES = ROOT / "benchmarks" / "results_applications.json"
PICTURE = ROOT / "docs" / "pictures" / "applications.svg"
DEMO = ROOT / "deployments" / "environments" / "lab.yaml"
COMPLETE = frozenset({1})
"""Numbers of applications without which the page is not written."""
SECONDS_FOR_EACH, SECONDS_AT_LEAST = 90.0, 600.0


def measured_set(driver: Driver, count: int, say: Say) -> Together:
    """Let so many teams push at once, look at what came of it, and take everything off."""
    teams = make_teams(driver, count)
    is_off = False
    try:
        connect(driver, teams)
        say(f"{count} projects are made and connected")
        load = os.getloadavg()[0]
        pushed = push_all(driver, teams)
        first = min(began for began, _ in pushed.values())
        say(f"{count} teams have pushed")
        patience = max(SECONDS_AT_LEAST, SECONDS_FOR_EACH * count)
        runs = onboarded(driver, teams, first, patience)
        say(f"{count} applications run")
        failures = _interference(driver, teams, say)
        removed = take_off(driver, teams)
        is_off = True
        left = look(driver.layout, []).left([team.name for team in teams])
        say(f"{count} applications are off; left: {left or 'nothing'}")
    finally:
        _clear(driver, teams, say, is_off=is_off)
    failures = failures.model_copy(update={"left": len(left)})
    return Together(
        apps=[_times(driver, team, pushed, runs, removed) for team in teams],
        most_runs_at_once=most_at_once(list(runs.values())),
        load_average=round(load, 1),
        wall_seconds=_span(first, max(moment(run["end_time"]) for run in runs.values())),
        offboard_wall_seconds=_span(
            min(moment(run["created"]) for run in removed.values()),
            max(moment(run["end_time"]) for run in removed.values()),
        ),
        failures=failures,
    )


def _clear(driver: Driver, teams: Sequence[Team], say: Say, *, is_off: bool) -> None:
    """Leave the lab as it was, after a failure too; the first error is the one that counts."""
    try:
        if not is_off:
            take_off(driver, teams)
        dismiss(driver, teams)
    except Exception as error:
        say(f"not taken away: {', '.join(team.name for team in teams)} ({error})")
        if is_off:
            raise


def _interference(driver: Driver, teams: Sequence[Team], say: Say) -> Failures:
    """Look whether each application is itself and nobody else."""
    apps = [team.name for team in teams]
    told, seen = answers(driver.layout, apps), look(driver.layout, apps)
    groups = [[t.name for t in teams if t.has_database is wanted] for wanted in (False, True)]
    wrong = {app: said for app, said in told.items() if said != app}
    strangers = seen.strangers()
    for what in (wrong, strangers, seen.unsynced):
        if what:
            say(f"wrong: {what}")
    return Failures(
        not_synced=len(seen.unsynced),
        wrong_answers=len(wrong),
        named_by_others=len(strangers),
        unequal_quotas=seen.unequal_quotas(group for group in groups if group),
    )


def _span(begin: datetime, end: datetime) -> float:
    return round((end - begin).total_seconds(), 2)


def _times(
    driver: Driver,
    team: Team,
    pushed: Mapping[str, tuple[datetime, datetime]],
    runs: Mapping[str, Run],
    removed: Mapping[str, Run],
) -> AppTimes:
    run, off = runs[team.name], removed[team.name]
    began, done = pushed[team.name]
    # GitLab may deliver before the team's own command has ended.
    created = moment(run["created"])
    done = min(done, created)
    running, end = moment(run["start_time"]), moment(run["end_time"])
    return AppTimes(
        name=team.name,
        has_database=team.has_database,
        push_seconds=_span(began, done),
        hook_seconds=_span(done, created),
        queue_seconds=_span(created, running),
        run_seconds=_span(running, end),
        steps=rows_of(driver, run, "steps", "step"),
        phases=rows_of(driver, run, "phases", "phase"),
        offboard_seconds=_span(moment(off["start_time"]), moment(off["end_time"])),
    )


def _machine() -> Machine:
    machine = this_machine()
    versions = {name: machine.versions[name] for name in ("Python", "prefect", "Kubernetes")}
    return machine.model_copy(update={"versions": versions})


@contextmanager
def _lab(say: Say, *, is_up: bool, is_kept: bool) -> Iterator[Driver]:
    """Yield a lab with its cluster: the environment's, or one of the benchmark's own."""
    if is_up:
        yield Driver(Layout.from_environment())
        return
    forget_the_shell()
    with own_lab(say, is_kept=is_kept, logs=PARTIAL / "lab-log") as layout:
        driver = Driver(layout)
        driver.set_up()
        spec: dict[str, Any] = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
        say(f"the cluster is there: {bootstrap(driver, spec).whole_seconds:.0f} s")
        yield driver


def _measured(
    counts: Sequence[int], known: Sequence[Together], *, is_up: bool, is_kept: bool, limit: int
) -> AppResults:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    sets = [each for each in known if each.count not in counts]
    with alone(), _lab(say, is_up=is_up, is_kept=is_kept) as driver:
        for count in counts:
            with Limited(driver, limit if 0 < limit < count else None):
                sets.append(measured_set(driver, count, say))
            results = AppResults(machine=_machine(), sets=sets)
            results.store(PARTIAL / FIGURES.name)
            if sets[-1].failures.count:
                raise ApplicationsFailed(f"{count} applications at once: {sets[-1].failures!r}")
    return results


def _counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if not word.isdigit() or not 1 <= int(word) <= 999]
    if wrong:
        raise typer.BadParameter(f"{', '.join(wrong)}: give numbers from 1 to 999.")
    return sorted({int(word) for word in words})


def write_page(results: AppResults | None) -> None:
    """Write the section of the committed page, and its picture."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_applications_section(page, results), encoding="utf-8")
    if results is not None:
        PICTURE.write_text(applications_picture(results), encoding="utf-8")


def main(
    apps: Annotated[str, typer.Option(help="Numbers of applications at once.")] = "1,5,20",
    runs_at_once: Annotated[
        int, typer.Option(help="Most runs that the worker executes at once; 0 for no limit.")
    ] = 0,
    add: Annotated[
        bool, typer.Option("--add", help="Keep what was measured last of other numbers.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up.")] = False,
    lab_that_is_up: Annotated[
        bool,
        typer.Option("--lab-that-is-up", help="Use the environment's lab and its demo cluster."),
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Measure nothing; write the page anew.")
    ] = False,
) -> None:
    """Measure how long applications take that are pushed at once, and whether they interfere."""
    if render:
        write_page(read_applications(FIGURES))
        return
    wanted = _counts(apps)
    last = read_applications(PARTIAL / FIGURES.name) if add else None
    known = last.sets if last else []
    try:
        results = _measured(wanted, known, is_up=lab_that_is_up, is_kept=keep, limit=runs_at_once)
    except (*EXPECTED, ApplicationsFailed) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"\n{applications_section(results)}")
    if {each.count for each in results.sets} >= COMPLETE:
        results.store(FIGURES)
        write_page(results)
        print(f"\nWritten: {FIGURES}, {PAGE}, {PICTURE}")
    else:
        print(f"\nThe page needs {sorted(COMPLETE)}: the figures are in {PARTIAL} only.")


if __name__ == "__main__":
    typer.run(main)
