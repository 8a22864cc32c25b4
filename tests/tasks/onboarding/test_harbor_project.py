"""The step on a real registry behind a simulated Harbor, and a real OpenBao.

A kill is what SIGKILL is within one process: the request was sent, its answer is lost, and nothing
after it is done.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import requests

from blocks.harbor import HarborRegistry
from blocks.openbao import OpenBaoServer
from domain.errors import Conflict, Unauthorized
from domain.onboarding.tenant import Tenant
from lab.bare_harbor import BareHarbor, bare_harbor
from lab.bare_services import BareOpenBao, bare_openbao
from tasks.onboarding.steps import harbor_project
from tasks.onboarding.steps.harbor_project import GIB, HarborProject

API = "/api/v2.0"
CREDENTIAL = "infraflows/lab/harbor"
POLICY = """
path "kv/data/infraflows/lab/*" { capabilities = ["read"] }
path "kv/data/apps/*"     { capabilities = ["create", "read", "update", "delete"] }
path "kv/metadata/apps/*" { capabilities = ["create", "read", "update", "list", "delete"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
"""
"""The worker's rights on what this step touches."""


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Kill:
    """Counts the requests of a run and kills it after one of them."""

    after: int | None = None
    seen: list[str] = field(default_factory=list)

    def pass_by(self, method: str, url: str) -> None:
        self.seen.append(f"{method} {url.partition('?')[0]}")
        if self.after is not None and len(self.seen) > self.after:
            raise Killed(self.seen[-1])

    @property
    def edges(self) -> list[int]:
        """Numbers of the requests that may change something: others end where these did."""
        return [n for n, each in enumerate(self.seen) if not each.startswith("GET")]

    @property
    def is_dead(self) -> bool:
        return self.after is not None and len(self.seen) > self.after


@contextmanager
def killing(kill: Kill) -> Iterator[None]:
    """After each request may be the end."""
    originals = (httpx.Client.send, requests.Session.send)

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def send(self: Any, request: Any, *arguments: Any, **named: Any) -> Any:
            if kill.is_dead:
                raise Killed("the dead do nothing")
            answer = original(self, request, *arguments, **named)
            kill.pass_by(str(request.method), str(request.url))
            return answer

        return send

    httpx.Client.send, requests.Session.send = map(wrapped, originals)  # type: ignore[method-assign,arg-type]
    try:
        yield
    finally:
        httpx.Client.send, requests.Session.send = originals  # type: ignore[method-assign,arg-type]


@dataclass
class Site:
    """Both systems with their administrators, and the step as the worker runs it."""

    harbor: BareHarbor
    bao: BareOpenBao
    block: HarborRegistry
    admin: httpx.Client
    step: HarborProject = field(default_factory=HarborProject)

    def __post_init__(self) -> None:
        self.kv = self.bao.client().secrets.kv.v2

    def secret(self, path: str) -> dict[str, str]:
        answer = self.kv.read_secret_version(path, mount_point="kv", raise_on_deleted_version=True)
        return dict(answer["data"]["data"])

    def plant(self, path: str, values: dict[str, str]) -> None:
        self.kv.create_or_update_secret(path, values, mount_point="kv")

    def robots(self, tenant: Tenant) -> dict[str, dict[str, Any]]:
        number = self.admin.get(f"{API}/projects/{tenant.harbor_project}").json()["project_id"]
        query = {"q": f"Level=project,ProjectID={number}"}
        found = self.admin.get(f"{API}/robots", params=query).json()
        return {each["name"].rpartition("+")[2]: each for each in found}

    def logs_in(self, values: dict[str, str]) -> bool:
        with self.harbor.client(values["username"], values["password"]) as client:
            return client.get("/v2/").status_code == 200

    def assert_converged(self, tenant: Tenant, where: str = "") -> None:
        assert self.step.found(tenant) == self.step.wanted(tenant), where
        for path in (tenant.push_robot_path, tenant.pull_robot_path):
            assert self.logs_in(self.secret(path)), f"{where}: {path}"

    def residue(self, tenant: Tenant) -> list[str]:
        """Return what there is of an application, looked at from outside the step."""
        left = []
        if self.admin.get(f"{API}/projects/{tenant.harbor_project}").status_code != 404:
            left.append("project")
        for path in (tenant.push_robot_path, tenant.pull_robot_path):
            answer = self.bao.client().read(f"kv/metadata/{path}")
            left += [path] if answer else []
        return left


@pytest.fixture(scope="module")
def harbor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareHarbor]:
    with bare_harbor(tmp_path_factory.mktemp("harbor")) as found:
        yield found


@pytest.fixture(scope="module")
def worker(
    tmp_path_factory: pytest.TempPathFactory, harbor: BareHarbor
) -> Iterator[tuple[BareOpenBao, OpenBaoServer]]:
    directory = tmp_path_factory.mktemp("openbao")
    with bare_openbao(directory) as bao:
        client = bao.client()
        client.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
        client.sys.enable_auth_method("approle")
        client.sys.create_or_update_policy("worker", POLICY)
        client.auth.approle.create_or_update_approle("worker", token_policies=["worker"])
        role_id = client.auth.approle.read_role_id("worker")["data"]["role_id"]
        secret_id = client.auth.approle.generate_secret_id("worker")["data"]["secret_id"]
        for name, text in (("role_id", role_id), ("secret_id", secret_id)):
            (directory / name).write_text(text)
        kv = client.secrets.kv.v2
        kv.create_or_update_secret(CREDENTIAL, harbor.administrator, mount_point="kv")
        block = OpenBaoServer(
            address=bao.address,
            ca_file=bao.ca_file,
            role_id_file=str(directory / "role_id"),
            secret_id_file=str(directory / "secret_id"),
        )
        yield bao, block


@pytest.fixture
def site(
    harbor: BareHarbor,
    worker: tuple[BareOpenBao, OpenBaoServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    bao, server = worker
    block = HarborRegistry(
        url=harbor.url, registry=harbor.registry, ca_file=harbor.ca_file, credential=CREDENTIAL
    )
    monkeypatch.setattr(harbor_project, "openbao", lambda _: server)
    monkeypatch.setattr(harbor_project, "registry_of", lambda _: block)
    with harbor.client() as admin:
        yield Site(harbor, bao, block, admin)


@pytest.fixture
def make(make_tenant: Callable[..., Tenant]) -> Callable[..., Tenant]:
    """Return a tenant of a new name."""
    return lambda **change: make_tenant(**({"name": f"shop-{secrets.token_hex(3)}"} | change))


@pytest.fixture
def tenant(make: Callable[..., Tenant]) -> Tenant:
    return make()


def push(site: Site, tenant: Tenant, repository: str = "app") -> int:
    """Push a small image with the robot's login as OpenBao holds it; returns the last status."""
    login = site.secret(tenant.push_robot_path)
    manifest = (
        b'{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",'
    )
    blob = b"{}"
    name = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    manifest += f'"digest":"{name}","size":{len(blob)}}},"layers":[]}}'.encode()
    base = f"/v2/{tenant.harbor_project}/{repository}"
    with site.harbor.client(login["username"], login["password"]) as client:
        begun = client.post(f"{base}/blobs/uploads/")
        if begun.status_code != 202:
            return begun.status_code
        there = httpx.URL(begun.headers["location"]).copy_merge_params({"digest": name})
        client.put(str(there), content=blob)
        headers = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        return client.put(f"{base}/manifests/1", content=manifest, headers=headers).status_code


def test_a_project_with_quota_and_two_robots_is_made_and_a_second_run_changes_nothing(
    site: Site, tenant: Tenant
) -> None:
    assert site.step.found(tenant) == {}
    site.step.apply(tenant)
    site.assert_converged(tenant)
    assert push(site, tenant) == 201
    pulling = site.secret(tenant.pull_robot_path)
    with site.harbor.client(pulling["username"], pulling["password"]) as client:
        assert client.get(f"/v2/{tenant.harbor_project}/app/tags/list").json()["tags"] == ["1"]
        refused = client.post(f"/v2/{tenant.harbor_project}/app/blobs/uploads/")
        assert refused.status_code == 401
    before = (site.secret(tenant.push_robot_path), pulling, site.robots(tenant))
    kill = Kill()
    with killing(kill):
        site.step.apply(tenant)
    changing = [each for each in kill.seen if not each.startswith("GET")]
    assert [each for each in changing if "login" not in each and "revoke-self" not in each] == []
    after = site.secret(tenant.push_robot_path), site.secret(tenant.pull_robot_path)
    assert (*after, site.robots(tenant)) == before


def test_a_run_that_is_killed_after_any_request_is_finished_by_the_next(
    site: Site, make: Callable[..., Tenant]
) -> None:
    whole, first = Kill(), make()
    with killing(whole):
        site.step.apply(first)
    assert len(whole.edges) >= 12
    for number in whole.edges:
        tenant = make()
        with killing(Kill(number)), pytest.raises(Killed):
            site.step.apply(tenant)
        where = f"killed after {number}: {whole.seen[number]}"
        site.step.apply(tenant)
        site.assert_converged(tenant, where)
        assert sorted(site.robots(tenant)) == ["pull", "push"], where


def test_a_run_that_is_killed_after_any_request_is_taken_back_to_nothing(
    site: Site, make: Callable[..., Tenant]
) -> None:
    whole = Kill()
    with killing(whole):
        site.step.apply(make())
    for number in whole.edges:
        tenant = make()
        with killing(Kill(number)), pytest.raises(Killed):
            site.step.apply(tenant)
        site.step.remove(tenant)
        where = f"killed after {number}: {whole.seen[number]}"
        assert (site.step.found(tenant), site.residue(tenant)) == ({}, []), where


def test_a_removal_that_is_killed_after_any_request_is_finished_by_the_next(
    site: Site, make: Callable[..., Tenant]
) -> None:
    def prepared() -> Tenant:
        tenant = make()
        site.step.apply(tenant)
        assert push(site, tenant) == 201
        assert push(site, tenant, "team/tool") == 201
        return tenant

    whole, first = Kill(), prepared()
    with killing(whole):
        site.step.remove(first)
    assert site.residue(first) == []
    for number in whole.edges:
        tenant = prepared()
        with killing(Kill(number)), pytest.raises(Killed):
            site.step.remove(tenant)
        site.step.remove(tenant)
        where = f"killed after {number}: {whole.seen[number]}"
        assert (site.step.found(tenant), site.residue(tenant)) == ({}, []), where


def test_removing_what_is_not_there_succeeds(site: Site, tenant: Tenant) -> None:
    site.step.remove(tenant)
    assert site.residue(tenant) == []


def test_a_project_of_somebody_else_is_neither_taken_over_nor_removed(
    site: Site, tenant: Tenant
) -> None:
    body = {"project_name": tenant.harbor_project}
    assert site.admin.post(f"{API}/projects", json=body).status_code == 201
    with pytest.raises(Conflict, match=f"the Harbor project {tenant.harbor_project}"):
        site.step.apply(tenant)
    assert site.step.found(tenant) == {}
    site.step.remove(tenant)
    assert site.residue(tenant) == ["project"]


def test_a_project_of_another_application_is_refused(
    site: Site, make: Callable[..., Tenant]
) -> None:
    other, own = make(), make()
    site.step.apply(other)
    number = site.admin.get(f"{API}/projects/{other.harbor_project}").json()["project_id"]
    (label,) = site.admin.get(f"{API}/labels", params={"scope": "p", "project_id": number}).json()
    site.admin.delete(f"{API}/labels/{label['id']}")
    changed = {"name": label["name"], "description": f"infraflows app={own.name}"}
    site.admin.post(f"{API}/labels", json=changed | {"scope": "p", "project_id": number})
    with pytest.raises(Conflict, match=f"the Harbor project {other.harbor_project}"):
        site.step.apply(other)


def test_an_empty_project_that_was_made_before_a_run_asked_is_not_its_own(
    site: Site, tenant: Tenant
) -> None:
    """The note in OpenBao is of a run that was killed before it asked Harbor."""
    body = {"project_name": tenant.harbor_project}
    assert site.admin.post(f"{API}/projects", json=body).status_code == 201
    site.kv.update_metadata(
        tenant.push_robot_path,
        custom_metadata={
            "infraflows-app": tenant.name,
            "harbor-project-asked": "2100-01-01T00:00:00+00:00",
        },
        mount_point="kv",
    )
    with pytest.raises(Conflict):
        site.step.apply(tenant)


def test_a_secret_path_of_somebody_else_is_refused_before_a_project_is_made(
    site: Site, tenant: Tenant
) -> None:
    site.plant(tenant.pull_robot_path, {"username": "theirs", "password": "theirs"})
    with pytest.raises(Conflict, match=f"the secret {tenant.pull_robot_path}"):
        site.step.apply(tenant)
    assert site.residue(tenant) == [tenant.pull_robot_path]
    site.step.remove(tenant)
    assert site.secret(tenant.pull_robot_path)["username"] == "theirs"


def test_a_robot_whose_secret_is_lost_gets_another(site: Site, tenant: Tenant) -> None:
    site.step.apply(tenant)
    old = site.secret(tenant.push_robot_path)
    site.kv.delete_latest_version_of_secret(tenant.push_robot_path, mount_point="kv")
    assert site.step.found(tenant) != site.step.wanted(tenant)
    site.step.apply(tenant)
    site.assert_converged(tenant)
    assert not site.logs_in(old)


def test_a_robot_that_was_changed_by_hand_is_drift_and_is_put_right(
    site: Site, tenant: Tenant
) -> None:
    site.step.apply(tenant)
    robots = site.robots(tenant)
    path = f"{API}/robots/{robots['pull']['id']}"
    site.admin.put(path, json=robots["pull"] | {"disable": True})
    site.admin.patch(f"{API}/robots/{robots['push']['id']}", json={"secret": ""})
    changed = {
        thing
        for thing, state in site.step.wanted(tenant).items()
        if site.step.found(tenant).get(thing) != state
    }
    assert changed == {"robot pull", "robot push"}
    held = site.secret(tenant.push_robot_path)
    site.step.apply(tenant)
    site.assert_converged(tenant)
    assert site.secret(tenant.push_robot_path) == held, "consumers keep the secret they know"
    site.admin.delete(path)
    site.step.apply(tenant)
    site.assert_converged(tenant)


def test_the_quota_follows_the_service_level_and_a_public_project_is_closed(
    site: Site, make: Callable[..., Tenant]
) -> None:
    bronze = make(service_level="bronze")
    gold = make(name=bronze.name, service_level="gold")
    site.step.apply(bronze)
    path = f"{API}/projects/{bronze.harbor_project}"
    site.admin.put(path, json={"metadata": {"public": "true"}})
    assert site.step.found(bronze) != site.step.wanted(bronze)
    site.step.apply(gold)
    site.assert_converged(gold)
    assert site.admin.get(path).json()["metadata"]["public"] == "false"
    quota = site.admin.get(f"{path}/summary").json()["quota"]
    assert quota["hard"]["storage"] == 20 * GIB


def test_robots_that_take_turns_by_rotation_are_left_to_it(site: Site, tenant: Tenant) -> None:
    site.step.apply(tenant)
    push_robot = site.robots(tenant)["push"]
    wish = {key: push_robot[key] for key in ("description", "level", "duration", "permissions")}
    made = site.admin.post(f"{API}/robots", json=wish | {"name": "push-a"}).json()
    site.assert_converged(tenant)
    site.plant(tenant.push_robot_path, {"username": made["name"], "password": made["secret"]})
    site.admin.delete(f"{API}/robots/{push_robot['id']}")
    site.assert_converged(tenant)
    site.step.apply(tenant)
    assert sorted(site.robots(tenant)) == ["pull", "push-a"]


def test_a_marked_robot_that_nobody_wants_goes(site: Site, tenant: Tenant) -> None:
    site.step.apply(tenant)
    pull = site.robots(tenant)["pull"]
    wish = {key: pull[key] for key in ("description", "level", "duration", "permissions")}
    site.admin.post(f"{API}/robots", json=wish | {"name": "scan"})
    assert "robot scan" in site.step.found(tenant)
    site.step.apply(tenant)
    site.assert_converged(tenant)


def test_no_secret_stands_in_an_error(site: Site, tenant: Tenant) -> None:
    site.step.apply(tenant)
    held = site.secret(tenant.push_robot_path)
    with site.block.session(held) as harbor, pytest.raises(Unauthorized) as told:
        harbor.create_project("other", GIB)
    assert held["password"] not in str(told.value)
    assert held["password"] not in repr(told.value)
