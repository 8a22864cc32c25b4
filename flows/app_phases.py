"""The phases that onboard an application and take it off, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect.artifacts import create_table_artifact

from domain.errors import PermanentError, PolicyViolation
from domain.findings import Finding, errors
from domain.gate import GateOutcome
from domain.onboarding.app_run_report import links_of
from domain.onboarding.app_spec import AppSpec
from domain.onboarding.neighbours import conflicts, tenant_of
from domain.onboarding.onboarding_plan import AppPlan, StepLook, gate_decision, inventory_rows
from domain.onboarding.policies import evaluate
from domain.onboarding.saga import Journal, Version, with_present_tags
from domain.onboarding.tenant import Platform, Tenant
from domain.onboarding.things import Things
from flows.app_run import AppRun
from flows.gate import gate_policy, pass_decision
from tasks.onboarding.engine import JournalStore, Saga, Workers, advance, confirm, remove, stranger
from tasks.onboarding.facts import (
    find_project,
    found_error,
    look_around,
    look_at_all,
    present_tags,
)
from tasks.onboarding.tasks import TaskWorkers, steps
from tasks.onboarding.verification import refuse_failed, verify_stages
from tasks.onboarding.webhooks import disconnect_project_webhook
from tasks.runs.pause_switch import refuse_if_paused


@dataclass(frozen=True)
class Ready:
    """What the preflight found, for the phases after it."""

    platform: Platform
    journal: Journal
    version: Version
    """What to converge to; of a removal, what is known best."""
    found: dict[str, Things]

    @property
    def tenant(self) -> Tenant:
        """The version on its platform."""
        return tenant_of(self.platform, self.version)


def surroundings(run: AppRun) -> tuple[list[Finding], Platform, list[Journal]]:
    """Look around; without blocks, OpenBao or journals the run cannot even look further.

    Raises:
        PermanentError: with every error that was found.
    """
    seen = look_around(run.environment)
    findings = list(seen.findings)
    if seen.platform is None or errors(findings):
        run.show_findings(findings)
    if seen.platform is None:
        raise PermanentError(f"Unable to look around in {run.environment}: no platform is known.")
    return findings, seen.platform, list(seen.journals)


def own_journal(name: str, journals: Sequence[Journal]) -> Journal:
    """Return an application's journal; an empty one when there is none."""
    return next((each for each in journals if each.name == name), Journal(name=name))


# --- onboarding ----------------------------------------------------------------------------------


def check_before_onboarding(run: AppRun, app: AppSpec, project_id: int | None) -> Ready:
    """Find everything that would stop the run, before anything is touched.

    Raises:
        PermanentError: with every error that was found.
    """
    with run.phase("preflight") as phase:
        findings, platform, journals = surroundings(run)
        journal = own_journal(app.name, journals)
        known, problem = _project(run, app, project_id, journal)
        findings += problem
        tags = present_tags(platform, app.name)
        wanted = {stage: tag for stage, tag in tags.items() if stage in app.environments}
        version = Version(app=app, project_id=known, tags=wanted if app.image is None else {})
        ready = Ready(platform, with_present_tags(journal, tags), version, {})
        run.project_id, run.links = known, links_of(ready.tenant)
        findings += conflicts(ready.tenant, journal, journals)
        findings += evaluate(ready.tenant)
        found, problems = look_at_all(steps(), ready.tenant)
        findings += [found_error(name, error) for name, error in problems]
        run.show_findings(findings)
        phase.summary = f"{len(found)} steps looked at, {len(findings)} findings, no errors"
    return Ready(platform, ready.journal, version, found)


def _project(
    run: AppRun, app: AppSpec, project_id: int | None, journal: Journal
) -> tuple[int, list[Finding]]:
    """Return the id of the GitLab project: given, remembered, or found by its path."""
    if project_id is not None:
        return project_id, []
    if journal.versions:
        return journal.versions[0].project_id, []
    try:
        return find_project(run.environment, app), []
    except PermanentError as error:
        return 0, [found_error("GitLab project", error)]


def plan_onboarding(run: AppRun, ready: Ready) -> AppPlan:
    """Show what would be done, thing by thing."""
    with run.phase("plan") as phase:
        plan = _plan(ready)
        show_plan(run, plan)
        phase.summary = plan.summary
    return plan


def _plan(ready: Ready) -> AppPlan:
    journal = ready.journal
    is_settled = journal.attempt is None
    good = tenant_of(ready.platform, journal.good) if journal.good and is_settled else None
    looks = [
        StepLook(
            step.name,
            step.system,
            step.holds_data,
            ready.found[step.name],
            step.wanted(ready.tenant),
            step.wanted(good) if good else None,
        )
        for step in steps()
    ]
    unfinished = journal.attempt.run_id if journal.attempt else ""
    return AppPlan(journal.name, ready.version, looks, journal.good, unfinished)


def show_plan(run: AppRun, plan: AppPlan) -> None:
    """Publish the table of the plan."""
    run.plan = plan
    create_table_artifact(
        key=f"{run.target}-plan",
        table=plan.rows() or [{"step": "none", "thing": plan.summary}],
        description=f"Plan of {run.app}: {plan.summary}. Hash `{plan.plan_hash}`",
    )


def wait_at_the_gate(run: AppRun, ready: Ready, plan: AppPlan) -> None:
    """Let the plan pass by policy or by a person; what is approved is what is done.

    Raises:
        PolicyViolation: it was rejected, the plan changed meanwhile, or the environment is paused.
    """
    with run.phase("gate") as phase:
        decision = gate_decision(plan, gate_policy(run.environment))
        run.approver = pass_decision(decision, plan.plan_hash, plan.summary)
        phase.summary = run.approver
        if decision.outcome is GateOutcome.WAITS:
            refuse_if_paused(run.environment)
            _refuse_changed(ready, plan)


def _refuse_changed(ready: Ready, plan: AppPlan) -> None:
    found, problems = look_at_all(steps(), ready.tenant)
    for name, error in problems:
        raise PermanentError(f"Unable to look at {name} again: {error}") from error
    again = Ready(ready.platform, ready.journal, ready.version, found)
    now = _plan(again) if plan.target else removal_plan(again)
    if now.plan_hash != plan.plan_hash:
        raise PolicyViolation(
            f"Unable to apply plan {plan.plan_hash[:12]}: the systems changed while it waited, and "
            "the approval is void. Nothing was changed; run again to plan anew."
        )


def saga_of(run: AppRun, ready: Ready, store: JournalStore, workers: Workers | None = None) -> Saga:
    """Return the saga of this run."""
    return Saga(
        platform=ready.platform,
        steps=steps(),
        journal=ready.journal,
        store=store,
        workers=workers or TaskWorkers(run.plan.plan_hash if run.plan else ""),
        look=lambda step, tenant: step.found(tenant),
        on_started=run.started,
        on_ended=run.ended,
    )


def apply_plan(run: AppRun, saga: Saga, ready: Ready, plan: AppPlan) -> None:
    """Carry the plan out, or go back as a whole.

    Raises:
        PermanentError: with the cause, and where the application stands now.
    """
    with run.phase("apply") as phase:
        unchanged = set(plan.unchanged)
        run.board.begin([look.step for look in plan.looks if look.step not in unchanged])
        advance(saga, ready.version, plan, run.run_id, lambda tenant: _verify(run, tenant))
        phase.summary = plan.done


def verify_and_keep(run: AppRun, saga: Saga) -> None:
    """See it run and answer; only then it is the last good version.

    Raises:
        PermanentError: with the cause, and where the application stands now.
    """
    with run.phase("verify") as phase:
        confirm(saga, lambda tenant: _verify(run, tenant))
        phase.summary = f"{len(run.checks)} checks"


def verify_only(run: AppRun, ready: Ready) -> None:
    """See that what was there before the run still answers."""
    with run.phase("verify") as phase:
        _verify(run, ready.tenant)
        phase.summary = f"{len(run.checks)} checks"


def _verify(run: AppRun, tenant: Tenant) -> None:
    run.checks = verify_stages(tenant, tenant.app.stages)
    show_checks(run)
    refuse_failed(tenant, run.checks)


def show_checks(run: AppRun) -> None:
    """Publish the table of the verification."""
    create_table_artifact(
        key=f"{run.target}-checks",
        table=[check.cells() for check in run.checks],
        description=f"Verification of {run.app}",
    )


def record_onboarding(run: AppRun, plan: AppPlan) -> None:
    """Close the ledger's account of this run, publish its report and tell the team."""
    with run.phase("record") as phase:
        counts = {"things": len(plan.lines), "deleted": plan.deletes}
        if not plan.is_empty:
            run.record(
                "onboard",
                "changed",
                plan=plan.plan_hash,
                approved_by=run.approver,
                commit=run.commit,
                project=run.project_id,
                **counts,
            )
        phase.summary = f"{len(plan.lines)} things"
    if plan.is_empty:
        run.finish("unchanged", "Everything is as app.yaml says, and answers.")
        return
    waiting = sorted({c.stage.value for c in run.checks if c.verdict.value.startswith("waits")})
    more = f" {', '.join(waiting)} waits for the first image of its pipeline." if waiting else ""
    run.finish("succeeded", f"It is as app.yaml says: {plan.done}.{more}")


# --- off-boarding --------------------------------------------------------------------------------


def check_before_removal(run: AppRun, project_id: int | None) -> Ready:
    """Find out what there is, and whether every system can be asked.

    Raises:
        PermanentError: with every error that was found.
    """
    with run.phase("preflight") as phase:
        findings, platform, journals = surroundings(run)
        journal = own_journal(run.app, journals)
        version = next(iter(journal.versions), None)
        version = version or stranger(platform, run.app, project_id or 0)
        run.project_id = version.project_id
        ready = Ready(platform, journal, version, {})
        found, problems = look_at_all(steps(), ready.tenant)
        findings += [found_error(name, error) for name, error in problems]
        run.show_findings(findings)
        things = sum(len(each) for each in found.values())
        phase.summary = f"{things} things in {sum(bool(each) for each in found.values())} steps"
    return Ready(platform, journal, version, found)


def removal_plan(ready: Ready) -> AppPlan:
    """Return the plan that takes everything away."""
    journal = ready.journal
    looks = [
        StepLook(step.name, step.system, step.holds_data, ready.found[step.name], {})
        for step in steps()
    ]
    unfinished = journal.attempt.run_id if journal.attempt else ""
    return AppPlan(journal.name, None, looks, journal.good, unfinished)


def plan_removal(run: AppRun, ready: Ready) -> AppPlan:
    """Show what would be gone, thing by thing."""
    with run.phase("plan") as phase:
        plan = removal_plan(ready)
        show_plan(run, plan)
        phase.summary = plan.summary
    return plan


def disconnect(run: AppRun) -> None:
    """Take the project's webhook away first: a push must not bring back what is being removed."""
    if run.project_id:
        disconnect_project_webhook(run.environment, run.project_id)


def remove_everything(run: AppRun, saga: Saga, ready: Ready) -> None:
    """Take the application off, step by step in reverse.

    Raises:
        PermanentError: naming what is left, and where.
    """
    with run.phase("remove") as phase:
        run.board.begin([step.name for step in reversed(steps())])
        remove(saga, run.run_id, ready.version)
        phase.summary = f"{len(run.board.rows)} steps undone"


def prove_that_nothing_is_left(run: AppRun, ready: Ready) -> None:
    """Look into every system again and show before and after.

    Raises:
        PermanentError: naming what is left, and where.
    """
    with run.phase("prove") as phase:
        after, problems = look_at_all(steps(), ready.tenant)
        run.inventory = inventory_rows(ready.found, after)
        create_table_artifact(
            key=f"{run.target}-inventory",
            table=run.inventory or [{"step": "none", "thing": "nothing was there"}],
            description=f"Inventory of {run.app} before and after",
        )
        left = [f"  - {name}: {', '.join(sorted(found))}" for name, found in after.items() if found]
        left += [f"  - {name}: unknown, {error}" for name, error in problems]
        if left:
            lines = "\n".join(left)
            raise PermanentError(
                f"Unable to prove that {run.app} is gone:\n{lines}\nRemove it, then run again."
            )
        phase.summary = f"nothing is left in {len(after)} steps"


def record_removal(run: AppRun, ready: Ready, plan: AppPlan) -> None:
    """Leave the end of the application in the ledger, which alone remembers it."""
    with run.phase("record") as phase:
        if not plan.is_empty:
            good = ready.journal.good
            run.record(
                "off-board",
                "removed",
                plan=plan.plan_hash,
                approved_by=run.approver,
                generation=ready.journal.generation,
                project=run.project_id,
                repository=good.app.repository if good else "",
                things=len(plan.lines),
            )
        phase.summary = f"{len(plan.lines)} things gone"
    if plan.is_empty:
        run.finish("unchanged", "Nothing of it is there.")
        return
    run.finish("succeeded", f"{len(plan.lines)} things removed; nothing is left in any system.")
