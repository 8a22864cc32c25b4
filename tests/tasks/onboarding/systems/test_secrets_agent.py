"""The agent of the rendered manifests, run for real: a pod gets its secrets and its database user.

No operator and no injector takes part: OpenBao's own agent, with the configuration that lies in
Git, logs in with the pod's ServiceAccount token and writes the files that the application reads.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests import secrets_agent
from domain.onboarding.manifests.workload import rendered
from domain.onboarding.tenant import Tenant
from lab.toolchain.paths import tool
from tasks.onboarding.steps.openbao_tenant import OpenBaoTenant
from tasks.onboarding.steps.postgresql_database import PostgresqlDatabase

STEPS = (OpenBaoTenant(), PostgresqlDatabase())
START_SECONDS = 60.0


@pytest.fixture
def tenant(systems: Any, tenant_of: Callable[..., Tenant]) -> Iterator[Tenant]:
    made = tenant_of("agent", secrets=[{"path": "payment", "keys": ["API_KEY", "API_URL"]}])
    platform = replace(
        made.platform,
        openbao_url=systems.bao.address,
        openbao_ca_pem=Path(systems.bao.ca_file).read_text(),
        database_address=f"127.0.0.1:{systems.postgresql.port}",
    )
    found = replace(made, platform=platform)
    systems.namespace(found.scoped(Stage.STAGING))
    for step in STEPS:
        step.apply(found)
    yield found
    for step in reversed(STEPS):
        step.remove(found)


def pods_files(systems: Any, tenant: Tenant, directory: Path) -> Path:
    """Lay out what the pod's volumes hold, with the pod's paths moved below `directory`."""
    objects = {d["metadata"]["name"]: d for d in rendered(tenant, Stage.STAGING)}
    data = objects[secrets_agent.AGENT_CONFIG]["data"]
    for path in (
        secrets_agent.SECRETS_DIRECTORY,
        secrets_agent.CONFIG_DIRECTORY,
        secrets_agent.TOKEN_DIRECTORY,
    ):
        (directory / path.lstrip("/")).mkdir(parents=True)
    token = systems.service_account_token(tenant.scoped(Stage.STAGING), "app")
    (directory / secrets_agent.TOKEN_DIRECTORY.lstrip("/") / "token").write_text(token)
    config = directory / secrets_agent.CONFIG_DIRECTORY.lstrip("/")
    for name, text in data.items():
        for path in (secrets_agent.TOKEN_DIRECTORY, secrets_agent.CONFIG_DIRECTORY):
            text = text.replace(path, f"{directory}{path}")
        for template in json.loads(text)["template"] if name == "agent.json" else []:
            moved = f"{directory}{template['destination']}"
            text = text.replace(
                f'"destination": "{template["destination"]}"', f'"destination": "{moved}"'
            )
        (config / name).write_text(text)
    return config / "agent.json"


@contextmanager
def running_agent(config: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(tool("bao")), "agent", f"-config={config}"],
            stdout=log,
            stderr=log,
            env={"HOME": str(directory), "PATH": "/usr/bin:/bin"},
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def wait_for(files: list[Path], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not all(file.exists() for file in files):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_a_pod_gets_its_secrets_and_its_own_database_user(
    systems: Any, tenant: Tenant, tmp_path: Path
) -> None:
    systems.put("apps/agent/staging/payment", API_KEY="planted-key", API_URL="https://pay.test")
    config = pods_files(systems, tenant, tmp_path)
    secrets = tmp_path / "secrets"
    key, service = secrets / "payment" / "API_KEY", secrets / "database" / "pg_service.conf"
    with running_agent(config, tmp_path) as process:
        wait_for([key, secrets / "payment" / "API_URL", service], process, tmp_path / "agent.log")
    assert key.read_text() == "planted-key"
    assert key.stat().st_mode & 0o777 == 0o440
    fields = dict(line.split("=", 1) for line in service.read_text().splitlines()[1:] if line)
    assert fields["dbname"] == "agent_staging"
    assert fields["sslmode"] == "require"
    # This server has no TLS; all else is as libpq finds it in the file that PGSERVICEFILE names.
    values = {name: fields[name] for name in ("host", "port", "dbname", "user", "password")}
    with psycopg.connect(**values, sslmode="disable") as connection:
        row = connection.execute("SELECT current_user, session_user").fetchone()
    assert row == ("agent_staging", fields["user"])


def test_a_pod_whose_secret_has_no_value_yet_waits_and_starts_when_it_has(
    systems: Any, tenant: Tenant, tmp_path: Path
) -> None:
    systems.put("apps/agent/staging/payment", API_KEY="planted-key")
    config = pods_files(systems, tenant, tmp_path)
    url = tmp_path / "secrets" / "payment" / "API_URL"
    with running_agent(config, tmp_path) as process:
        wait_for([tmp_path / "secrets" / "payment" / "API_KEY"], process, tmp_path / "agent.log")
        assert not url.exists()
        systems.put("apps/agent/staging/payment", API_KEY="planted-key", API_URL="now")
    with running_agent(config, tmp_path) as process:
        wait_for([url], process, tmp_path / "agent.log")


def test_the_files_that_hold_back_the_application_are_the_ones_that_are_written(
    tenant: Tenant,
) -> None:
    security: dict[str, Any] = {}
    probe = secrets_agent.container(tenant, security)["startupProbe"]["exec"]["command"][-1]
    data = secrets_agent.config_map(tenant, Stage.STAGING)["data"]
    for template in json.loads(data["agent.json"])["template"]:
        assert f"test -f '{template['destination']}'" in probe
