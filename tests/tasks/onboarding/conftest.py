from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from domain.onboarding.app_reading import parse_app
from domain.onboarding.app_spec import EXAMPLE_APP, Stage
from domain.onboarding.tenant import Platform, Tenant
from lab.bare_control_plane import BareControlPlane, bare_control_plane
from lab.toolchain.paths import NotBuiltError, tool

PLATFORM = Platform(
    environment="lab",
    clusters=dict.fromkeys(Stage, "demo"),
    domain="apps.example.org",
    ingress_address="10.0.0.5",
    outside_address="",
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
    database_address="10.0.0.8:5432",
)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareControlPlane]:
    """A real etcd, kube-apiserver, controllers, scheduler and kwok, for all of these tests."""
    try:
        tool("kube-apiserver")
    except NotBuiltError as error:
        pytest.skip(str(error))
    with bare_control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


class PlantedSecrets:
    """Stands where OpenBao is, for steps whose subject is another system."""

    def __init__(self, values: dict[str, dict[str, str]]) -> None:
        self.values = values

    def __call__(self, _environment: str) -> PlantedSecrets:
        return self

    @contextmanager
    def session(self) -> Iterator[PlantedSecrets]:
        yield self

    def read(self, path: str) -> dict[str, str]:
        return self.values[path]


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
def planted_secrets() -> type[PlantedSecrets]:
    return PlantedSecrets
