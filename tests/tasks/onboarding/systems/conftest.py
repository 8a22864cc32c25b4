"""Real OpenBao, PostgreSQL, BIND and Kubernetes, set up as the lab's administrator sets them up.

The worker's rights are those of the lab, no more: what a step lacks fails here. `kill` runs a call
and kills it after its n-th change of a system; what is dead changes nothing any more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvac
import psycopg
import pytest
import requests

import blocks.dns_zone
import blocks.openbao
from blocks.dns_zone import DnsZone
from blocks.kubernetes_api import KubernetesApi
from blocks.kubernetes_transport import Transport
from blocks.openbao import OpenBaoServer
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.tenant import Platform, Tenant
from lab.bare_control_plane import BareControlPlane, bare_control_plane
from lab.bare_services import (
    BareDns,
    BareOpenBao,
    BarePostgresql,
    bare_dns,
    bare_openbao,
    bare_postgresql,
)
from lab.layout import ENVIRONMENT, ZONE, Layout
from lab.services.certificates import ensure_certificates
from lab.services.credentials import credential, credential_file, ensure_credentials
from lab.services.openbao_onboarding import DATABASE_MOUNT, DATABASE_SERVER, PKI_MOUNT, PKI_ROLE
from lab.services.openbao_setup import configure
from lab.services.postgresql import BINARIES, caretaker
from tasks.onboarding.step import Step

CLUSTER = "demo"
INGRESS = "10.90.0.5"
READ_PATHS = ("/lookup", "/login", "/revoke-self")


@dataclass(frozen=True)
class TrialLayout(Layout):
    """The lab's files in a directory of the tests, its OpenBao on a port of the machine."""

    address: str = ""

    @property
    def namespace_path(self) -> Path:
        return Path("/proc/self/ns/net")

    @property
    def openbao_url(self) -> str:
        return self.address


@dataclass
class Systems:
    """Everything that the steps speak to, and how an administrator looks at it."""

    layout: Layout
    bao: BareOpenBao
    postgresql: BarePostgresql
    dns: BareDns
    control_plane: BareControlPlane
    zone: DnsZone
    server: OpenBaoServer
    changes: list[str] = field(default_factory=list)

    @property
    def admin(self) -> hvac.Client:
        return self.bao.client()

    def api(self) -> KubernetesApi:
        return KubernetesApi.from_kubeconfig(self.control_plane.kubeconfig)

    def put(self, path: str, **values: str) -> None:
        self.admin.secrets.kv.v2.create_or_update_secret(path, values, mount_point="kv")

    def login_of_pod(self, namespace: str, role: str, mount: str = f"kubernetes-{CLUSTER}") -> str:
        """Log in as a pod does; returns OpenBao's token."""
        token = self.service_account_token(namespace, "app")
        client = self.bao.client("")
        answer = client.auth.kubernetes.login(role, token, use_token=False, mount_point=mount)
        return str(answer["auth"]["client_token"])

    def service_account_token(self, namespace: str, name: str) -> str:
        with self.api() as api:
            path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
            body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
            return str(api._transport.send("POST", path, body=body).json["status"]["token"])

    def namespace(self, name: str) -> None:
        """What kubernetes-tenancy makes, as far as these steps need it."""
        with self.api() as api:
            api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            account = {"name": "app", "namespace": name}
            api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})


@pytest.fixture(scope="session")
def trial_directory() -> Iterator[Path]:
    """A directory in memory that PostgreSQL's system user can reach, unlike pytest's own."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() else Path("/var/tmp")
    directory = Path(tempfile.mkdtemp(dir=base, prefix="infraflows-onboarding-"))
    directory.chmod(0o755)
    for name in ("openbao", "postgresql", "dns", "kubernetes", "home"):
        (directory / name).mkdir(mode=0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def set_up(layout: Layout, bao: BareOpenBao, postgresql: BarePostgresql, dns: BareDns) -> None:
    """What the lab's administrator does, by the lab's own set-up."""
    ensure_certificates(layout)
    # Whoever trusts the lab trusts this OpenBao too.
    own = layout.ca_file.read_text()
    layout.ca_file.write_text(own + Path(bao.ca_file).read_text())
    ensure_credentials(layout)
    place = {"host": "127.0.0.1", "port": str(postgresql.port)}
    for name in ("database", "database-issuer"):
        login = {**credential(layout, name), **place}
        credential_file(layout, name).write_text(json.dumps(login))
    credential_file(layout, "dns").write_text(json.dumps(dict(dns.key)))
    layout.openbao_directory.mkdir()
    (layout.openbao_directory / "keys.json").write_text(json.dumps({"root_token": bao.root_token}))
    statements = caretaker("provisioner", "CREATEDB CREATEROLE", credential(layout, "database"))
    statements += caretaker("openbao", "CREATEROLE", credential(layout, "database-issuer"))
    subprocess.run(
        [str(BINARIES / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"],
        input=statements,
        text=True,
        check=True,
        env={
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgresql.port),
            "PGUSER": postgresql.username,
            "PGPASSWORD": postgresql.password,
            "PGDATABASE": "postgres",
            "PATH": os.environ["PATH"],
        },
    )
    configure(layout)


@pytest.fixture(scope="session")
def running(trial_directory: Path) -> Iterator[Systems]:
    with (
        bare_control_plane(trial_directory / "kubernetes") as control_plane,
        bare_openbao(trial_directory / "openbao") as bao,
        bare_postgresql(trial_directory / "postgresql") as postgresql,
        bare_dns(trial_directory / "dns", ZONE) as dns,
    ):
        layout = TrialLayout("trial", trial_directory / "home", address=bao.address)
        set_up(layout, bao, postgresql, dns)
        server = OpenBaoServer(
            address=bao.address,
            ca_file=bao.ca_file,
            role_id_file=str(layout.role_id_file),
            secret_id_file=str(layout.secret_id_file),
        )
        zone = DnsZone(
            server="127.0.0.1",
            port=dns.port,
            zone=ZONE,
            credential=f"infraflows/{ENVIRONMENT}/dns",
        )
        systems = Systems(layout, bao, postgresql, dns, control_plane, zone, server)
        systems.put(f"clusters/{CLUSTER}/kubeconfig", kubeconfig=control_plane.kubeconfig)
        yield systems


@pytest.fixture
def systems(running: Systems, monkeypatch: pytest.MonkeyPatch) -> Systems:
    """The systems, with the blocks of the environment being theirs."""
    monkeypatch.setattr(blocks.openbao, "document", lambda *_: running.server)
    monkeypatch.setattr(blocks.dns_zone, "document", lambda *_: running.zone)
    return running


PLATFORM = Platform(
    environment=ENVIRONMENT,
    clusters=dict.fromkeys(Stage, CLUSTER),
    domain=f"apps.{ZONE}",
    ingress_address=INGRESS,
    outside_address="10.90.0.6",
    registry="harbor.test:8930",
    gitops_url="https://git.test/gitops.git",
    gitops_branch="main",
    gitops_credential=f"infraflows/{ENVIRONMENT}/git",
    gitlab_url="https://gitlab.test",
    gateway_url="https://gateway.test",
    database_mount=DATABASE_MOUNT,
    database_server=DATABASE_SERVER,
    database_credential=f"infraflows/{ENVIRONMENT}/database",
    pki_mount=PKI_MOUNT,
    pki_role=PKI_ROLE,
)


def app_of(name: str, stages: tuple[str, ...] = ("staging",), **fields: Any) -> AppSpec:
    document = {
        "name": name,
        "team": "storefront",
        "repository": f"storefront/{name}",
        "owners": ["jo@example.org"],
        "kind": "python",
        "port": 8080,
        "environments": {stage: {"replicas": 2} for stage in stages},
        "secrets": [{"path": "payment", "keys": ["API_KEY"]}],
        "database": {"connections": 5, "extensions": ["citext"]},
        **fields,
    }
    return AppSpec.model_validate(document)


@pytest.fixture
def tenant_of() -> Callable[..., Tenant]:
    """Return how a tenant is made from a name, stages and fields that differ."""

    def make(name: str, stages: tuple[str, ...] = ("staging",), **fields: Any) -> Tenant:
        app = app_of(name, stages, **fields)
        return Tenant(PLATFORM, app, 7, dict.fromkeys(Stage, "v1"))

    return make


class Killed(BaseException):
    """What SIGKILL is within one process: nothing after it is done."""


class Changes:
    """Records what a call changes, and kills it after one of the changes."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.kill_after = kill_after
        self.made: list[str] = []
        self._thread = threading.get_ident()

    @property
    def _is_dead(self) -> bool:
        return self.kill_after is not None and len(self.made) > self.kill_after

    def around(self, original: Callable[..., Any], told: Callable[..., str]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread:
                return original(*arguments, **named)
            change = told(*arguments, **named)
            if self._is_dead:
                raise Killed(change)
            answer = original(*arguments, **named)
            if change:
                self.made.append(change)
                if self._is_dead:
                    raise Killed(change)
            return answer

        return watched


def _http_change(_self: Any, request: requests.PreparedRequest, **_named: Any) -> str:
    path = str(request.path_url)
    is_reading = request.method in ("GET", "LIST") or any(part in path for part in READ_PATHS)
    return "" if is_reading else f"{request.method} {path}"


def _sql_change(_self: Any, query: Any, *_arguments: Any, **_named: Any) -> str:
    text = query if isinstance(query, str) else query.as_string(None)
    text = " ".join(text.split())
    is_reading = text.startswith("SELECT") and "pg_terminate_backend" not in text
    return "" if is_reading else text[:60]


def _kubernetes_change(_self: Any, method: str, path: str, **_named: Any) -> str:
    return "" if method == "GET" else f"{method} {path}"


def _dns_change(_self: Any, _update: Any, act: str) -> str:
    return act


@contextmanager
def watching(changes: Changes) -> Iterator[Changes]:
    patched = [
        (requests.Session, "send", _http_change),
        (psycopg.Connection, "execute", _sql_change),
        (Transport, "send", _kubernetes_change),
        (DnsZone, "_send", _dns_change),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patched]
    try:
        for owner, name, told in patched:
            setattr(owner, name, changes.around(getattr(owner, name), told))
        yield changes
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


@pytest.fixture
def changes_of() -> Callable[[Callable[[], None]], list[str]]:
    """Return what a call changes in the systems, in words without values."""

    def made(call: Callable[[], None]) -> list[str]:
        with watching(Changes()) as changes:
            call()
        return changes.made

    return made


@pytest.fixture
def killed_everywhere() -> Callable[..., int]:
    """Kill a step's apply after each of its changes, and its removal too; both are finished.

    `make` returns the tenant of a number, fresh. Every application is applied, killed at its own
    number, applied again, removed, killed at its own number, and removed again. Returns how many.
    """

    def run(step: Step, make: Callable[[int], Tenant]) -> int:
        number = 0
        while True:
            tenant = make(number)
            was_applied = _killed(number, step.apply, tenant)
            step.apply(tenant)
            assert step.found(tenant) == step.wanted(tenant), f"applying, killed after {number}"
            was_removed = _killed(number, step.remove, tenant)
            step.remove(tenant)
            assert step.found(tenant) == {}, f"removing, killed after {number}"
            number += 1
            if was_applied and was_removed:
                return number

    return run


def _killed(number: int, call: Callable[[Tenant], None], tenant: Tenant) -> bool:
    """Kill a call after so many changes; True when it ended by itself before."""
    with watching(Changes(number)):
        try:
            call(tenant)
        except Killed:
            return False
    return True
