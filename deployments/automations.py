"""Automations of the Prefect server: a run whose worker died is told as crashed.

A killed worker cannot say that its run is dead, and the run would stay `Running` for ever.
Source: https://docs.prefect.io/v3/advanced/detect-zombie-runs
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture

NAME = "infraflows: crash runs whose heartbeat stopped"
HEARTBEAT_SECONDS = 30
MISSED = 5


def ensure_crash_detection() -> str:
    """Create the automation if it is absent; returns its name."""
    wanted = Automation(
        name=NAME,
        description="A run whose worker was killed is set to Crashed, so that it can be run again.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                "prefect.flow-run.Completed",
                "prefect.flow-run.Failed",
                "prefect.flow-run.Cancelled",
                "prefect.flow-run.Crashed",
                "prefect.flow-run.Paused",
                "prefect.flow-run.Suspended",
            },
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=HEARTBEAT_SECONDS * MISSED),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message="The worker's heartbeat stopped. Run it again: it goes on where it was.",
            )
        ],
    )
    try:
        # Called without an event loop, these methods of Prefect's run at once.
        Automation.read(name=NAME)  # type: ignore[unused-coroutine]
    except ValueError:
        wanted.create()
    return NAME
