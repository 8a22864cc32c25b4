"""One run on one cluster: its progress, its ledger and its report, for every flow on clusters.

Promises that a run that fails says in its report what exists by then and what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from prefect.runtime import flow_run

from domain.phases import Phase
from domain.run_report import RunReport
from domain.specs import ClusterSpec
from tasks.reports.tasks import publish_report
from tasks.runs.exclusive import exclusive
from tasks.runs.pause_switch import refuse_if_paused
from tasks.runs.progress import ProgressBoard
from tasks.vault.ledger import Detail, record_step


@dataclass
class ClusterRun:
    """What the phases of a run hand to its report."""

    spec: ClusterSpec
    verb: str
    board: ProgressBoard
    plan_hash: str = ""
    machines: list[dict[str, str]] = field(default_factory=list)
    hosts: list[dict[str, str]] = field(default_factory=list)
    checks: list[dict[str, str]] = field(default_factory=list)
    changes: dict[str, str] = field(default_factory=dict)
    is_changed: bool = False

    @property
    def environment(self) -> str:
        """Environment of the cluster, which names the blocks."""
        return self.spec.environment

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Run the body as a phase of this run."""
        with self.board.phase(name) as phase:
            yield phase

    def advances(self, name: str) -> Callable[[float], None]:
        """Return what tells this run's bar how much of a phase is done, from 0 to 1."""
        return lambda fraction: self.board.advance(name, fraction)

    def changed(self, system: str, text: str, count: int) -> None:
        """Note what a phase changed in a system."""
        self.changes[system] = text
        self.is_changed = self.is_changed or count > 0

    def record(self, step: str, outcome: str, **details: Detail) -> None:
        """Leave a signed line in the cluster's ledger."""
        record_step(self.environment, self.spec.name, step, outcome, details)

    def report(self, outcome: str, summary: str, next_steps: list[str]) -> RunReport:
        """Return the report as things stand."""
        return RunReport(
            title=f"{self.verb} of {self.spec.name}",
            outcome=outcome,
            summary=summary,
            run_id=str(flow_run.id),
            environment=self.environment,
            cluster=self.spec.name,
            virtual_ip=self.spec.control_plane.virtual_ip,
            phases=list(self.board.progress.phases.values()),
            plan_hash=self.plan_hash,
            machines=self.machines,
            hosts=self.hosts,
            changes=self.changes,
            checks=self.checks,
            next_steps=next_steps,
        )


def _what_exists(run: ClusterRun) -> list[str]:
    """Say which systems hold something of the cluster, for the report of a failed run."""
    from flows.leftovers import cluster_leftovers

    with suppress(Exception):  # the report of a failure must not hide the failure
        found = cluster_leftovers(run.spec)
        return [f"{system}: {text}" for system, text in found.items() if text]
    return ["What exists could not be read: look into Proxmox, OpenBao, DNS and Git."]


@contextmanager
def cluster_run(spec: ClusterSpec, verb: str, weights: Mapping[str, int]) -> Iterator[ClusterRun]:
    """Run the body as the one run on the cluster; a failure is reported and raised on.

    Raises:
        PolicyViolation: the environment is paused.
    """
    refuse_if_paused(spec.environment)
    run = ClusterRun(spec, verb, ProgressBoard(spec.name, weights))
    with exclusive(f"{spec.environment}-{spec.name}"):
        try:
            yield run
        except Exception as error:
            steps = [
                *_what_exists(run),
                "Mend the cause, then run again with the same spec: it goes on where it was.",
            ]
            with suppress(Exception):  # the first error is the one that counts
                publish_report(run.report("failed", str(error), steps))
            raise
