"""One run on one application: its lock, progress, table of steps, report and comment.

Promises that two runs on one application never meet, that a table moves while steps run, and a
report and a comment on the commit whatever happens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from domain.errors import LifecycleError, PermanentError
from domain.findings import Finding, Level, errors, sentence
from domain.onboarding.app_run_report import WEIGHTS, AppReport, StepTime, Way, comment_text
from domain.onboarding.delivery_checks import DeliveryCheck
from domain.onboarding.onboarding_plan import AppPlan
from domain.onboarding.saga import Order
from domain.phases import Phase, PhaseState
from tasks.onboarding.announce import comment_on_commit
from tasks.onboarding.engine import Ended
from tasks.onboarding.tasks import steps
from tasks.reports.onboarding import publish_app_report
from tasks.runs.exclusive import exclusive
from tasks.runs.pause_switch import refuse_if_paused
from tasks.runs.progress import LiveArtifact, ProgressBoard
from tasks.vault.ledger import Detail, record_step

LEVEL_MARKS = {Level.OK: "✔ ok", Level.WARNING: "! warning", Level.ERROR: "✘ error"}


class StepBoard:
    """The table of a run's steps, updated in place by the flow's own thread."""

    def __init__(self, target: str, phase: str, progress: ProgressBoard) -> None:
        """Name the artifact; `phase` is the one whose progress the steps are."""
        self._table = LiveArtifact(f"{target}-steps", "table", f"Steps of the run on {target}")
        self._phase, self._progress = phase, progress
        self.rows: dict[str, StepTime] = {}

    def begin(self, names: Sequence[str]) -> None:
        """Show the steps that will be carried out as waiting."""
        by_name = {step.name: step.system for step in steps()}
        self.rows = {name: StepTime(name, by_name.get(name, "")) for name in names}
        self._show()

    def started(self, order: Order) -> None:
        """Note that a step runs; one that comes again is being taken back."""
        row = self.rows.setdefault(order.step, StepTime(order.step, ""))
        row.act = f"{row.act}, {order.act.value}" if row.act else order.act.value
        row.state = "▶ runs"
        self._show()

    def ended(self, end: Ended) -> None:
        """Note how a step ended."""
        row = self.rows[end.order.step]
        row.seconds += end.seconds
        row.state = "✔ done" if end.error is None else "✘ failed"
        if end.error is not None:
            is_told = isinstance(end.error, LifecycleError)
            row.note = str(end.error) if is_told else type(end.error).__name__
        done = sum(each.state == "✔ done" for each in self.rows.values())
        self._progress.advance(self._phase, done / max(len(self.rows), 1))
        self._show()

    def _show(self) -> None:
        if self.rows:
            self._table.show(json.dumps([row.cells() for row in self.rows.values()]))


@dataclass
class AppRun:
    """What the phases of a run hand to its report."""

    environment: str
    app: str
    way: Way
    progress: ProgressBoard
    board: StepBoard
    commit: str = ""
    project_id: int = 0
    stage: str = ""
    """The only stage that the run is about; empty when it is about the application."""
    plan: AppPlan | None = None
    approver: str = ""
    checks: list[DeliveryCheck] = field(default_factory=list)
    inventory: list[dict[str, str]] = field(default_factory=list)
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """Of the Prefect run; the same when it is retried."""
        return str(flow_run.id)

    @property
    def target(self) -> str:
        """What artifacts, ledger and lock are named after."""
        return f"app-{self.app}"

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Run the body as a phase of this run."""
        with self.progress.phase(name) as phase:
            yield phase

    def skip(self, *names: str, reason: str) -> None:
        """Leave phases out."""
        for name in names:
            with self.phase(name) as phase:
                phase.state, phase.summary = PhaseState.SKIPPED, reason

    def show_findings(self, findings: Sequence[Finding]) -> None:
        """Show the preflight's table, and stop the run when there are errors.

        Raises:
            PermanentError: with every error that was found.
        """
        create_table_artifact(
            key=f"{self.target}-preflight",
            table=[
                {
                    "result": LEVEL_MARKS[finding.level],
                    "subject": finding.subject,
                    "finding": finding.text,
                    "what to do": finding.fix,
                }
                for finding in sorted(findings, key=lambda f: f.level is not Level.ERROR)
            ],
            description=f"Preflight of {self.app} in {self.environment}",
        )
        for finding in findings:
            if finding.level is Level.WARNING:
                get_run_logger().warning("%s", sentence(finding))
        found = errors(findings)
        if found:
            lines = "\n".join(f"  - {sentence(finding)}" for finding in found)
            noun = "error" if len(found) == 1 else "errors"
            raise PermanentError(
                f"Unable to {self.way.value} {self.app} in {self.environment}: the preflight found "
                f"{len(found)} {noun}; nothing was changed.\n{lines}"
            )

    def record(self, step: str, outcome: str, **details: Detail) -> None:
        """Leave a signed line in the application's ledger."""
        record_step(self.environment, self.target, step, outcome, details)

    def started(self, order: Order) -> None:
        """Show a step that begins."""
        self.board.started(order)

    def ended(self, end: Ended) -> None:
        """Show how a step ended."""
        self.board.ended(end)

    def finish(self, outcome: str, summary: str, next_steps: Sequence[str] = ()) -> None:
        """Publish the report, and tell the team on its commit."""
        report = AppReport(
            app=self.app,
            way=self.way,
            environment=self.environment,
            outcome=outcome,
            summary=summary,
            run_id=self.run_id,
            run_url=str(flow_run.ui_url or ""),
            phases=list(self.progress.progress.phases.values()),
            commit=self.commit,
            plan=self.plan,
            approved_by=self.approver,
            steps=[row for row in self.board.rows.values() if row.act],
            checks=self.checks,
            inventory=self.inventory,
            links=self.links,
            next_steps=next_steps,
        )
        publish_app_report(report)
        if self.commit and self.project_id:
            # One comment for each stage: several get the same commit, one after another.
            parts = (self.way.value.replace(" ", "-"), self.app, self.stage)
            marker = "-".join(part for part in parts if part)
            comment_on_commit(
                self.environment, self.project_id, self.commit, marker, comment_text(report)
            )


@contextmanager
def app_run(
    environment: str, app: str, way: Way, *, commit: str = "", project_id: int = 0
) -> Iterator[AppRun]:
    """Run the body as the only run on an application; a failure is reported and raised on.

    Raises:
        PolicyViolation: the environment is paused.
    """
    refuse_if_paused(environment)
    with exclusive(f"app-{app}"):
        weights = WEIGHTS[way]
        progress = ProgressBoard(f"app-{app}", weights)
        doing = next(name for name in ("apply", "remove") if name in weights)
        board = StepBoard(f"app-{app}", doing, progress)
        run = AppRun(environment, app, way, progress, board, commit, project_id)
        try:
            yield run
        except Exception as error:
            with suppress(Exception):  # the first error is the one that counts
                run.record(way.value, "failed", plan=run.plan.plan_hash if run.plan else "")
            with suppress(Exception):
                run.finish("failed", _text(error), ["Mend the cause, then run again."])
            raise


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, LifecycleError) else type(error).__name__
