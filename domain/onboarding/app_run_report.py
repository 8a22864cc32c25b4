"""What a run on one application leaves for people: its report page and the comment on the commit.

Promises times per step, links, what was made and what was checked, in the same words in both. A
failure is told with the sentence that says where the application stands now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from domain.onboarding.delivery_checks import DeliveryCheck
from domain.onboarding.onboarding_plan import AppPlan
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import Act
from domain.phases import Phase


class Way(StrEnum):
    """What a run does."""

    ONBOARD = "onboard"
    OFFBOARD = "off-board"
    DEPLOY = "deploy"
    ROLLBACK = "roll back"


WEIGHTS: Mapping[Way, Mapping[str, int]] = {
    Way.ONBOARD: {"preflight": 10, "plan": 4, "gate": 1, "apply": 55, "verify": 26, "record": 4},
    Way.OFFBOARD: {"preflight": 10, "plan": 4, "gate": 1, "remove": 70, "prove": 10, "record": 5},
    Way.DEPLOY: {"preflight": 10, "apply": 25, "verify": 60, "record": 5},
    Way.ROLLBACK: {"preflight": 10, "apply": 25, "verify": 60, "record": 5},
}
"""Usual shares of a run's duration, in percent; used for the progress bar only."""

_PAST = {
    Way.ONBOARD: "onboarded",
    Way.OFFBOARD: "taken off",
    Way.DEPLOY: "deployed",
    Way.ROLLBACK: "rolled back",
}


@dataclass
class StepTime:
    """What became of one step in this run."""

    step: str
    system: str
    act: str = ""
    state: str = "· waits"
    seconds: float = 0.0
    note: str = ""

    def cells(self) -> dict[str, str]:
        """Return the row as a person reads it."""
        return {
            "step": self.step,
            "system": self.system,
            "act": self.act,
            "state": self.state,
            "seconds": f"{self.seconds:.1f}" if self.seconds else "",
            "note": self.note,
        }


@dataclass(frozen=True)
class AppReport:
    """Everything that the report page and the comment show."""

    app: str
    way: Way
    environment: str
    outcome: str
    """One word: succeeded, unchanged or failed."""
    summary: str
    run_id: str
    run_url: str
    phases: Sequence[Phase]
    commit: str = ""
    plan: AppPlan | None = None
    approved_by: str = ""
    steps: Sequence[StepTime] = ()
    checks: Sequence[DeliveryCheck] = ()
    inventory: Sequence[Mapping[str, str]] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    next_steps: Sequence[str] = ()

    @property
    def title(self) -> str:
        """What the page is called."""
        verb = self.way.value if self.outcome == "failed" else _PAST[self.way]
        return f"{self.app}: {verb}" if self.outcome != "failed" else f"{self.app}: {verb} failed"

    @property
    def seconds(self) -> float:
        """Duration of all phases."""
        return round(sum(phase.seconds for phase in self.phases), 1)

    @property
    def made(self) -> list[tuple[str, str]]:
        """System and what was done in it, as `12 created, 1 changed`."""
        if self.plan is None:
            return []
        counts: dict[str, Counter[Act]] = {}
        for line in self.plan.lines:
            counts.setdefault(line.change.system, Counter())[line.change.act] += 1
        words = {Act.CREATE: "created", Act.CHANGE: "changed", Act.DELETE: "deleted"}
        return [
            (system, ", ".join(f"{found[act]} {words[act]}" for act in Act if found[act]))
            for system, found in counts.items()
        ]


def comment_text(report: AppReport) -> str:
    """Return the comment on the commit, as GitLab's Markdown."""
    mark = {"failed": "✘", "unchanged": "="}.get(report.outcome, "✔")
    lines = [f"**{mark} {report.title}** in {report.seconds:.0f} s. {report.summary}"]
    if report.outcome != "failed":
        lines += ["", *(f"- {name}: {url}" for name, url in report.links.items())]
    if report.outcome != "failed" and report.made:
        lines += ["", "| System | What was made |", "|---|---|"]
        lines += [f"| {system} | {text} |" for system, text in report.made]
    if report.checks:
        lines += ["", "| Stage | Check | Result |", "|---|---|---|"]
        lines += [
            f"| {c.stage.value} | {c.check} | {_cell(f'{c.verdict.value}: {c.detail}')} |"
            for c in report.checks
        ]
    timed = [step for step in report.steps if step.seconds]
    if timed:
        lines += ["", "<details><summary>Time per step</summary>", "", "| Step | Seconds |"]
        lines += ["|---|---:|", *(f"| {s.step} | {s.seconds:.1f} |" for s in timed)]
        lines += ["", "</details>"]
    lines += ["", *(f"- {step}" for step in report.next_steps)]
    if report.run_url:
        lines += ["", f"[Run {report.run_id[:8]}]({report.run_url})"]
    return "\n".join(lines).strip() + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]


def links_of(tenant: Tenant) -> dict[str, str]:
    """Return where people find the application."""
    platform, found = tenant.platform, {}
    for stage in tenant.app.stages:
        hosts = tenant.hostnames(stage)
        for place, host in enumerate(hosts, start=1):
            name = stage.value if len(hosts) == 1 else f"{stage.value}, {place}"
            found[name] = f"https://{host}/"
    found["Source"] = f"{platform.gitlab_url.rstrip('/')}/{tenant.app.repository}"
    found["GitOps"] = f"{platform.gitops_url.removesuffix('.git')} at `{tenant.gitops_directory}`"
    return found
