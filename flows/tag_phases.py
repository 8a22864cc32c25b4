"""The phases of a deployment and of a roll-back: one image tag, one stage."""

from __future__ import annotations

import re
from dataclasses import dataclass

from domain.errors import Conflict, NotFound
from domain.onboarding.app_run_report import links_of
from domain.onboarding.app_spec import Stage
from domain.onboarding.onboarding_plan import AppPlan
from domain.onboarding.saga import Journal, Version, only_touched, with_present_tags
from domain.onboarding.tenant import Tenant
from flows.app_phases import Ready, own_journal, saga_of, show_checks, show_plan, surroundings
from flows.app_run import AppRun
from tasks.onboarding.engine import advance, confirm
from tasks.onboarding.facts import present_tags
from tasks.onboarding.journal import HeldJournal
from tasks.onboarding.tag_change import STEP, TagWorkers, image_findings, tag_before, tag_plan
from tasks.onboarding.verification import refuse_failed, verify_stages

COMMIT = re.compile(r"[0-9a-f]{8,40}")


@dataclass(frozen=True)
class TagChange:
    """What the preflight found."""

    ready: Ready
    stage: Stage
    plan: AppPlan
    tag: str
    former: str


def check_before_change(run: AppRun, stage: Stage, tag: str | None) -> TagChange:
    """See that the stage can run another tag; without one, find the tag that it ran before.

    Raises:
        NotFound: the application, the stage or an earlier tag is not there.
        Conflict: an onboarding is unfinished, or the image is ready-made.
    """
    run.stage = stage.value
    with run.phase("preflight") as phase:
        findings, platform, journals = surroundings(run)
        journal = own_journal(run.app, journals)
        good = _good(run, journal, stage)
        tags = present_tags(platform, run.app)
        journal = with_present_tags(journal, tags)
        good = journal.good or good
        chosen = tag or tag_before(platform, run.app, stage)
        target = good.model_copy(update={"tags": {**tags, stage: chosen}})
        ready = Ready(platform, journal, target, {})
        run.project_id, run.links = good.project_id, links_of(ready.tenant)
        if not run.commit and COMMIT.fullmatch(chosen):
            run.commit = chosen
        run.show_findings([*findings, *image_findings(ready.tenant, chosen)])
        plan = tag_plan(run.app, stage, good, target)
        show_plan(run, plan)
        former = tags.get(stage, "")
        phase.summary = f"{stage.value} runs {former or 'nothing yet'}, and is to run {chosen}"
    return TagChange(ready, stage, plan, chosen, former)


def _good(run: AppRun, journal: Journal, stage: Stage) -> Version:
    act = f"Unable to {run.way.value} {run.app} in {stage.value}"
    good = journal.good
    if good is None:
        raise NotFound(f"{act}: it is not onboarded. Run onboard-app first.")
    if stage not in good.app.environments:
        raise NotFound(f"{act}: it has no such stage. Add it to app.yaml.")
    if good.app.image is not None:
        raise Conflict(f"{act}: its image is ready-made. Change the image in app.yaml.")
    if not only_touched(journal, [STEP]):
        raise Conflict(
            f"{act}: an onboarding of it is not finished. Run onboard-app again, which finishes it."
        )
    return good


def change_tag(run: AppRun, change: TagChange, held: HeldJournal) -> None:
    """Commit the tag, see it serve, and keep it; or bring the former tag back.

    Raises:
        PermanentError: with the cause, and which version serves now.
    """
    saga = saga_of(run, change.ready, held, TagWorkers(change.stage))

    def verify(tenant: Tenant) -> None:
        run.checks = verify_stages(tenant, [change.stage])
        show_checks(run)
        refuse_failed(tenant, run.checks)

    with run.phase("apply") as phase:
        run.board.begin([STEP])
        advance(saga, change.ready.version, change.plan, run.run_id, verify)
        phase.summary = f"{change.stage.value} is to run {change.tag}"
    with run.phase("verify") as phase:
        confirm(saga, verify)
        phase.summary = f"{len(run.checks)} checks"


def record_change(run: AppRun, change: TagChange) -> None:
    """Close the ledger's account of this run, publish its report and tell the team."""
    with run.phase("record") as phase:
        run.record(
            run.way.value,
            "changed" if change.former != change.tag else "unchanged",
            stage=change.stage.value,
            tag=change.tag,
            former=change.former,
        )
        phase.summary = f"{change.former or 'nothing'} to {change.tag}"
    outcome = "succeeded" if change.former != change.tag else "unchanged"
    run.finish(outcome, f"{change.stage.value} serves {change.tag}.")
