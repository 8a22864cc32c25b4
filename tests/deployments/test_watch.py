"""What a terminal shows of a run: everything, within 80 columns."""

from __future__ import annotations

import io
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from rich.console import Console

from deployments.watch import View, _plain_line, closing, picture, waiting_hint
from domain.host_reports import HostEvent, TaskStatus, running_reports, table_rows
from domain.phases import BOOTSTRAP_WEIGHTS, PhaseState, RunProgress

COLUMNS = 80
HOSTS = [f"demo-server-{i}" for i in (1, 2, 3)] + ["demo-worker-1", "demo-worker-2"]


def run_in(kind: StateType, name: str = "") -> FlowRun:
    state: State[Any] = State(type=kind, name=name or kind.value.title())
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="bootstrap demo", state=state)


@pytest.fixture
def configuring() -> View:
    """A run in the middle of its configuration, with the longest texts that occur."""
    progress = RunProgress(BOOTSTRAP_WEIGHTS)
    for name in ("preflight", "plan", "gate", "apply", "inventory"):
        progress.phases[name].state = PhaseState.DONE
        progress.phases[name].seconds = 113.94
        progress.phases[name].summary = "15 findings, 2 warnings, no errors; plan 74ccff90a5e5"
    progress.phases["configure"].state = PhaseState.RUNNING
    events = [
        HostEvent(host, "Put the distribution in place and start it", TaskStatus.STARTED, "rke2")
        for host in HOSTS[1:]
    ]
    failed = HostEvent(HOSTS[0], "Start the server", TaskStatus.FAILED, "rke2", 1.0, "x" * 200)
    rows = table_rows(running_reports(HOSTS, [failed, *events]), 13)
    return View(run_in(StateType.RUNNING), progress.rows(), rows, percent=42.0)


def drawn(thing: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=COLUMNS, force_terminal=True, color_system=None).print(thing)
    return out.getvalue()


def test_a_running_run_fits_and_shows_phases_and_hosts(configuring: View) -> None:
    text = drawn(picture(configuring, 61.0))
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert "bootstrap demo  Running  42 %  61 s" in text
    assert "▶ running" in text
    assert "demo-worker-2" in text
    assert "✘ failed" in text
    for heading in ("phase", "state", "seconds", "summary", "host", "progress", "changed", "task"):
        assert heading in text


def test_a_long_summary_folds_and_a_hosts_task_keeps_to_its_line(configuring: View) -> None:
    text = drawn(picture(configuring, 61.0))
    assert text.count("74ccff90a5e5") == 5
    assert "rke2: Start the server: xx" in text
    assert "…" in text
    assert len([line for line in text.splitlines() if "demo-" in line]) == len(HOSTS)


def test_the_end_fits_and_says_where_to_go_on(configuring: View) -> None:
    configuring.nodes = [
        {
            "name": host,
            "role": "server",
            "hypervisor": "pve1",
            "address": "10.90.0.51",
            "version": "v1.36.3+rke2r1",
            "state": "NotReady",
        }
        for host in HOSTS
    ]
    out = io.StringIO()
    console = Console(file=out, width=COLUMNS, force_terminal=True, color_system=None)
    closing(configuring, console, "http://127.0.0.1:4200", ["Remove it: infraflows run x"])
    tables, _, rest = out.getvalue().partition("Running: ")
    assert max(map(len, tables.splitlines())) <= COLUMNS
    assert "NotReady" in tables
    assert f"Run: http://127.0.0.1:4200/runs/flow-run/{configuring.run.id}" in rest
    assert "Remove it: infraflows run x" in rest


def test_a_line_without_a_terminal_names_the_hosts_that_are_at_work(configuring: View) -> None:
    line, told = _plain_line(configuring)
    assert line.startswith(" 42 %  Running configure [demo-server-2 0 %, ")
    assert "demo-server-1" not in line
    assert told == "Running configure"


def test_progress_alone_is_no_news_for_a_log(configuring: View) -> None:
    _, before = _plain_line(configuring)
    configuring.percent = 43.0
    assert _plain_line(configuring)[1] == before


def test_a_run_that_waits_says_how_to_answer_it() -> None:
    paused = run_in(StateType.PAUSED)
    assert f"infraflows approve {paused.id}" in (waiting_hint(View(paused)) or "")
    assert waiting_hint(View(run_in(StateType.RUNNING))) is None
