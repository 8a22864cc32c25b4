"""Sets a site up in Prefect: blocks, gate policies, the work pool, deployments, automations.

Promises that running it again changes only what differs, and that nothing it writes is secret.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.importtools import import_object
from prefect.variables import Variable

from deployments.automations import ensure_crash_detection
from deployments.blocks import save_blocks
from deployments.site_file import SiteFile
from domain.errors import PermanentError
from domain.gate import GatePolicy, policy_variable

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = Path(__file__).resolve().parent / "environments"
WORK_POOL = "infraflows"
NIGHTLY = "rotate-secrets/nightly"
RECONCILE = "reconcile-deliveries/default"
CONVERGE = "converge-apps/default"
Say = Callable[[str], None]


def _ensure_gate_policy(environment: str) -> str:
    name = policy_variable(environment)
    found = Variable.get(name, default=None)
    if found is None:
        policy = GatePolicy.AUTOMATIC if environment == "lab" else GatePolicy.APPROVAL
        Variable.set(name, policy.value)
        found = policy.value
    return str(found)


def _ensure_work_pool() -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(WORK_POOL)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))


def default_spec(environment: str) -> dict[str, Any] | None:
    """Return the spec that an environment's deployments start with, or None."""
    path = ENVIRONMENTS / f"{environment}.yaml"
    if not path.exists():
        return None
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def default_parameters(
    name: str, environment: str, deployment: DeploymentResponse
) -> dict[str, Any]:
    """Return what a deployment starts with: a cluster's spec, or the first site's environment."""
    spec = default_spec(name)
    if spec is not None:
        return {"spec": spec}
    asked = (deployment.parameter_openapi_schema or {}).get("properties", {})
    return {"environment": environment} if "environment" in asked else {}


def deployment_names() -> list[tuple[str, str]]:
    """Return (flow, deployment) of everything in prefect.yaml."""
    items = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    # Several functions may be one flow: its name is on the flow, not in the function's name.
    return [(import_object(item["entrypoint"]).name, item["name"]) for item in items]


def _deploy(environment: str) -> list[str]:
    """Register prefect.yaml's deployments; returns their names as `flow/deployment`."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_LOGGING_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise PermanentError(
            f"Unable to register the deployments: prefect deploy ended with {done.returncode}. "
            f"Read its last lines:\n{tail}"
        )
    names = []
    with get_client(sync_client=True) as client:
        for flow, deployment_name in deployment_names():
            name = f"{flow}/{deployment_name}"
            deployment = client.read_deployment_by_name(name)
            defaults = default_parameters(deployment_name, environment, deployment)
            if defaults and not deployment.parameters:
                client.update_deployment(deployment.id, DeploymentUpdate(parameters=defaults))
            names.append(name)
    return names


def ensure_schedule(name: str, environment: str, cron: str, *, is_active: bool) -> str:
    """Give a deployment its schedule in an environment, unless it has one.

    One that is there is left as it is: a person may have paused it or moved it in the UI.
    """
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name)
        found = {each.slug: each for each in deployment.schedules}
        if environment not in found:
            wanted = DeploymentScheduleCreate(
                schedule=CronSchedule(cron=cron, timezone="UTC"),
                active=is_active,
                slug=environment,
                parameters={"environment": environment},
            )
            client.create_deployment_schedules(deployment.id, [wanted])
            return f"{cron} UTC, {'active' if is_active else 'paused'}"
    return "as it was, active" if found[environment].active else "as it was, paused"


def schedules(site: SiteFile) -> list[tuple[str, str, bool]]:
    """Return deployment, cron line and whether it is active, of what a site runs by the clock."""
    found = [(NIGHTLY, site.rotation.cron, site.rotation.is_scheduled)]
    if (gateway := site.gateway) is not None:
        found.append((RECONCILE, gateway.reconcile_cron, gateway.is_reconcile_scheduled))
    if (onboarding := site.onboarding) is not None:
        found.append((CONVERGE, onboarding.converge_cron, onboarding.is_converge_scheduled))
    return found


def set_up(site: SiteFile, say: Say) -> None:
    """Bring Prefect into the state that the site's flows need."""
    _ensure_work_pool()
    say(f"work pool {WORK_POOL}")
    say("blocks: " + ", ".join(save_blocks(site)))
    say(f"gate policy of {site.environment}: {_ensure_gate_policy(site.environment)}")
    say("deployments: " + ", ".join(_deploy(site.environment)))
    for name, cron, is_active in schedules(site):
        schedule = ensure_schedule(name, site.environment, cron, is_active=is_active)
        say(f"schedule of {name} in {site.environment}: {schedule}")
    say("automation: " + ensure_crash_detection())
