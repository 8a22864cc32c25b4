"""The command `python -m benchmarks.leak_drill`: how long a leaked prefix lives, by its size.

In a lab of the benchmark's own the secrets of a prefix are made, `rotate-secrets/leak` is started
on it as an operator would, and afterwards every old and every new value is tried by hand, as it
were. Promises Prefect's own times, that making and trying the values is not in them, and a page
that is written by a complete measurement only. A drill in which anything failed ends with an error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.__main__ import EXPECTED, PAGE, PARTIAL, ROOT
from benchmarks.flow_runs import times_of
from benchmarks.leak_drill_figures import (
    DrillFigures,
    DrillResults,
    drill_section,
    read_drills,
    with_drill_section,
)
from benchmarks.leak_drill_picture import growth_picture
from benchmarks.leak_drill_secrets import PARTS, Drill
from benchmarks.machine import this_machine
from benchmarks.own_lab import Say, alone, forget_the_shell, own_lab
from benchmarks.results import FlowTimes, Machine
from lab.bare_services import BareRedis, bare_redis
from lab.driver import Driver
from lab.layout import ENVIRONMENT, Layout
from lab.services.https_probe import request
from lab.services.namespace import inside

FIGURES = ROOT / "benchmarks" / "results_leak_drill.json"
PICTURE = ROOT / "docs" / "pictures" / "leak-drill.svg"
LEAK = "rotate-secrets/leak"
LEDGER = "rotation.jsonl"
COMPLETE = frozenset({20, 200})
"""Numbers of secrets without which the page is not written."""


class DrillFailed(Exception):
    """A secret was not rotated, or a value is not what it should be. The text holds no value."""


def measured_drill(driver: Driver, cache: BareRedis, count: int, say: Say) -> DrillFigures:
    """Make so many secrets, let the flow rotate them, and try all values."""
    drill = Drill(driver.layout, cache, count)
    began = time.monotonic()
    drill.seed()
    old = drill.values()
    refused = [path for path, is_good in drill.accepted(old).items() if not is_good]
    if refused:
        raise DrillFailed(f"Unable to begin the drill: {refused[0]} does not work.")
    say(f"{count} secrets are made and in use: {time.monotonic() - began:.0f} s")
    load = os.getloadavg()[0]
    leak = {"kind": "prefix", "value": drill.prefix}
    run = driver.start_with(LEAK, {"environment": ENVIRONMENT, "leak": leak})
    times = times_of(driver, run)
    say(f"{count} secrets are rotated: {times.whole_seconds:.1f} s, {times.phases}")
    new = drill.values()
    tried = (drill.accepted(old), drill.accepted(new))
    found = _figures(driver, run, drill, times, tried).model_copy(update={"load_average": load})
    same = sum(old[path] == new[path] for path in drill.paths)
    if same or found.failures:
        raise DrillFailed(f"The drill of {count} failed: {same} unchanged; {found!r}")
    drill.forget()
    return found


def _figures(
    driver: Driver,
    run: str,
    drill: Drill,
    times: FlowTimes,
    accepted: tuple[dict[str, bool], dict[str, bool]],
) -> DrillFigures:
    table = driver.artifacts(run)[f"{ENVIRONMENT}-rotation-secrets"]
    states = {row["path"]: row["state"] for row in table}
    proved = _proved(drill.layout, run)
    old, new = accepted
    return DrillFigures(
        classes=dict.fromkeys(PARTS.values(), len(drill.apps)),
        times=times,
        class_seconds={
            kind: median(float(row["seconds"] or 0) for row in table if row["class"] == kind)
            for kind in PARTS.values()
        },
        not_rotated=sum(states.get(path) != "✔ rotated" for path in drill.paths),
        not_proved=len(set(drill.paths) - proved),
        old_accepted=sum(old.values()),
        new_refused=sum(not is_good for is_good in new.values()),
    )


def _proved(layout: Layout, run: str) -> set[str]:
    """Return the paths of whose old values the ledger holds a proof of death by this run."""
    text = (layout.ledger_directory / LEDGER).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return {
        str(line["target"])
        for line in lines
        if (line["run_id"], line["step"], line["outcome"]) == (run, "prove dead", "dead")
    }


def _machine(layout: Layout) -> Machine:
    machine = this_machine()
    health = request(layout, "GET", f"{layout.openbao_url}/v1/sys/health").json()
    versions = {name: machine.versions[name] for name in ("Python", "prefect")}
    return machine.model_copy(update={"versions": {**versions, "OpenBao": health["version"]}})


def _measured(counts: list[int], *, is_kept: bool) -> DrillResults:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    forget_the_shell()
    drills: list[DrillFigures] = []
    with (
        alone(),
        own_lab(say, is_kept=is_kept, logs=PARTIAL / "lab-log") as layout,
        tempfile.TemporaryDirectory() as directory,
        inside(layout.namespace_path),
        bare_redis(Path(directory)) as cache,
    ):
        driver = Driver(layout)
        driver.set_up()
        for count in counts:
            drills.append(measured_drill(driver, cache, count, say))
            results = DrillResults(machine=_machine(layout), drills=drills)
            results.store(PARTIAL / FIGURES.name)
    return results


def _counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if not word.isdigit() or not int(word)]
    wrong += [word for word in words if word not in wrong and int(word) % len(PARTS)]
    if wrong:
        raise typer.BadParameter(f"{', '.join(wrong)}: give multiples of {len(PARTS)}.")
    return sorted({int(word) for word in words})


def write_page(results: DrillResults | None) -> None:
    """Write the drill's section of the committed page, and its picture."""
    PAGE.write_text(with_drill_section(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results is not None:
        PICTURE.write_text(growth_picture(results), encoding="utf-8")


def main(
    secrets: Annotated[str, typer.Option(help="Numbers of secrets.")] = "20,200,2000",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up.")] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Measure nothing; write the page anew.")
    ] = False,
) -> None:
    """Measure how long it takes until every secret below a leaked prefix is dead."""
    if render:
        write_page(read_drills(FIGURES))
        return
    wanted = _counts(secrets)
    try:
        results = _measured(wanted, is_kept=keep)
    except (*EXPECTED, DrillFailed) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"\n{drill_section(results)}")
    if set(wanted) >= COMPLETE:
        results.store(FIGURES)
        write_page(results)
        print(f"\nWritten: {FIGURES}, {PAGE}, {PICTURE}")
    else:
        print(f"\nThe page needs {sorted(COMPLETE)}: the figures are in {PARTIAL} only.")


if __name__ == "__main__":
    typer.run(main)
