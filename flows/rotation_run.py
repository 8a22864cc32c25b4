"""One run that rotates secrets: its progress, the table of its secrets, and its report.

Promises a table that moves while the run does, and a report whatever happens. Two runs by the clock
never meet; runs by hand and after a leak wait for single secrets only, that another run is at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock

from prefect.runtime import flow_run

from domain.phases import ROTATION_WEIGHTS, Phase, PhaseState
from domain.rotation.run_plan import RunPlan, Way
from domain.rotation.run_report import End, RotationReport, SecretProgress
from domain.rotation.state import RotationState
from tasks.reports.rotation import publish_rotation_report
from tasks.rotation.engine import StepReport
from tasks.runs.exclusive import exclusive
from tasks.runs.pause_switch import refuse_if_paused
from tasks.runs.progress import LiveArtifact, ProgressBoard
from tasks.vault.ledger import Detail, record_step

ROWS_PER_SECOND = 100
"""A long table is written less often: its size times its pace stays about the same."""


class SecretBoard:
    """The table of a run's secrets, updated in place while tasks work on them."""

    def __init__(self, environment: str) -> None:
        """Name the artifact; nothing is shown before there are secrets."""
        name = f"{environment}-rotation-secrets"
        self._table = LiveArtifact(name, "table", f"Secrets of the run in {environment}")
        self._lock = Lock()
        self._shown_at = 0.0
        self.secrets: dict[str, SecretProgress] = {}

    def begin(self, plan: RunPlan) -> None:
        """Show every secret of the plan as waiting."""
        for slot in plan.slots:
            secret = slot.row.ruled.secret
            self.secrets[secret.path] = SecretProgress(secret.path, secret.kind, secret.environment)
        self._show(at_once=True)

    def step(self, report: StepReport) -> None:
        """Note one step of one secret; called from the tasks' threads."""
        with self._lock:
            secret = self.secrets[report.secret.path]
            secret.note(report.step, report.generation, report.outcome, report.seconds)
            if report.proof and report.proof.is_dead:
                secret.proof = f"{report.proof.method}: {report.proof.answer}"
            self._show(at_once=False)

    def finish(self, path: str, state: RotationState) -> None:
        """Note how a rotation ended."""
        with self._lock:
            self.secrets[path].finish(state)
            self._show(at_once=False)

    def fail(self, path: str, error: BaseException | None) -> None:
        """Note why a rotation could not be done, unless its own verdict is known already."""
        with self._lock:
            secret = self.secrets[path]
            if secret.end in (End.WAITS, End.RUNS):
                secret.end = End.FAILED
                secret.text = str(error) if error else "the task ended without a word"
            self._show(at_once=False)

    def hold_back(self, paths: Sequence[str], reason: str) -> None:
        """Note why rotations were not begun."""
        for path in paths:
            secret = self.secrets[path]
            if secret.end is End.WAITS:
                secret.end, secret.text = End.HELD_BACK, reason
        self._show(at_once=True)

    def close(self) -> None:
        """Show how things ended."""
        self._show(at_once=True)

    @property
    def fraction(self) -> float:
        """Share of the secrets that are done with."""
        if not self.secrets:
            return 1.0
        open_ends = (End.WAITS, End.RUNS)
        return sum(each.end not in open_ends for each in self.secrets.values()) / len(self.secrets)

    def _show(self, *, at_once: bool) -> None:
        if not self.secrets:
            return
        now = time.monotonic()
        if not at_once and now - self._shown_at < max(1.0, len(self.secrets) / ROWS_PER_SECOND):
            return
        self._shown_at = now
        self._table.show(json.dumps([each.cells() for each in self.secrets.values()]))


@dataclass
class RotationRun:
    """What the phases of a run hand to its report."""

    environment: str
    way: Way
    is_dry: bool
    began_at: datetime
    progress: ProgressBoard
    board: SecretBoard
    plan: RunPlan | None = None
    approver: str = ""
    unknown: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What went wrong besides the secrets, as a token that could not be revoked."""

    @property
    def run_id(self) -> str:
        """Of the Prefect run; the same when it is retried."""
        return str(flow_run.id)

    @property
    def target(self) -> str:
        """What the artifacts are named after."""
        return f"{self.environment}-rotation"

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

    def record(self, step: str, outcome: str, details: Mapping[str, Detail]) -> None:
        """Leave a signed line about the run as a whole."""
        record_step(self.environment, "rotation", step, outcome, details)

    def report(self, outcome: str, summary: str, next_steps: Sequence[str] = ()) -> RotationReport:
        """Return the report as things stand."""
        return RotationReport(
            title=f"Rotation in {self.environment} ({self.way.value}{', dry' * self.is_dry})",
            outcome=outcome,
            summary=summary,
            run_id=self.run_id,
            environment=self.environment,
            plan_hash=self.plan.plan_hash if self.plan else "",
            approved_by=self.approver,
            phases=list(self.progress.progress.phases.values()),
            secrets=list(self.board.secrets.values()),
            waiting=self.plan.waiting if self.plan else {},
            by_hand=self.plan.by_hand if self.plan else (),
            next_steps=next_steps,
        )


@contextmanager
def rotation_run(environment: str, way: Way, *, is_dry: bool) -> Iterator[RotationRun]:
    """Run the body as a rotation run; a failure is reported and raised on.

    Raises:
        PolicyViolation: the environment is paused, and this is no dry run.
    """
    if not is_dry:
        refuse_if_paused(environment)
    run = RotationRun(
        environment,
        way,
        is_dry,
        flow_run.scheduled_start_time or datetime.now(UTC),
        ProgressBoard(f"{environment}-rotation", ROTATION_WEIGHTS),
        SecretBoard(environment),
    )
    with ExitStack() as held:
        if way is Way.NIGHTLY and not is_dry:
            held.enter_context(exclusive(f"{environment}-rotation"))
        try:
            yield run
        except Exception as error:
            steps = ["Mend the cause, then run again: what is partial is finished first."]
            with suppress(Exception):  # the first error is the one that counts
                publish_rotation_report(run.report("failed", str(error), steps))
            raise
