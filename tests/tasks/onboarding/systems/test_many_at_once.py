"""Many applications at once on one cluster do not get in each other's way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blocks.kubernetes_logins import NAMESPACE, TOKEN_SECRET
from domain.manifest_order import ObjectKey
from domain.onboarding.tenant import Tenant
from tasks.onboarding.step import Step
from tasks.onboarding.steps.dns import Dns
from tasks.onboarding.steps.kubernetes_secrets import KubernetesSecrets
from tasks.onboarding.steps.openbao_tenant import OpenBaoTenant
from tasks.onboarding.steps.postgresql_database import PostgresqlDatabase

STEPS: tuple[Step, ...] = (OpenBaoTenant(), PostgresqlDatabase(), KubernetesSecrets(), Dns())
COUNT = 8


def test_eight_applications_at_once_on_a_cluster_that_is_new_to_openbao(
    systems: Any, tenant_of: Callable[..., Tenant]
) -> None:
    tenants = [tenant_of(f"many-{number}x") for number in range(COUNT)]
    for tenant in tenants:
        systems.namespace(tenant.namespaces[0])
        systems.put(tenant.pull_robot_path, username="robot", password="made-up")
    systems.admin.sys.disable_auth_method("kubernetes-demo")
    with systems.api() as api:
        api.delete(ObjectKey("v1", "Secret", NAMESPACE, TOKEN_SECRET))

    def apply(tenant: Tenant) -> bool:
        for step in STEPS:
            step.apply(tenant)
        return all(step.found(tenant) == step.wanted(tenant) for step in STEPS)

    def remove(tenant: Tenant) -> bool:
        for step in reversed(STEPS):
            step.remove(tenant)
        return all(step.found(tenant) == {} for step in STEPS)

    with ThreadPoolExecutor(COUNT) as pool:
        assert list(pool.map(apply, tenants)) == [True] * COUNT
        assert list(pool.map(remove, tenants)) == [True] * COUNT
