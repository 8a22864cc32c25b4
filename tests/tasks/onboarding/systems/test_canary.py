"""No value of a secret is in what the steps tell: logs, states, errors, argv."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.kubernetes_transport import Transport
from domain.errors import LifecycleError
from domain.onboarding.tenant import Tenant
from lab.services.credentials import credential
from tasks.onboarding.step import Step
from tasks.onboarding.steps.dns import Dns
from tasks.onboarding.steps.kubernetes_secrets import KubernetesSecrets
from tasks.onboarding.steps.openbao_tenant import OpenBaoTenant
from tasks.onboarding.steps.postgresql_database import PostgresqlDatabase

STEPS: tuple[Step, ...] = (OpenBaoTenant(), PostgresqlDatabase(), KubernetesSecrets(), Dns())
PASSWORD = "canary-of-the-robot"
VALUE = "canary-of-the-team"


def secrets_of(systems: Any) -> Iterator[str]:
    yield from (PASSWORD, VALUE)
    yield credential(systems.layout, "database")["password"]
    yield credential(systems.layout, "database-issuer")["password"]
    yield systems.dns.secret
    yield systems.layout.secret_id_file.read_text()
    yield systems.control_plane.kubeconfig.partition("client-key-data: ")[2][100:160]


@pytest.fixture
def tenant(systems: Any, tenant_of: Callable[..., Tenant]) -> Tenant:
    found = tenant_of("canary")
    systems.namespace("canary-staging")
    systems.put(found.pull_robot_path, username="robot$canary", password=PASSWORD)
    for step in reversed(STEPS):
        step.remove(found)
    return found


def told_by(calls: list[Callable[[], Any]], caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.DEBUG)
    told = []
    for call in calls:
        try:
            told.append(repr(call()))
        except LifecycleError as error:
            told.append("".join(traceback.format_exception(error)))
    return "\n".join((*told, caplog.text))


def test_nothing_is_told_when_all_goes_well(
    systems: Any, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [lambda step=step: step.apply(tenant) for step in STEPS]
    calls.append(lambda: systems.put("apps/canary/staging/payment", API_KEY=VALUE))
    calls += [lambda step=step: step.found(tenant) for step in STEPS]
    calls += [lambda step=step: step.wanted(tenant) for step in STEPS]
    calls += [lambda step=step: step.remove(tenant) for step in reversed(STEPS)]

    told = told_by(calls, caplog)

    assert "canary-staging" in told
    assert [value for value in secrets_of(systems) if value in told] == []


@pytest.mark.parametrize("broken", ["openbao", "postgresql", "kubernetes", "dns"])
def test_nothing_is_told_when_a_system_fails(
    systems: Any,
    tenant: Tenant,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    if broken == "openbao":
        monkeypatch.setattr(systems.server, "address", "https://127.0.0.1:1")
    elif broken == "postgresql":
        monkeypatch.setattr("blocks.postgresql_tenants._OWNERS", "SELECT nothing FROM nowhere")
    elif broken == "dns":
        monkeypatch.setattr(systems.zone, "port", 1)
    else:
        original = Transport.send

        def refused(self: Transport, method: str, path: str, **named: Any) -> Any:
            if method == "PATCH" and "/secrets/" in path:
                named["body"] = {**named["body"], "metadata": {"name": "Not A Name"}}
            return original(self, method, path, **named)

        monkeypatch.setattr(Transport, "send", refused)
    calls: list[Callable[[], Any]] = [lambda step=step: step.apply(tenant) for step in STEPS]

    told = told_by(calls, caplog)

    assert "Unable to" in told
    assert [value for value in secrets_of(systems) if value in told] == []


def test_the_servers_log_holds_no_password_of_a_user(systems: Any, tenant: Tenant) -> None:
    step = PostgresqlDatabase()
    step.apply(tenant)
    user = systems.admin.read("database/creds/app-canary-staging")["data"]
    step.remove(tenant)
    log = Path(systems.postgresql.directory, "postgresql.log").read_text(errors="replace")
    assert user["password"] not in log
