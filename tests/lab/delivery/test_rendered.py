"""What onboarding renders for a demanding application, delivered by the real Argo CD."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from blocks.kubernetes_api import KubernetesApi
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.manifests.tenancy import tenancy_objects
from domain.onboarding.tenant import Tenant
from tasks.kubernetes.platform_apply import apply_manifests
from tasks.kubernetes.render import MANIFESTS
from tasks.kubernetes.yaml_documents import load_documents
from tasks.onboarding.steps.argocd import ArgocdStep
from tasks.onboarding.steps.gitops import files_of

DEFINITIONS = MANIFESTS / "40-monitoring" / "definitions"
MONITORING = ("prometheusrules", "servicemonitors")
DEMANDING: dict[str, Any] = {
    "name": "demanding",
    "team": "storefront",
    "repository": "storefront/demanding",
    "owners": ["owner@example.org"],
    "kind": "go",
    "port": 8080,
    "metrics_path": "/metrics",
    "service_level": "gold",
    "resources": {"cpu": "1", "memory": "1Gi", "cpu_limit": "2", "memory_limit": "2Gi"},
    "environments": {
        "development": {},
        "production": {"replicas": 2, "outside_hostnames": ["demanding.example.org"]},
    },
    "secrets": [{"path": "payment", "keys": ["API_KEY"]}],
    "database": {"connections": 20},
}


@pytest.fixture(scope="module")
def definitions(api: KubernetesApi, platform_objects: list[dict[str, Any]]) -> None:
    files = [DEFINITIONS / f"monitoring.coreos.com_{name}.yaml" for name in MONITORING]
    apply_manifests(api, [d for f in files for d in load_documents(f.read_text(), f.name)])


def demanding(site: Any) -> Tenant:
    plain = site.tenant("plain", Stage.STAGING)
    platform = dataclasses.replace(
        plain.platform,
        domain="apps.example.org",
        registry="registry.example.org",
        database_address="10.90.0.1:5432",
        openbao_url="https://10.90.0.1:8200",
        pki_mount="pki",
        database_mount="database",
    )
    tags = {Stage.DEVELOPMENT: "v1", Stage.PRODUCTION: "v1"}
    return Tenant(platform, AppSpec.model_validate(DEMANDING), 7, tags)


def test_a_demanding_application_is_synced_and_healthy_in_each_stage(
    site: Any, definitions: None, show_ingresses: None
) -> None:
    tenant = demanding(site)
    for stage in tenant.app.stages:
        apply_manifests(site.api, tenancy_objects(tenant, stage))
    with site.gitops.session(site.login) as session:
        revision = session.commit_files(files_of(tenant), "feat: a demanding application").sha
    ArgocdStep().apply(tenant)

    automatic = site.argocd.wait_until_synced("demanding-development", revision, 120)
    manual = site.argocd.sync("demanding-production", revision, 120)

    assert (automatic.sync, automatic.health) == ("Synced", "Healthy")
    assert (manual.sync, manual.health) == ("Synced", "Healthy"), manual.summary
    assert any(image.endswith("/demanding:v1") for image in manual.images)
    assert ArgocdStep().found(tenant) == ArgocdStep().wanted(tenant)
    ArgocdStep().remove(tenant)
    assert site.api.list("apps/v1", "Deployment", "demanding-production") == []
