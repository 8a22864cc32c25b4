"""Takes an application off every system, to the last trace, and proves it.

What is removed is found by its marks of ownership and not by a spec, so that half an onboarding,
an older spec or a lost journal leave nothing behind. It always waits for a person.
"""

from __future__ import annotations

from prefect import flow

from domain.onboarding.app_run_report import Way
from domain.onboarding.app_spec import AppName
from domain.spec_fields import Name
from flows.app_phases import (
    check_before_removal,
    disconnect,
    plan_removal,
    prove_that_nothing_is_left,
    record_removal,
    remove_everything,
    saga_of,
    wait_at_the_gate,
)
from flows.app_run import app_run
from tasks.onboarding.journal import held_journal

NAME = "offboard-app"


@flow(
    name=NAME,
    flow_run_name="take {name} off",
    description="Removes an application and its data from every system, and proves it.",
    persist_result=False,
)
def offboard_app(
    environment: Name,
    name: AppName,
    project_id: int | None = None,
    commit: str = "",
    keep_connected: bool = False,
) -> None:
    """Take an application off.

    Args:
        environment: Environment that it runs in; names its blocks.
        name: Name of the application.
        project_id: Its GitLab project, if no journal remembers it.
        commit: Commit that is told how it went, if there is one.
        keep_connected: Leave the project's webhook: its next push brings the application back.

    Raises:
        PermanentError: naming what is left, and where; the next run goes on.
    """
    with app_run(environment, name, Way.OFFBOARD, commit=commit) as run:
        ready = check_before_removal(run, project_id)
        plan = plan_removal(run, ready)
        if plan.is_empty:
            run.skip("gate", "remove", "prove", reason="nothing is there")
        else:
            wait_at_the_gate(run, ready, plan)
            if not keep_connected:
                disconnect(run)
            with held_journal(environment, name) as held:
                remove_everything(run, saga_of(run, ready, held), ready)
            prove_that_nothing_is_left(run, ready)
        record_removal(run, ready, plan)
