"""Seeing a commit of the GitOps repository arrive in a stage.

Exists so that onboarding, deployment and roll-back wait for the same thing. Promises to name every
object that is not well when the time is over. A stage that waits for a person is synced here, by
whoever passed its gate, at exactly the commit that was approved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blocks.argocd import ArgoCd
from blocks.kubernetes_api import KubernetesApi
from blocks.openbao import openbao
from domain.onboarding.app_spec import Stage
from domain.onboarding.argocd_objects import is_automatic
from domain.onboarding.argocd_state import ApplicationState
from domain.onboarding.tenant import Platform, Tenant

DELIVERY_SECONDS = 300.0


@contextmanager
def argocd_of(platform: Platform, stage: Stage) -> Iterator[ArgoCd]:
    """Yield the Argo CD of a stage's cluster."""
    with openbao(platform.environment).session() as bao:
        kubeconfig = bao.read(platform.kubeconfig_path(stage))["kubeconfig"]
    with KubernetesApi.from_kubeconfig(kubeconfig) as api:
        yield ArgoCd(api, platform.argocd_namespace)


def deliver(
    tenant: Tenant, stage: Stage, revision: str, timeout_seconds: float = DELIVERY_SECONDS
) -> ApplicationState:
    """Bring a stage to a commit of the GitOps repository and wait until it runs healthily there.

    Raises:
        NotFound: the stage has no Application. PermanentError: Argo CD gave the commit up.
        Conflict: another operation is under way. Unreachable: it is not so in time.
    """
    with argocd_of(tenant.platform, stage) as argocd:
        if is_automatic(stage):
            return argocd.wait_until_synced(tenant.scoped(stage), revision, timeout_seconds)
        return argocd.sync(tenant.scoped(stage), revision, timeout_seconds)


def delivery_state(platform: Platform, name: str, stage: Stage) -> ApplicationState:
    """Return what Argo CD says of an application's stage.

    Raises:
        NotFound: the stage has no Application.
    """
    with argocd_of(platform, stage) as argocd:
        return argocd.state(f"{name}-{stage.value}")
