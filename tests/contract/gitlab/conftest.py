"""One contract suite, two sides: the lab's GitLab by default, or a real one.

    pytest tests/contract/gitlab --real-gitlab https://gitlab.example.org

A real one needs GITLAB_TOKEN (scope `api`, allowed to make groups) and, for a CA of its own,
GITLAB_CA_FILE. Everything is made in one group, which is removed in the end. What needs faults or
a receiver of webhooks runs on the simulator only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import requests

from blocks.gitlab_server import GitLabServer, GitLabSession
from blocks.openbao import OpenBaoServer, OpenBaoSession
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.tenant import Platform, Tenant
from lab.bare_gitlab import GROUP, PRODUCT, BareGitLab, bare_gitlab
from lab.bare_services import bare_openbao
from tasks.onboarding.steps import gitlab_access, gitlab_project


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-gitlab", metavar="URL", help="address of a real GitLab")


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareGitLab]:
    with bare_gitlab(tmp_path_factory.mktemp("gitlab")) as running:
        yield running


@dataclass
class Side:
    """The GitLab under test, as its administrator sees it."""

    url: str
    ca_file: str
    token: str
    group_id: int = 0

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = httpx.request(
            method,
            f"{self.url}/api/v4{path}",
            json=dict(body) if body is not None else None,
            headers={"PRIVATE-TOKEN": self.token},
            verify=self.ca_file or True,
            timeout=30,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else {}

    def block(self, **overrides: Any) -> GitLabServer:
        given = {"url": self.url, "ca_file": self.ca_file, "credential": "not/used/here"}
        return GitLabServer(**{**given, **overrides})

    def project(self, name: str = "", *, is_empty: bool = False) -> int:
        path = name or f"app-{secrets.token_hex(4)}"
        body = {"name": path, "path": path, "namespace_id": self.group_id}
        number = int(self.call("POST", "/projects", body)["id"])
        if not is_empty:
            action = {"action": "create", "file_path": "README.md", "content": "# app\n"}
            self.call(
                "POST",
                f"/projects/{number}/repository/commits",
                {"branch": "main", "commit_message": "feat: begin", "actions": [action]},
            )
        return number

    def commits(self, project_id: int) -> list[str]:
        found = self.call("GET", f"/projects/{project_id}/repository/commits?ref_name=main")
        return [str(each["title"]) for each in found]


@pytest.fixture(scope="session")
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    url = request.config.getoption("--real-gitlab", default=None)
    if not url:
        running: BareGitLab = request.getfixturevalue("simulator")
        made = Side(running.url, running.ca_file, running.tokens[PRODUCT])
        made.group_id = int(made.call("GET", f"/groups/{GROUP}")["id"])
        yield made
        return
    made = Side(url, os.environ.get("GITLAB_CA_FILE", ""), os.environ["GITLAB_TOKEN"])
    name = f"infraflows-contract-{secrets.token_hex(4)}"
    made.group_id = int(made.call("POST", "/groups", {"name": name, "path": name})["id"])
    yield made
    made.call("DELETE", f"/groups/{made.group_id}")


@pytest.fixture
def gitlab(side: Side) -> Iterator[GitLabSession]:
    with side.block().session(side.token) as session:
        yield session


@pytest.fixture
def project(side: Side) -> int:
    """A project of its own with a first commit on main."""
    return side.project()


class Killed(BaseException):
    """What SIGKILL is within one process: nothing after it is done."""


class Mortal:
    """Counts the changes that are sent, and dies after one of them: it took effect."""

    def __init__(self) -> None:
        self.left = -1
        self.changes = 0
        self.is_dead = False

    def arm(self, left: int) -> None:
        """Die after so many changes; -1 for never."""
        self.left, self.changes, self.is_dead = left, 0, False

    def is_change(self, request: requests.PreparedRequest) -> bool:
        # Logging in and out changes nothing of what is tested.
        return request.method not in ("GET", "HEAD", "LIST") and "/auth/" not in str(request.url)

    def send(self, original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.is_dead:
            raise Killed
        answer = original(*arguments, **named)
        if self.is_change(arguments[1]):
            self.changes += 1
            if self.changes == self.left:
                self.is_dead = True
                raise Killed
        return answer


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Mortal:
    made, original = Mortal(), requests.Session.send

    def send(*arguments: Any, **named: Any) -> Any:
        return made.send(original, *arguments, **named)

    monkeypatch.setattr(requests.Session, "send", send)
    return made


@pytest.fixture
def killed() -> type[BaseException]:
    return Killed


# --- steps: with a real OpenBao --------------------------------------------------------------


POLICY = """
path "kv/data/*"     { capabilities = ["create", "read", "update", "delete"] }
path "kv/metadata/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
"""
ENVIRONMENT = "trial"


@pytest.fixture(scope="session")
def bao_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    """A real OpenBao, as the worker's block."""
    directory = tmp_path_factory.mktemp("openbao")
    with bare_openbao(directory) as running:
        client = running.client()
        client.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
        client.sys.enable_auth_method("approle")
        client.sys.create_or_update_policy("worker", POLICY)
        client.auth.approle.create_or_update_approle("worker", token_policies=["worker"])
        role_id = client.auth.approle.read_role_id("worker")["data"]["role_id"]
        secret_id = client.auth.approle.generate_secret_id("worker")["data"]["secret_id"]
        (directory / "role_id").write_text(role_id)
        (directory / "secret_id").write_text(secret_id)
        yield OpenBaoServer(
            address=running.address,
            ca_file=running.ca_file,
            role_id_file=str(directory / "role_id"),
            secret_id_file=str(directory / "secret_id"),
        )


@pytest.fixture(scope="session")
def bao(bao_server: OpenBaoServer) -> Iterator[OpenBaoSession]:
    with bao_server.session() as session:
        yield session


@pytest.fixture
def site(
    bao: OpenBaoSession, bao_server: OpenBaoServer, side: Side, monkeypatch: pytest.MonkeyPatch
) -> Side:
    """The steps' own ways to OpenBao and GitLab lead to the trial's."""
    bao.write("infraflows/trial/gitlab", {"token": side.token})
    block = side.block(credential="infraflows/trial/gitlab")
    for module in (gitlab_project, gitlab_access):
        monkeypatch.setattr(module, "openbao", lambda _environment: bao_server)
    monkeypatch.setattr(gitlab_project, "gitlab_server", lambda _environment: block)
    return side


PLATFORM = Platform(
    environment=ENVIRONMENT,
    clusters=dict.fromkeys(Stage, "demo"),
    domain="apps.example.org",
    ingress_address="192.0.2.10",
    outside_address="",
    registry="192.0.2.1:8930",
    gitops_url="https://192.0.2.1/gitops.git",
    gitops_branch="main",
    gitops_credential="infraflows/trial/git",
    gitlab_url="https://192.0.2.1:8929",
    gateway_url="https://192.0.2.1:8448",
    database_mount="database",
    database_server="apps",
    database_credential="infraflows/trial/database",
    pki_mount="pki",
    pki_role="apps",
)


@pytest.fixture
def make_tenant(site: Side) -> Callable[..., Tenant]:
    """Return how an application in a project is made."""

    def make(project_id: int, name: str = "", **fields: Any) -> Tenant:
        app = AppSpec.model_validate(
            {
                "name": name or f"a{secrets.token_hex(4)}",
                "team": "storefront",
                "repository": "storefront/shop",
                "owners": ["owner@example.org"],
                "kind": "python",
                "port": 8080,
                "environments": {"staging": {}},
                **fields,
            }
        )
        tags = {Stage.STAGING: "v1.0.0-main"}
        return Tenant(platform=PLATFORM, app=app, project_id=project_id, tags=tags)

    return make
