"""A run as an operator watches it in a terminal: phases, hosts, elapsed time, and how it ended.

Reads what the UI reads, the run's artifacts, so that both tell the same. Promises to end when
the run ends, to print plain lines where there is no terminal, and to fit 80 columns.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from domain.errors import NotFound

POLL_SECONDS = 1.0
PLAIN_EVERY_SECONDS = 10.0
STYLES = {"✔": "green", "✘": "bold red", "▶": "yellow", "·": "dim", "–": "dim"}


@dataclass
class View:
    """What is known of a run at one moment."""

    run: FlowRun
    phases: Sequence[Mapping[str, Any]] = ()
    hosts: Sequence[Mapping[str, Any]] = ()
    nodes: Sequence[Mapping[str, Any]] = ()
    due: Sequence[Mapping[str, Any]] = ()
    secrets: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Mapping[str, Any]] = ()
    percent: float = 0.0
    keys: dict[str, str] = field(default_factory=dict)


def _rows(data: Any) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads(data) if isinstance(data, str) else data
    except ValueError:
        return []
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _is_bar_of_the_run(key: str) -> bool:
    return key.endswith("-progress") and not key.endswith("-hosts-progress")


def read_view(client: SyncPrefectClient, run_id: UUID) -> View:
    """Return the run and the content of its artifacts."""
    view = View(client.read_flow_run(run_id))
    artifacts = client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])),
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])),
    )
    for artifact in sorted(artifacts, key=lambda found: str(found.created)):
        key = artifact.key or ""
        view.keys[key] = str(artifact.id)
        if key.endswith("-phases"):
            view.phases = _rows(artifact.data)
        elif key.endswith("-hosts"):
            view.hosts = _rows(artifact.data)
        elif key.endswith("-nodes"):
            view.nodes = _rows(artifact.data)
        elif key.endswith("-rotation-due"):
            view.due = _rows(artifact.data)
        elif key.endswith("-rotation-secrets"):
            view.secrets = _rows(artifact.data)
        elif APP_KEY.fullmatch(key) and key.endswith("-steps"):
            view.steps = _rows(artifact.data)
        elif APP_KEY.fullmatch(key) and key.endswith("-checks"):
            view.checks = _rows(artifact.data)
        elif _is_bar_of_the_run(key) and isinstance(artifact.data, int | float):
            view.percent = float(artifact.data)
    return view


def table(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    columns: Sequence[str],
    *,
    is_one_line: bool = False,
) -> Table:
    """Return rows as a table; the last column takes what is left, and folds unless told not to."""
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        expand=is_one_line,  # then the others keep their width, and only the last one is cut
    )
    for column in columns:
        is_figure = column in ("seconds", "ok", "changed", "failed", "progress")
        drawn.add_column(
            column,
            justify="right" if is_figure else "left",
            no_wrap=is_one_line or column != columns[-1],
            overflow="ellipsis" if is_one_line else "fold",
            ratio=1 if is_one_line and column == columns[-1] else None,
        )
    for row in rows:
        cells = [str(row.get(column, "")) for column in columns]
        mark = next((cell[0] for cell in cells if cell[:1] in STYLES), "")
        drawn.add_row(*cells, style=STYLES.get(mark, ""))
    return drawn


def _known(rows: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> list[str]:
    return [column for column in wanted if any(column in row for row in rows)]


PHASE_COLUMNS = ("phase", "state", "seconds", "summary")
WORKING_HOST_COLUMNS = ("host", "state", "progress", "changed", "task")
HOST_COLUMNS = ("host", "state", "ok", "changed", "failed", "seconds")
SECRET_COLUMNS = ("state", "step", "seconds", "path")
SECRETS_SHOWN = 20
"""While a run is watched: those that are worked on come first."""

APP_KEY = re.compile(r"app-.+-(steps|checks)")
STEP_COLUMNS = ("step", "act", "state", "seconds", "note")
CHECK_COLUMNS = ("result", "stage", "check")
DUE_COLUMNS = ("status", "age", "due", "path")
NODE_COLUMNS = ("name", "role", "hypervisor", "address", "version", "state")


def picture(view: View, elapsed: float) -> RenderableType:
    """Return what the terminal shows now."""
    state = view.run.state.name if view.run.state else "Unknown"
    head = Text.assemble(
        (view.run.name, "bold"), f"  {state}  {view.percent:.0f} %  {elapsed:.0f} s"
    )
    parts: list[RenderableType] = [head]
    if view.phases:
        parts.append(table(view.phases, "Phases", _known(view.phases, PHASE_COLUMNS)))
    if view.hosts:
        columns = _known(view.hosts, WORKING_HOST_COLUMNS)
        parts.append(table(view.hosts, "Hosts", columns, is_one_line=True))
    if view.steps:
        parts.append(table(view.steps, "Steps", _known(view.steps, STEP_COLUMNS), is_one_line=True))
    if view.secrets:
        shown = sorted(view.secrets, key=_urgency)[:SECRETS_SHOWN]
        title = f"Secrets ({len(view.secrets)})"
        parts.append(table(shown, title, SECRET_COLUMNS, is_one_line=True))
    return Group(*parts)


def _urgency(row: Mapping[str, Any]) -> int:
    """Sort what failed or runs before what waits, and what is done last."""
    return "✘▶·–✔".find(str(row.get("state", ""))[:1])


def _plain_line(view: View) -> tuple[str, str]:
    """Return the line, and its part that is told as soon as it changes."""
    current = next((row for row in view.phases if str(row.get("state", ""))[:1] in "▶✘"), None)
    state = view.run.state.name if view.run.state else "Unknown"
    doing = f" {current['phase']}" if current else ""
    busy = [
        f"{row.get('host')} {row.get('progress', '')}"
        for row in view.hosts
        if str(row.get("state", "")).startswith("▶")
    ]
    hosts = f" [{', '.join(busy)}]" if current and current["phase"] == "configure" and busy else ""
    return f"{view.percent:3.0f} %  {state}{doing}{hosts}", f"{state}{doing}"


def waiting_hint(view: View) -> str | None:
    """Return what a person has to do for a run that waits, or None."""
    if view.run.state and view.run.state.is_paused():
        return (
            f"The run waits for approval. Look at its plan in the UI, then: "
            f"infraflows approve {view.run.id}"
        )
    return None


def watch(run_id: UUID, console: Console) -> View:
    """Show a run until it ends; returns the last view."""
    started = time.monotonic()
    view: View | None = None
    last_told, last_time, hinted = "", 0.0, False
    with get_client(sync_client=True) as client:
        live = Live(console=console, refresh_per_second=2, transient=True)
        context: Any = live if console.is_terminal else _Nothing()
        with context:
            while True:
                view = read_view(client, run_id)
                elapsed = time.monotonic() - started
                hint = waiting_hint(view)
                if hint and not hinted:
                    console.print(hint, soft_wrap=True)
                hinted = hint is not None
                if console.is_terminal:
                    live.update(picture(view, elapsed))
                else:
                    line, told = _plain_line(view)
                    if told != last_told or elapsed - last_time > PLAIN_EVERY_SECONDS:
                        shown = f"{elapsed:6.0f} s  {line}"
                        console.print(shown, highlight=False, markup=False, soft_wrap=True)
                        last_told, last_time = told, elapsed
                if view.run.state is not None and view.run.state.is_final():
                    return view
                time.sleep(POLL_SECONDS)


def newest_run(deployment: str, age_seconds: float, timeout_seconds: float) -> UUID:
    """Return the newest run of a deployment that is at most so old; waits for one.

    Raises:
        NotFound: none began in time.
    """
    since = datetime.now(UTC) - timedelta(seconds=age_seconds)
    wanted = FlowRunFilter(
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"after_": since})
    )
    flow, _, name = deployment.partition("/")
    deadline = time.monotonic() + timeout_seconds
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
                flow_run_filter=wanted,
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=1,
            )
            if found:
                return found[0].id
            if time.monotonic() > deadline:
                raise NotFound(
                    f"Unable to follow {deployment}: no run of it began within "
                    f"{timeout_seconds:.0f} s. Look at the gateway's log and at GitLab's hook."
                )
            time.sleep(POLL_SECONDS)


class _Nothing:
    """A context without effect, for output that is not a terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def closing(view: View, console: Console, ui_url: str, next_steps: Sequence[str]) -> None:
    """Print how a run ended, its tables, and where to go from here."""
    if view.phases:
        console.print(table(view.phases, "Phases", _known(view.phases, PHASE_COLUMNS)))
    if view.hosts:
        console.print(table(view.hosts, "Hosts", _known(view.hosts, HOST_COLUMNS)))
    if view.due and not view.secrets:
        console.print(table(view.due, "Secrets", _known(view.due, DUE_COLUMNS)))
    if view.secrets:
        shown = sorted(view.secrets, key=_urgency)
        console.print(table(shown, "Secrets", SECRET_COLUMNS))
    if view.steps:
        console.print(table(view.steps, "Steps", _known(view.steps, STEP_COLUMNS)))
    if view.checks:
        console.print(table(view.checks, "Checks", CHECK_COLUMNS))
    if view.nodes:
        console.print(table(view.nodes, "Nodes", _known(view.nodes, NODE_COLUMNS)))
    state = view.run.state
    if state is not None and not state.is_completed():
        console.print(f"[bold red]{state.name}[/]: ", end="")
        console.print(state.message or "no message", markup=False, soft_wrap=True)
    console.print(f"Run: {ui_url}/runs/flow-run/{view.run.id}", soft_wrap=True, highlight=False)
    for step in next_steps:
        console.print(step, soft_wrap=True, highlight=False, markup=False)
