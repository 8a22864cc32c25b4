from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from domain.onboarding.app_reading import parse_app
from domain.onboarding.app_spec import EXAMPLE_APP, Stage
from domain.onboarding.tenant import Platform, Tenant

PLATFORM = Platform(
    environment="lab",
    clusters=dict.fromkeys(Stage, "demo"),
    domain="apps.example.org",
    ingress_address="10.0.0.5",
    outside_address="10.0.0.6",
    registry="harbor.example.org",
    gitops_url="https://git.example.org/gitops.git",
    gitops_branch="main",
    gitops_credential="infraflows/lab/git",
    gitlab_url="https://gitlab.example.org",
    gateway_url="https://hooks.example.org",
    database_mount="database",
    database_server="apps",
    database_credential="infraflows/lab/database",
    pki_mount="pki",
    pki_role="apps",
    openbao_url="https://10.0.0.7:8200",
    openbao_ca_pem="-----BEGIN CERTIFICATE-----\nexample\n-----END CERTIFICATE-----\n",
    database_address="10.0.0.8:5432",
)

FULL_APP: dict[str, Any] = {
    "service_level": "gold",
    "metrics_path": "/metrics",
    "health_path": "/healthz",
    "database": {"connections": 10},
    "secrets": [{"path": "payment", "keys": ["API_KEY", "API_URL"]}],
    "resources": {"cpu": "250m", "memory": "256Mi", "memory_limit": "512Mi"},
    "environments": {
        "development": {},
        "staging": {"resources": {"cpu": "1", "memory": "1Gi", "cpu_limit": "2"}},
        "production": {
            "replicas": 3,
            "hostnames": ["shop.apps.example.org", "www.apps.example.org"],
            "outside_hostnames": ["shop.example.com"],
        },
    },
}
"""Changes that make an application use everything."""

MakeTenant = Callable[..., Tenant]


@pytest.fixture
def make_tenant() -> MakeTenant:
    """Return a tenant of the example application with changes; None takes a field away."""

    def make(tags: dict[Stage, str] | None = None, **change: Any) -> Tenant:
        data = {**copy.deepcopy(EXAMPLE_APP), **change}
        app = parse_app({key: value for key, value in data.items() if value is not None})
        return Tenant(PLATFORM, app, 7, tags or dict.fromkeys(Stage, "v1.0.0-main"))

    return make


@pytest.fixture
def full_tenant(make_tenant: MakeTenant) -> Tenant:
    return make_tenant(**copy.deepcopy(FULL_APP))


@pytest.fixture
def image_tenant(make_tenant: MakeTenant) -> Tenant:
    return make_tenant(kind=None, image="registry.example.net/team/shop:1.4.2")
