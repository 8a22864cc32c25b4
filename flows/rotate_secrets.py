"""Rotates secrets: what is due at night, one by hand, or all that a leak reaches.

Three ways into one flow. Every way begins with the same list and plan, can be run dry, and ends
with each old value proved dead or an error that says what is in use and what is not. No parameter
ever holds a value: paths and names only.
"""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from domain.rotation.blast_radius import Leak, LeakKind
from domain.rotation.policy import RotationPolicy
from domain.rotation.run_plan import RunPlan, Way
from domain.spec_fields import Name
from flows.rotation_phases import (
    plan_after_leak,
    plan_one,
    plan_the_night,
    record_run,
    report_dry_run,
    rotate_all,
    run_preflight,
    wait_at_the_gate,
)
from flows.rotation_run import RotationRun, rotation_run

NAME = "rotate-secrets"
HINT_PATTERN = r"^(?!(hvs|hvb|s|b)\.)\S(.*\S)?$"
"""Refuses tokens, which begin with one of these: the hint is stored and shown."""


class LeakHint(BaseModel):
    """What is known about the leak."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")

    kind: LeakKind = Field(
        description="path or prefix of secrets, accessor of a token, full id of a commit of the "
        "infrastructure repository, or name or address of a host."
    )
    value: str = Field(
        min_length=1,
        max_length=512,
        pattern=HINT_PATTERN,
        description="The path, prefix, accessor, commit or host. Never the leaked value itself.",
    )


def _carry_out(run: RotationRun, policy: RotationPolicy, plan: RunPlan) -> None:
    """Do what was planned; on a dry run show it only."""
    if run.is_dry:
        report_dry_run(run, plan)
        return
    wait_at_the_gate(run, plan)
    rotate_all(run, policy, plan)
    record_run(run, plan)


@flow(
    name=NAME,
    flow_run_name="rotate what is due in {environment}",
    description="Rotates every secret that is due, in waves, and proves the old values dead.",
    persist_result=False,
)
def rotate_secrets(environment: Name, dry_run: bool = False) -> None:
    """Rotate what is due.

    Args:
        environment: Environment whose secrets are looked at; names its blocks.
        dry_run: Show the plan and touch nothing.

    Raises:
        PermanentError: the preflight found errors, or a rotation did not end well.
    """
    with rotation_run(environment, Way.NIGHTLY, is_dry=dry_run) as run:
        policy, seen = run_preflight(run)
        plan = plan_the_night(run, policy, seen)
        _carry_out(run, policy, plan)


@flow(
    name=NAME,
    flow_run_name="rotate {path}",
    description="Rotates one secret now, be it due or not.",
    persist_result=False,
)
def rotate_one_secret(
    environment: Name, path: str, outside_windows: bool = False, dry_run: bool = False
) -> None:
    """Rotate one secret.

    Args:
        environment: Environment of the secret; names its blocks.
        path: OpenBao path of the secret, without the mount.
        outside_windows: Go on although the window of its class is closed.
        dry_run: Show the plan and touch nothing.

    Raises:
        NotFound: no rule names the path. PermanentError: it did not end well.
    """
    with rotation_run(environment, Way.ONE, is_dry=dry_run) as run:
        policy, seen = run_preflight(run)
        plan = plan_one(
            run, policy, seen, path.strip("/"), is_outside_windows=outside_windows or dry_run
        )
        _carry_out(run, policy, plan)


@flow(
    name=NAME,
    flow_run_name="rotate after a leak in {environment}",
    description="Finds out what a leak reaches and rotates all of it at once.",
    persist_result=False,
)
def rotate_after_leak(environment: Name, leak: LeakHint, dry_run: bool = False) -> None:
    """Rotate all that a leak reaches.

    Args:
        environment: Environment of the leak; names its blocks.
        leak: What is known about it.
        dry_run: Show blast radius and plan and touch nothing.

    Raises:
        NotFound: the hint names nothing that is known. PermanentError: something did not end well.
    """
    with rotation_run(environment, Way.LEAK, is_dry=dry_run) as run:
        policy, seen = run_preflight(run)
        plan = plan_after_leak(run, policy, seen, Leak(leak.kind, leak.value))
        _carry_out(run, policy, plan)
