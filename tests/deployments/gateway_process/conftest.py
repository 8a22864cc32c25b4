"""The gateway as a process of its own, between a real OpenBao, a GitLab and a Prefect server.

GitLab is the lab's simulator with its real repositories and signed deliveries. Of the flows that
the gateway starts only the deployments are there: a run that is scheduled is what it promises.
"""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from blocks.app_platform import AppPlatform
from blocks.gitlab_server import GitLabServer
from blocks.openbao import OpenBaoServer
from lab.bare_control_plane import Authority, free_ports
from lab.bare_gitlab import GROUP, PRODUCT, BareGitLab, bare_gitlab
from lab.bare_services import BareOpenBao, bare_openbao

ENVIRONMENT = "trial"
WORKER = "worker"
START_SECONDS = 90.0
PATIENCE_SECONDS = 60.0
POLICY = f"""
path "kv/data/infraflows/{ENVIRONMENT}/*" {{ capabilities = ["read"] }}
path "kv/data/webhooks/*"     {{ capabilities = ["create", "read", "update", "delete"] }}
path "kv/metadata/webhooks/*" {{ capabilities = ["create", "read", "update", "delete", "list"] }}
path "kv/data/onboarding/*"     {{ capabilities = ["create", "read", "update"] }}
path "kv/metadata/onboarding/*" {{ capabilities = ["read", "list"] }}
path "auth/token/revoke-self" {{ capabilities = ["update"] }}
"""
APP = """\
name: {name}
team: storefront
owners: [ada@example.org]
image: registry.example.org/storefront/{name}:1.0.0
port: {port}
environments:
  staging: {{}}
"""


@dataclass
class GatewayProcess:
    """A gateway that can be killed and started again on what it has stored."""

    directory: Path
    port: int
    site_file: Path
    api_url: str
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> str:
        return str(self.directory / "ca.crt")

    def client(self, **settings: Any) -> httpx.Client:
        verify = ssl.create_default_context(cafile=self.ca_file)
        return httpx.Client(base_url=self.url, verify=verify, trust_env=False, **settings)

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "PREFECT_HOME": str(self.directory / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "DO_NOT_TRACK": "1",
        }
        command = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable]
        command += ["-m", "deployments.gateway", "--site", str(self.site_file)]
        with (self.directory / "gateway.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[3],
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the gateway does not start:\n{self.log()}", pytrace=False)
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with self.client(timeout=5) as client:
                return client.get("/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def log(self) -> str:
        return (self.directory / "gateway.log").read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it in good order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)


@dataclass
class Site:
    """Everything of these tests."""

    bao: BareOpenBao
    gitlab: BareGitLab
    gateway: GatewayProcess

    def project(self) -> Any:
        """A new project of the group, with a README on its main branch."""
        client = self.gitlab.client(PRODUCT)
        group = client.groups.get(GROUP)
        name = f"shop-{uuid.uuid4().hex[:8]}"
        return client.projects.create(
            {"name": name, "namespace_id": group.id, "initialize_with_readme": True}
        )

    def commit(self, project: Any, text: str, branch: str = "main") -> str:
        """Put `app.yaml` on a branch, which is made if it is absent."""
        body: dict[str, Any] = {"branch": branch, "commit_message": "app"}
        is_new = branch not in [each.name for each in project.branches.list(get_all=True)]
        if is_new:
            body["start_branch"] = "main"
        tree = project.repository_tree(ref="main" if is_new else branch, get_all=True)
        action = "update" if "app.yaml" in [each["name"] for each in tree] else "create"
        body["actions"] = [{"action": action, "file_path": "app.yaml", "content": text}]
        return str(project.commits.create(body).id)

    def key(self, project: Any) -> str:
        answer = self.bao.client().secrets.kv.v2.read_secret_version(
            f"webhooks/{ENVIRONMENT}/gitlab/{project.id}",
            mount_point="kv",
            raise_on_deleted_version=True,
        )
        return str(answer["data"]["data"]["signing_key"])

    def run(self, project: Any, generation: int = 1) -> FlowRun | None:
        """The run that onboards a project, by the key that the gateway gives it."""
        return self.run_of(f"onboard/{project.id}", generation)

    def run_of(self, scope: str, generation: int = 1) -> FlowRun | None:
        """The run that was started for a scope."""
        key = f"{ENVIRONMENT}/{scope}/{generation}"
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    idempotency_key=FlowRunFilterIdempotencyKey(any_=[key])
                )
            )
        assert len(found) <= 1
        return found[0] if found else None


@pytest.fixture(scope="session", autouse=True)
def _prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareOpenBao]:
    with bare_openbao(tmp_path_factory.mktemp("openbao")) as server:
        client = server.client()
        client.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
        client.sys.enable_auth_method("approle")
        client.sys.create_or_update_policy(WORKER, POLICY)
        role = client.auth.approle
        role.create_or_update_approle(WORKER, token_policies=[WORKER])
        (server.directory / "role_id").write_text(role.read_role_id(WORKER)["data"]["role_id"])
        secret_id = role.generate_secret_id(WORKER)["data"]["secret_id"]
        (server.directory / "secret_id").write_text(secret_id)
        yield server


def _site_document(gateway: GatewayProcess, bao: BareOpenBao, gitlab: BareGitLab) -> dict[str, Any]:
    secrets = f"infraflows/{ENVIRONMENT}"
    elsewhere = {"url": "https://elsewhere.example.org", "credential": f"{secrets}/none"}
    return {
        "environment": ENVIRONMENT,
        "openbao": {
            "address": bao.address,
            "ca_file": bao.ca_file,
            "role_id_file": str(bao.directory / "role_id"),
            "secret_id_file": str(bao.directory / "secret_id"),
        },
        "proxmox": {**elsewhere, "ca_file": ""},
        "git": {**elsewhere, "ca_file": ""},
        "dns": {"server": "127.0.0.1", "zone": "example.org", "credential": f"{secrets}/none"},
        "state": elsewhere,
        "toolchain": {"tofu": "tofu", "provider_mirror": "/"},
        "artifacts": {"url": "https://elsewhere.example.org"},
        "ledger": {"directory": str(gateway.directory)},
        "prefect": {"api_url": gateway.api_url, "ui_url": gateway.api_url},
        "onboarding": {
            "gitlab": {
                "url": gitlab.url,
                "ca_file": gitlab.ca_file,
                "credential": f"{secrets}/gitlab",
            },
            "harbor": {**elsewhere, "registry": "registry.example.org"},
            "gitops": {**elsewhere, "ca_file": ""},
            "gateway_url": gateway.url,
            "gateway_ca_file": gateway.ca_file,
            "platform": {
                "clusters": {"staging": "demo"},
                "domain": "apps.example.org",
                "ingress_address": "192.0.2.1",
                "database_credential": f"{secrets}/none",
            },
        },
        "gateway": {
            "host": "127.0.0.1",
            "port": gateway.port,
            "certificate_file": str(gateway.directory / "server.crt"),
            "key_file": str(gateway.directory / "server.key"),
            "directory": str(gateway.directory / "store"),
        },
    }


def _blocks(site: dict[str, Any]) -> None:
    OpenBaoServer(**site["openbao"]).save(ENVIRONMENT, overwrite=True)
    GitLabServer(**site["onboarding"]["gitlab"]).save(ENVIRONMENT, overwrite=True)
    part = site["onboarding"]
    AppPlatform(
        environment=ENVIRONMENT,
        registry="registry.example.org",
        gitops_url=part["gitops"]["url"],
        gitops_credential=part["gitops"]["credential"],
        gitlab_url=part["gitlab"]["url"],
        gateway_url=part["gateway_url"],
        gateway_ca_file=part["gateway_ca_file"],
        **part["platform"],
    ).save(ENVIRONMENT, overwrite=True)


def _deployments() -> None:
    with get_client(sync_client=True) as client:
        for name in ("onboard-app", "deploy-app"):
            flow_id = client.create_flow_from_name(name)
            client.create_deployment(flow_id, name="default", entrypoint=f"flows.{name}")


@pytest.fixture(scope="module")
def site(bao: BareOpenBao, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All of it, running."""
    directory = tmp_path_factory.mktemp("gateway")
    Authority(directory).issue("server", "gateway", "infraflows")
    api_url = str(PREFECT_API_URL.value())
    gateway = GatewayProcess(directory, free_ports(1)[0], directory / "site.yaml", api_url)
    options = ("--retry-seconds=0.1", "--disable-seconds=5", "--delivery-timeout-seconds=2")
    with bare_gitlab(
        tmp_path_factory.mktemp("gitlab"), registry_ca_file=gateway.ca_file, options=options
    ) as gitlab:
        bao.client().secrets.kv.v2.create_or_update_secret(
            f"infraflows/{ENVIRONMENT}/gitlab",
            {"token": gitlab.tokens[PRODUCT]},
            mount_point="kv",
        )
        document = _site_document(gateway, bao, gitlab)
        gateway.site_file.write_text(yaml.safe_dump(document))
        _blocks(document)
        _deployments()
        gateway.start()
        yield Site(bao, gitlab, gateway)
        gateway.stop()


Wait = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def wait_until() -> Wait:
    def wait(is_so: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := is_so()):
            assert time.monotonic() < deadline, "it did not become true"
            time.sleep(0.1)
        return found

    return wait
