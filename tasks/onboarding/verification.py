"""Whether an application really runs: Argo CD of each stage, then its users' way in.

Promises every stage at once, and an error that names each check which failed. What answers is asked
from outside the cluster, by host name, with the certificate checked against the site's own CA.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from prefect import task
from prefect.futures import PrefectFuture

from blocks.git_repository import git_repository
from blocks.openbao import openbao
from blocks.web_probe import WebProbe
from domain.errors import LifecycleError, PermanentError, TemporaryError
from domain.onboarding.app_spec import Stage
from domain.onboarding.argocd_state import SYNCED, ApplicationState
from domain.onboarding.delivery_checks import (
    DeliveryCheck,
    Verdict,
    awaits_image,
    expected_version,
    failure_text,
    objection,
)
from domain.onboarding.tenant import Platform, Tenant
from tasks.onboarding.argocd_delivery import deliver, delivery_state
from tasks.retry_rules import TEMPORARY

UNBUILT_SECONDS = 30.0
ANSWER_SECONDS = 90.0


@task(name="find the newest commit of the GitOps repository", tags=["system:git"], **TEMPORARY)
def gitops_head(platform: Platform) -> str:
    """Return the commit that every stage is to be at."""
    repository = git_repository(f"{platform.environment}-gitops")
    with openbao(platform.environment).session() as bao:
        credential = bao.read(platform.gitops_credential)
    with repository.session(credential) as work:
        return work.head()


def _delivered_or_synced(tenant: Tenant, stage: Stage, revision: str) -> ApplicationState:
    """Wait for long only until it is synced: without an image it need not become healthy."""
    try:
        return deliver(tenant, stage, revision, UNBUILT_SECONDS)
    except TemporaryError:
        if delivery_state(tenant.platform, tenant.name, stage).is_compared:
            raise
        return deliver(tenant, stage, revision)


@task(name="deliver a stage", task_run_name="deliver {stage}", tags=["system:argocd"], **TEMPORARY)
def deliver_stage(tenant: Tenant, stage: Stage, revision: str) -> DeliveryCheck:
    """Wait until Argo CD runs a commit healthily in a stage, syncing where a person must."""
    began = time.monotonic()
    is_unbuilt = awaits_image(tenant, stage)
    try:
        if is_unbuilt:
            state = _delivered_or_synced(tenant, stage, revision)
        else:
            state = deliver(tenant, stage, revision)
    except LifecycleError as error:
        seconds = time.monotonic() - began
        if is_unbuilt:
            seen = delivery_state(tenant.platform, tenant.name, stage)
            if seen.sync == SYNCED:
                return DeliveryCheck(stage, "Argo CD", Verdict.WAITS, seen.summary, seconds)
        return DeliveryCheck(stage, "Argo CD", Verdict.FAILED, str(error), seconds)
    seconds, wanted = time.monotonic() - began, expected_version(tenant, stage)
    if wanted and state.images and not any(i.endswith(f":{wanted}") for i in state.images):
        detail = f"it runs {', '.join(state.images)}, and {wanted} is deployed"
        return DeliveryCheck(stage, "Argo CD", Verdict.FAILED, detail, seconds)
    return DeliveryCheck(stage, "Argo CD", Verdict.PASSED, state.summary, seconds)


@task(name="open a host name", task_run_name="open {host}", tags=["system:web"], **TEMPORARY)
def open_host(tenant: Tenant, stage: Stage, host: str, address: str) -> DeliveryCheck:
    """Ask the application for an answer until it is right or the time is over."""
    began = time.monotonic()
    check = f"https://{host}{tenant.app.health_path}"
    expected, is_unbuilt = expected_version(tenant, stage), awaits_image(tenant, stage)
    try:
        with WebProbe(address, _ca_pem(tenant.platform)) as probe:
            answer = probe.wait_for(
                host,
                tenant.app.health_path,
                lambda seen: objection(seen.status, seen.version, expected),
                0.0 if is_unbuilt else ANSWER_SECONDS,
            )
    except LifecycleError as error:
        verdict = Verdict.WAITS if is_unbuilt else Verdict.FAILED
        return DeliveryCheck(stage, check, verdict, str(error), time.monotonic() - began)
    ends = answer.certificate_ends_at
    parts = [f"{answer.status} in {answer.seconds * 1000:.0f} ms"]
    parts += [f"version {answer.version}"] if answer.version else []
    parts += [f"certificate until {ends:%Y-%m-%d %H:%M} UTC"] if ends else []
    detail = ", ".join(parts)
    return DeliveryCheck(stage, check, Verdict.PASSED, detail, time.monotonic() - began)


def _ca_pem(platform: Platform) -> str:
    """Return the CA that signs the certificates of host names."""
    with openbao(platform.environment).session() as bao:
        answer = bao.call("read the CA of", "GET", f"{platform.pki_mount}/cert/ca")
    return str(answer["data"]["certificate"])


def verify_stages(tenant: Tenant, stages: Sequence[Stage]) -> list[DeliveryCheck]:
    """Verify stages beside each other; within a stage Argo CD comes first."""
    revision = gitops_head(tenant.platform)
    delivered = [(stage, deliver_stage.submit(tenant, stage, revision)) for stage in stages]
    checks = [_ended(future, stage, "Argo CD") for stage, future in delivered]
    well = [check.stage for check in checks if check.verdict is not Verdict.FAILED]
    asked = [
        (stage, host, open_host.submit(tenant, stage, host, address))
        for stage in well
        for host, address in _hosts(tenant, stage)
    ]
    return checks + [_ended(future, stage, host) for stage, host, future in asked]


def _hosts(tenant: Tenant, stage: Stage) -> list[tuple[str, str]]:
    """Return the host names of a stage with the address that answers for them."""
    platform = tenant.platform
    found = [(host, platform.ingress_address) for host in tenant.hostnames(stage)]
    if platform.outside_address:
        outside = tenant.app.environments[stage].outside_hostnames
        found += [(host, platform.outside_address) for host in outside]
    return found


def _ended(future: PrefectFuture[DeliveryCheck], stage: Stage, check: str) -> DeliveryCheck:
    answer = future.result(raise_on_failure=False)
    if isinstance(answer, DeliveryCheck):
        return answer
    text = str(answer) if isinstance(answer, LifecycleError) else type(answer).__name__
    return DeliveryCheck(stage, check, Verdict.FAILED, text)


def refuse_failed(tenant: Tenant, checks: list[DeliveryCheck]) -> None:
    """Raise what failed.

    Raises:
        PermanentError: naming each check.
    """
    failed = failure_text(checks)
    if failed:
        raise PermanentError(f"{tenant.name} does not run as it should:{failed}")
