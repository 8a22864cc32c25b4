"""Onboards an application: from its spec to a running one, in every system at once, as a saga.

Day 2 is the same flow: a changed `app.yaml` converges by difference, what somebody changed by hand
is shown as drift and put right. Whatever fails, the application ends where it came from; whatever
is killed, the next run finishes.
"""

from __future__ import annotations

from prefect import flow

from domain.onboarding.app_run_report import Way
from domain.onboarding.app_spec import AppSpec
from domain.spec_fields import Name
from flows.app_phases import (
    apply_plan,
    check_before_onboarding,
    plan_onboarding,
    record_onboarding,
    saga_of,
    verify_and_keep,
    verify_only,
    wait_at_the_gate,
)
from flows.app_run import app_run
from tasks.onboarding.journal import held_journal

NAME = "onboard-app"


@flow(
    name=NAME,
    flow_run_name="onboard {app.name}",
    description="Brings an application to what its app.yaml says, or back as a whole.",
    persist_result=False,
)
def onboard_app(
    environment: Name, app: AppSpec, project_id: int | None = None, commit: str = ""
) -> None:
    """Onboard an application, or bring it to a changed spec.

    Args:
        environment: Environment that it lands in; names its blocks.
        app: What its team wants, as in `app.yaml`.
        project_id: Its GitLab project; found by the spec's path if empty.
        commit: Commit of `app.yaml`, which is told how it went.

    Raises:
        PermanentError: the preflight found errors, or it could not be brought there; the text says
            where the application stands now.
    """
    with app_run(
        environment, app.name, Way.ONBOARD, commit=commit, project_id=project_id or 0
    ) as run:
        ready = check_before_onboarding(run, app, project_id)
        plan = plan_onboarding(run, ready)
        if plan.is_empty:
            run.skip("gate", "apply", reason="nothing to do")
            verify_only(run, ready)
        else:
            wait_at_the_gate(run, ready, plan)
            with held_journal(environment, app.name) as held:
                saga = saga_of(run, ready, held)
                apply_plan(run, saga, ready, plan)
                verify_and_keep(run, saga)
        record_onboarding(run, plan)
