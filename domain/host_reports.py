"""What a run of a playbook did to each host, as people and flows read it.

Promises that reports are made from events alone, so that the same events give the same reports,
and that a host which was never heard of is `unknown` and not `ok`. Refuses to decide what to do
about a failure: that is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class TaskStatus(StrEnum):
    """How one task ended on one host."""

    STARTED = "started"
    OK = "ok"
    CHANGED = "changed"
    SKIPPED = "skipped"
    IGNORED = "ignored"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


class HostStatus(StrEnum):
    """How a host stands at the end, or so far."""

    UNKNOWN = "unknown"
    RUNNING = "running"
    OK = "ok"
    CHANGED = "changed"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    STOPPED = "stopped"
    """It was well, and the run ended early because of another host or of a cancellation."""


@dataclass(frozen=True)
class HostEvent:
    """One task on one host: when it started, or how it ended."""

    host: str
    task: str
    status: TaskStatus
    role: str = ""
    seconds: float = 0.0
    message: str = ""
    """The host's own words for a failure, cut and masked; empty otherwise."""
    details: Mapping[str, Any] | None = None
    """What the task returned, for the tasks whose result is asked for."""

    @property
    def title(self) -> str:
        """Role and task, as people look for them in the role's files."""
        return f"{self.role}: {self.task}" if self.role else self.task


@dataclass(frozen=True)
class HostReport:
    """Counts and times of one host."""

    host: str
    status: HostStatus = HostStatus.UNKNOWN
    ok: int = 0
    """Tasks that ended well, changed ones among them."""
    changed: int = 0
    skipped: int = 0
    ignored: int = 0
    failed: int = 0
    seconds: float = 0.0
    current_task: str = ""
    failed_task: str = ""
    message: str = ""
    changed_tasks: tuple[str, ...] = field(default=())

    @property
    def done(self) -> int:
        """Tasks that ended on this host, in whatever way."""
        return self.ok + self.skipped + self.ignored + self.failed

    def percent(self, expected: int) -> float:
        """Return how much of `expected` tasks is done; 100 only for a host that came to its end."""
        if self.status in (HostStatus.OK, HostStatus.CHANGED):
            return 100.0
        return round(min(99.0, 100.0 * self.done / expected), 1) if expected > 0 else 0.0


def _after(report: HostReport, event: HostEvent) -> HostReport:
    """Return `report` with one more event of its host."""
    if event.status is TaskStatus.STARTED:
        return replace(report, status=HostStatus.RUNNING, current_task=event.title)
    report = replace(report, seconds=round(report.seconds + event.seconds, 3))
    if event.status in (TaskStatus.FAILED, TaskStatus.UNREACHABLE):
        return replace(
            report,
            status=HostStatus(event.status.value),
            failed=report.failed + 1,
            failed_task=event.title,
            message=event.message,
        )
    if report.status is HostStatus.UNKNOWN:
        report = replace(report, status=HostStatus.RUNNING)
    if event.status is TaskStatus.SKIPPED:
        return replace(report, skipped=report.skipped + 1)
    if event.status is TaskStatus.IGNORED:
        return replace(report, ignored=report.ignored + 1)
    if event.status is TaskStatus.CHANGED:
        changed_tasks = (*report.changed_tasks, event.title)
        report = replace(report, changed=report.changed + 1, changed_tasks=changed_tasks)
    return replace(report, ok=report.ok + 1)


def running_reports(hosts: Sequence[str], events: Iterable[HostEvent]) -> list[HostReport]:
    """Return one report per host, in the order of `hosts`, as the events so far tell."""
    reports = {host: HostReport(host) for host in hosts}
    for event in events:
        if event.host in reports:
            reports[event.host] = _after(reports[event.host], event)
    return list(reports.values())


def final_reports(
    hosts: Sequence[str], events: Iterable[HostEvent], is_complete: bool
) -> list[HostReport]:
    """Return the reports at the end of a run; `is_complete` says that the playbook came to its end.

    A host that was well in a run that did not come to its end is `stopped`.
    """
    return [_closed(report, is_complete) for report in running_reports(hosts, events)]


def _closed(report: HostReport, is_complete: bool) -> HostReport:
    if report.status is not HostStatus.RUNNING:
        return report
    if not is_complete:
        return replace(report, status=HostStatus.STOPPED)
    status = HostStatus.CHANGED if report.changed else HostStatus.OK
    return replace(report, status=status, current_task="")


def overall_percent(reports: Sequence[HostReport], expected: int) -> float:
    """Return the mean progress over the hosts."""
    if not reports:
        return 0.0
    return round(sum(report.percent(expected) for report in reports) / len(reports), 1)


MARKS = {
    HostStatus.UNKNOWN: "·",
    HostStatus.RUNNING: "▶",
    HostStatus.OK: "✔",
    HostStatus.CHANGED: "✔",
    HostStatus.FAILED: "✘",
    HostStatus.UNREACHABLE: "✘",
    HostStatus.STOPPED: "–",
}


def table_rows(reports: Sequence[HostReport], expected: int = 0) -> list[dict[str, str]]:
    """Return the rows of the table of hosts, one per host."""
    return [
        {
            "host": report.host,
            "state": f"{MARKS[report.status]} {report.status.value}",
            "progress": f"{report.percent(expected):.0f} %",
            "ok": str(report.ok),
            "changed": str(report.changed),
            "failed": str(report.failed),
            "seconds": f"{report.seconds:.1f}",
            "task": _told(report),
        }
        for report in reports
    ]


def _told(report: HostReport) -> str:
    """Say where a host is, or what it failed at, in its own words."""
    if report.failed_task:
        return f"{report.failed_task}: {report.message}".removesuffix(": ")
    return report.current_task


def failure_text(reports: Sequence[HostReport]) -> str:
    """Return one paragraph per host that failed: where, and in the host's own words."""
    bad = (HostStatus.FAILED, HostStatus.UNREACHABLE)
    parts = [
        f"{report.host} ({report.status.value}) at '{report.failed_task}': {report.message}"
        for report in reports
        if report.status in bad
    ]
    return "\n".join(parts)
