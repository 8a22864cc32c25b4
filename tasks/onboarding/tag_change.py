"""Changing one image tag as an attempt of the saga: the plan, and who carries it out.

Promises that a deployment changes one line of one file in Git and nothing else, whatever else of
the application has drifted meanwhile; that is for the next onboarding to show.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.futures import PrefectFuture

from blocks.harbor import harbor_registry
from blocks.openbao import openbao
from domain.findings import Finding, error, ok
from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests.conventions import UNBUILT_TAG
from domain.onboarding.onboarding_plan import AppPlan, StepLook
from domain.onboarding.saga import Order, Version
from domain.onboarding.tenant import Platform, Tenant
from tasks.onboarding.engine import Ended
from tasks.onboarding.ledger_line import record_line
from tasks.onboarding.steps.gitops import GitOps, previous_tag, set_tag
from tasks.retry_rules import TEMPORARY

STEP = GitOps.name
SHOWN_AT_MOST = 8


@task(name="set an image tag", task_run_name="{stage} runs {tag}", tags=["system:git"], **TEMPORARY)
def set_image_tag(platform: Platform, app: str, stage: Stage, tag: str) -> str:
    """Commit the tag and leave a line in the ledger; returns the commit."""
    commit = set_tag(platform, app, stage, tag)
    details = {"stage": stage.value, "tag": tag, "commit": commit}
    record_line(platform.environment, app, "set image tag", "changed", details)
    return commit


@task(name="find the previous tag", tags=["system:git"], **TEMPORARY)
def tag_before(platform: Platform, app: str, stage: Stage) -> str:
    """Return the tag that a stage ran before its present one."""
    return previous_tag(platform, app, stage)


@task(name="look for an image", tags=["system:harbor"], **TEMPORARY)
def image_findings(tenant: Tenant, tag: str) -> list[Finding]:
    """Return an error when Harbor has no image of this tag: nothing could run it."""
    registry = harbor_registry(tenant.platform.environment)
    image = f"{tenant.harbor_project}/{tenant.name}"
    with openbao(tenant.platform.environment).session() as bao:
        login = bao.read(registry.credential)
    with registry.session(login) as harbor:
        tags = harbor.tags(tenant.harbor_project, tenant.name)
    if tag in tags:
        return [ok("image", f"Harbor has {image}:{tag}")]
    known = ", ".join(tags[-SHOWN_AT_MOST:]) or "none"
    fix = "Wait for the pipeline, or name one that is there."
    return [error("image", f"Harbor has no {image}:{tag}; the newest are {known}", fix)]


def tag_plan(app: str, stage: Stage, good: Version, target: Version) -> AppPlan:
    """Return the plan of a change of one tag."""
    thing = f"image tag of {stage.value}"
    found = {thing: good.tags.get(stage, UNBUILT_TAG)}
    wanted = {thing: target.tags.get(stage, UNBUILT_TAG)}
    look = StepLook(STEP, GitOps.system, False, found, wanted)
    return AppPlan(app, target, [look], good)


class TagWorkers:
    """Carries out the one order of a tag change, forward and back."""

    def __init__(self, stage: Stage) -> None:
        """Change the tag of `stage`."""
        self._stage = stage

    def start(self, order: Order, tenant: Tenant, tell: Callable[[Ended], None]) -> None:
        """Submit the commit."""
        began = time.monotonic()

        def ended(future: PrefectFuture[Any]) -> None:
            answer = future.result(raise_on_failure=False)
            failure = answer if isinstance(answer, BaseException) else None
            tell(Ended(order, time.monotonic() - began, failure))

        tag = tenant.tags.get(self._stage, UNBUILT_TAG)
        submitted = set_image_tag.submit(tenant.platform, tenant.name, self._stage, tag)
        submitted.add_done_callback(ended)
