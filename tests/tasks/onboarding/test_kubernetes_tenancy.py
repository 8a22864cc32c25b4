"""The tenancy step against a real API server: it converges, sees drift, and takes nothing over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tasks.onboarding.steps.kubernetes_tenancy as step_module
from blocks.kubernetes_api import KubernetesApi
from domain.errors import Conflict, NotFound
from domain.manifest_order import ObjectKey
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import differences
from lab.bare_control_plane import BareControlPlane
from tasks.onboarding.steps.kubernetes_tenancy import KubernetesTenancy

STEP = KubernetesTenancy()
NUMBERS = itertools.count(1)
FULL = {
    "service_level": "gold",
    "metrics_path": "/metrics",
    "database": {},
    "secrets": [{"path": "payment", "keys": ["API_KEY"]}],
    "resources": {"cpu": "0.5", "memory": "1024Mi", "cpu_limit": "1500m"},
}


@pytest.fixture
def api(
    control_plane: BareControlPlane, planted_secrets: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubernetesApi]:
    secrets = planted_secrets(
        {"clusters/demo/kubeconfig": {"kubeconfig": control_plane.kubeconfig}}
    )
    monkeypatch.setattr(step_module, "openbao", secrets)
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as found:
        yield found


@pytest.fixture
def tenant(make_tenant: Callable[..., Tenant], api: KubernetesApi) -> Iterator[Tenant]:
    made = make_tenant(name=f"shop{next(NUMBERS)}", **FULL)
    yield made
    for stage in made.platform.clusters:
        api.delete(ObjectKey("v1", "Namespace", "", made.scoped(stage)))


def acts(tenant: Tenant) -> dict[str, str]:
    found = differences("s", "s", STEP.found(tenant), STEP.wanted(tenant))
    return {change.thing: change.act.value for change in found}


def smaller(make_tenant: Callable[..., Tenant], tenant: Tenant) -> Tenant:
    stages = {"staging": {"resources": {"cpu": "2", "memory": "2Gi"}}}
    return make_tenant(name=tenant.name, environments=stages)


def test_what_is_applied_is_found_as_wanted_and_again_changes_nothing(
    tenant: Tenant, api: KubernetesApi
) -> None:
    assert STEP.found(tenant) == {}
    STEP.apply(tenant)
    assert acts(tenant) == {}
    versions = [ns["metadata"]["resourceVersion"] for ns in _network_policies(api, tenant)]
    STEP.apply(tenant)
    assert versions == [ns["metadata"]["resourceVersion"] for ns in _network_policies(api, tenant)]
    assert len(STEP.wanted(tenant)) == 3 * 12


def _network_policies(api: KubernetesApi, tenant: Tenant) -> list[dict[str, Any]]:
    return api.list("networking.k8s.io/v1", "NetworkPolicy", f"{tenant.name}-staging")


def test_a_smaller_spec_takes_away_what_it_no_longer_wants(
    tenant: Tenant, make_tenant: Callable[..., Tenant], api: KubernetesApi
) -> None:
    STEP.apply(tenant)
    after = smaller(make_tenant, tenant)
    planned = acts(after)
    assert planned[f"Namespace {tenant.name}-production in demo"] == "delete"
    assert planned[f"ResourceQuota {tenant.name}-staging/app in demo"] == "change"
    assert planned[f"NetworkPolicy {tenant.name}-staging/allow-database in demo"] == "delete"
    STEP.apply(after)
    assert acts(after) == {}
    with pytest.raises(NotFound):
        api.get(ObjectKey("v1", "Namespace", "", f"{tenant.name}-production"))


@pytest.mark.parametrize(
    ("kind", "name", "patch"),
    [
        ("NetworkPolicy", "default-deny", {"spec": {"policyTypes": ["Ingress"]}}),
        ("NetworkPolicy", "allow-ingress-controller", {"spec": {"ingress": [{}]}}),
        ("Role", "team", {"rules": []}),
        ("RoleBinding", "team", {"subjects": []}),
        ("ResourceQuota", "app", {"spec": {"hard": {"pods": "500"}}}),
        ("ServiceAccount", "app", {"automountServiceAccountToken": True}),
        ("LimitRange", "app", {"metadata": {"labels": {"infraflows.io/team": "other"}}}),
    ],
)
def test_a_change_by_hand_is_seen_and_taken_back(
    kind: str, name: str, patch: dict[str, Any], tenant: Tenant, api: KubernetesApi
) -> None:
    STEP.apply(tenant)
    version = next(version for version, known in step_module.TENANCY_KINDS if known == kind)
    key = ObjectKey(version, kind, f"{tenant.name}-staging", name)
    api.merge(key, patch, "a-person")
    assert acts(tenant) == {f"{key.text} in demo": "change"}
    STEP.apply(tenant)
    assert acts(tenant) == {}


def test_a_weakened_namespace_is_seen(tenant: Tenant, api: KubernetesApi) -> None:
    STEP.apply(tenant)
    key = ObjectKey("v1", "Namespace", "", f"{tenant.name}-staging")
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    api.merge(key, {"metadata": {"labels": labels}}, "a-person")
    assert acts(tenant) == {f"{key.text} in demo": "change"}


def test_what_others_add_beside_is_no_drift(tenant: Tenant, api: KubernetesApi) -> None:
    STEP.apply(tenant)
    key = ObjectKey("v1", "Namespace", "", f"{tenant.name}-staging")
    api.merge(key, {"metadata": {"annotations": {"example.org/note": "seen"}}}, "a-person")
    assert acts(tenant) == {}


def test_a_namespace_of_somebody_else_is_not_taken_over(tenant: Tenant, api: KubernetesApi) -> None:
    name = f"{tenant.name}-staging"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    with pytest.raises(Conflict, match=f"Namespace {name} is there"):
        STEP.apply(tenant)
    STEP.remove(tenant)
    assert api.get(ObjectKey("v1", "Namespace", "", name))["status"]["phase"] == "Active"
    assert STEP.found(tenant) == {}


def test_removal_leaves_nothing_and_may_be_repeated(tenant: Tenant, api: KubernetesApi) -> None:
    STEP.apply(tenant)
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}
    STEP.remove(tenant)
    assert not [ns for ns in api.list("v1", "Namespace") if tenant.name in ns["metadata"]["name"]]


def test_a_namespace_that_is_still_ending_is_made_anew(tenant: Tenant, api: KubernetesApi) -> None:
    STEP.apply(tenant)
    key = ObjectKey("v1", "Namespace", "", f"{tenant.name}-staging")
    before = api.get(key)["metadata"]["uid"]
    api.delete(key)
    STEP.apply(tenant)
    assert api.get(key)["metadata"]["uid"] != before
    assert acts(tenant) == {}


def test_applications_whose_names_begin_alike_do_not_meet(
    tenant: Tenant, make_tenant: Callable[..., Tenant]
) -> None:
    other = make_tenant(name=f"{tenant.name}-b", **FULL)
    STEP.apply(tenant)
    STEP.apply(other)
    STEP.remove(other)
    assert acts(tenant) == {}
