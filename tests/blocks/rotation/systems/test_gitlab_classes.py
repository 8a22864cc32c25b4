"""What gives access to a project of the lab's GitLab rotates under load and over kills."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from blocks.gitlab_access import CiVariable
from blocks.gitlab_server import GitLabServer, GitLabSession
from blocks.rotation.gitlab_ci_variable import GitLabCiVariable
from blocks.rotation.gitlab_deploy_token import GitLabDeployToken
from blocks.rotation.gitlab_project_access_token import GitLabProjectAccessToken
from blocks.rotation.gitlab_projects import GitLabProjects
from blocks.rotation.registry import check_secrets
from domain.errors import InvalidSpec, PolicyViolation
from domain.rotation.contract import SecretRef, Values
from lab.bare_gitlab import GROUP, PRODUCT, BareGitLab, bare_gitlab

ENOUGH_REQUESTS = 60
ADMIN_PATH = "infraflows/test/gitlab"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareGitLab]:
    with bare_gitlab(tmp_path_factory.mktemp("gitlab")) as running:
        yield running


@dataclass
class Site:
    simulator: BareGitLab
    client: httpx.Client
    project_id: int
    http_url: str = ""

    @property
    def token(self) -> str:
        return self.simulator.tokens[PRODUCT]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self.client.request(
            method,
            f"{self.simulator.url}/api/v4{path}",
            json=body,
            headers={"PRIVATE-TOKEN": self.token},
        )
        answer.raise_for_status()
        return answer.json()

    def projects(self) -> GitLabProjects:
        return GitLabProjects(lambda _path: {"token": self.token})

    def secret(self, kind: str, **parameters: str) -> SecretRef:
        given = {
            "url": self.simulator.url,
            "ca_file": self.simulator.ca_file,
            "admin_path": ADMIN_PATH,
            "project_id": str(self.project_id),
            **parameters,
        }
        return SecretRef(f"apps/shop-{kind}", kind, "test", given)

    def deploy_token(self) -> tuple[GitLabDeployToken, SecretRef]:
        given = {"name": "infraflows-shop", "scopes": "read_repository"}
        return GitLabDeployToken(self.projects()), self.secret(GitLabDeployToken.kind, **given)

    def access_token(self) -> tuple[GitLabProjectAccessToken, SecretRef]:
        given = {"name": "release", "scopes": "api, read_repository", "access_level": "30"}
        kind = GitLabProjectAccessToken.kind
        return GitLabProjectAccessToken(self.projects()), self.secret(kind, **given)

    def git_status(self, values: Values) -> int:
        if not self.http_url:
            self.http_url = self.call("GET", f"/projects/{self.project_id}")["http_url_to_repo"]
        answer = self.client.get(
            f"{self.http_url}/info/refs",
            params={"service": "git-upload-pack"},
            auth=(values["username"], values["password"]),
        )
        return answer.status_code

    def api_status(self, values: Values) -> int:
        answer = self.client.get(
            f"{self.simulator.url}/api/v4/projects/{self.project_id}",
            headers={"PRIVATE-TOKEN": values["token"]},
        )
        return answer.status_code

    def opened(self) -> Any:
        block = GitLabServer(
            url=self.simulator.url, ca_file=self.simulator.ca_file, credential=ADMIN_PATH
        )
        return block.session(self.token)


@pytest.fixture
def site(simulator: BareGitLab) -> Iterator[Site]:
    with httpx.Client(verify=simulator.ca_file, timeout=20, trust_env=False) as client:
        made = Site(simulator, client, 0)
        name = f"shop-{secrets.token_hex(4)}"
        group = made.call("GET", f"/groups/{GROUP}")["id"]
        body = {"name": name, "path": name, "namespace_id": group, "initialize_with_readme": True}
        made.project_id = made.call("POST", "/projects", body)["id"]
        yield made


@pytest.fixture
def gitlab(site: Site) -> Iterator[GitLabSession]:
    with site.opened() as session:
        yield session


def test_a_deploy_token_rotates_under_load_and_the_old_one_is_refused(
    site: Site, gitlab: GitLabSession, bench: Any, report: Any
) -> None:
    adapter, secret = site.deploy_token()
    first = adapter.create(secret, 0, None)
    rotation = bench.rotation(adapter, secret, first)

    def ask() -> str | None:
        with rotation.using() as values:
            status = site.git_status(values)
        return None if status == 200 else f"HTTP {status}"

    with bench.load(ask) as counted:
        while rotation.generation <= 2 or counted.requests < ENOUGH_REQUESTS:
            proof = rotation.run()
            assert proof.is_dead
            assert proof.answer == "HTTP 401"
            rotation.finish()
    report(adapter.kind, counted)
    (held,) = gitlab.deploy_tokens(site.project_id)
    assert held.name == f"infraflows-shop (generation {rotation.generation - 1})"
    assert held.scopes == ("read_repository",)


def test_an_access_token_rotates_under_load_with_scopes_and_role(
    site: Site, gitlab: GitLabSession, bench: Any, report: Any
) -> None:
    adapter, secret = site.access_token()
    first = adapter.create(secret, 0, None)
    rotation = bench.rotation(adapter, secret, first)

    def ask() -> str | None:
        with rotation.using() as values:
            status = site.api_status(values)
        return None if status == 200 else f"HTTP {status}"

    with bench.load(ask) as counted:
        while rotation.generation <= 2 or counted.requests < ENOUGH_REQUESTS:
            proof = rotation.run()
            assert proof.is_dead
            assert proof.answer == "HTTP 401"
            rotation.finish()
    report(adapter.kind, counted)
    (held,) = [each for each in gitlab.access_tokens(site.project_id) if each.is_active]
    assert (held.scopes, held.access_level) == (("api", "read_repository"), 30)


@pytest.mark.parametrize("kind", ["deploy_token", "access_token"])
def test_a_token_survives_a_kill_at_every_edge(site: Site, bench: Any, kind: str) -> None:
    adapter, secret = getattr(site, kind)()
    rotation = bench.rotation(adapter, secret, adapter.create(secret, 0, None))
    ask = site.git_status if kind == "deploy_token" else site.api_status

    def is_served() -> str | None:
        status = ask(rotation.published)
        return None if status == 200 else f"HTTP {status}"

    bench.crash_matrix(rotation, is_served, bench.edges)
    with site.opened() as gitlab:
        if kind == "deploy_token":
            assert len(gitlab.deploy_tokens(site.project_id)) == 1
        else:
            active = [each for each in gitlab.access_tokens(site.project_id) if each.is_active]
            assert len(active) == 1


@pytest.mark.parametrize("kind", ["deploy_token", "access_token"])
def test_a_rotation_that_is_given_up_leaves_the_current_token(site: Site, kind: str) -> None:
    adapter, secret = getattr(site, kind)()
    current = adapter.create(secret, 1, None)
    new = adapter.create(secret, 2, current)
    adapter.set(secret, new, current)
    adapter.rollback(secret, new, current)
    adapter.rollback(secret, new, current)
    assert adapter.prove_dead(secret, new).is_dead
    assert not adapter.prove_dead(secret, current).is_dead


def test_a_value_that_was_written_by_hand_has_no_id_and_rotates(
    site: Site, gitlab: GitLabSession
) -> None:
    for kind in ("deploy_token", "access_token"):
        adapter, secret = getattr(site, kind)()
        made = dict(adapter.create(secret, 1, None))
        del made["token_id"]
        new = adapter.create(secret, 2, made)
        adapter.set(secret, new, made)
        adapter.test(secret, new)
        adapter.revoke(secret, made)
        adapter.revoke(secret, made)
        assert adapter.prove_dead(secret, made).is_dead
        assert not adapter.prove_dead(secret, new).is_dead


def test_tokens_of_other_names_are_never_touched(site: Site, gitlab: GitLabSession) -> None:
    theirs = gitlab.create_deploy_token(site.project_id, "theirs", ["read_repository"])
    adapter, secret = site.deploy_token()
    adapter.create(secret, 1, None)
    last = adapter.create(secret, 1, None)
    held = {str(each.token_id) for each in gitlab.deploy_tokens(site.project_id)}
    assert held == {str(theirs.token_id), last["token_id"]}


def test_the_token_of_the_run_itself_is_not_revoked(site: Site, gitlab: GitLabSession) -> None:
    adapter, secret = site.access_token()
    own = {"token_id": str(gitlab.own_token_id()), "token": site.token}
    with pytest.raises(PolicyViolation, match="logged in with it"):
        adapter.revoke(secret, own)


@pytest.mark.parametrize("kind", ["deploy_token", "access_token"])
def test_the_engine_finishes_after_a_kill_at_each_edge(
    site: Site, matrix: Any, engine_world: Callable[..., Any], kind: str
) -> None:
    number = itertools.count()
    ask = site.git_status if kind == "deploy_token" else site.api_status

    def make() -> Any:
        adapter, secret = getattr(site, kind)()
        name = f"engine{next(number)}"
        parameters = {**secret.parameters, "name": name}
        secret = SecretRef(f"gitlab/{kind}/{name}", secret.kind, "test", parameters)
        first = adapter.create(secret, 0, None)
        return engine_world(adapter, secret, first, lambda values: ask(values) == 200)

    assert matrix.kill_everywhere(make, every=5) > 4


# --- CI/CD variables ---------------------------------------------------------------------------


def test_a_variable_follows_its_holder_and_keeps_its_flags(
    site: Site, gitlab: GitLabSession
) -> None:
    holder, held = site.deploy_token()
    parameters = {
        **held.parameters,
        "holder": holder.kind,
        "variables": "DEPLOY_USER=username, DEPLOY_TOKEN=password",
    }
    secret = SecretRef("apps/shop-ci", GitLabCiVariable.kind, "test", parameters)
    check_secrets([secret])
    adapter = GitLabCiVariable(site.projects(), lambda _secret: holder)
    flags = CiVariable("DEPLOY_TOKEN", "first-value-of-it", is_masked=True, description="shop")
    gitlab.set_variable(site.project_id, flags)

    current = adapter.create(secret, 1, None)
    adapter.distribute(secret, current)
    new = adapter.create(secret, 2, current)
    adapter.set(secret, new, current)
    adapter.test(secret, new)
    assert not all(seen.is_on_new for seen in adapter.observe(secret, new, current))
    assert not adapter.prove_dead(secret, current).is_dead
    adapter.distribute(secret, new)
    assert all(seen.is_on_new for seen in adapter.observe(secret, new, current))
    adapter.revoke(secret, current)
    proof = adapter.prove_dead(secret, current)
    assert proof.is_dead
    assert proof.answer == "none; HTTP 401"
    variable = gitlab.variable(site.project_id, "DEPLOY_TOKEN")
    assert variable is not None
    assert (variable.value, variable.is_masked) == (new["password"], True)
    assert (variable.is_protected, variable.description) == (False, "shop")


def test_a_copy_of_the_old_value_in_another_variable_is_told(
    site: Site, gitlab: GitLabSession
) -> None:
    secret = site.secret(GitLabCiVariable.kind, variables="SIGNING_KEY=key")
    adapter = GitLabCiVariable(site.projects())
    old = adapter.create(secret, 1, None)
    adapter.distribute(secret, old)
    gitlab.set_variable(site.project_id, CiVariable("COPY", old["key"]))
    adapter.distribute(secret, adapter.create(secret, 2, old))
    proof = adapter.prove_dead(secret, old)
    assert not proof.is_dead
    assert proof.answer == "still carried by COPY"
    assert old["key"] not in repr(proof)


def test_a_rollback_gives_pipelines_the_current_value_again(
    site: Site, gitlab: GitLabSession
) -> None:
    secret = site.secret(GitLabCiVariable.kind, variables="SIGNING_KEY=key")
    adapter = GitLabCiVariable(site.projects())
    current = adapter.create(secret, 1, None)
    adapter.distribute(secret, current)
    new = adapter.create(secret, 2, current)
    adapter.distribute(secret, new)
    adapter.rollback(secret, new, current)
    held = gitlab.variable(site.project_id, "SIGNING_KEY")
    assert held is not None
    assert held.value == current["key"]
    assert held.is_masked
    assert held.is_protected


def test_variables_that_are_no_pairs_are_told(site: Site) -> None:
    secret = site.secret(GitLabCiVariable.kind, variables="SIGNING_KEY")
    with pytest.raises(InvalidSpec, match="is not KEY=part"):
        GitLabCiVariable(site.projects()).create(secret, 1, None)


def test_the_engine_finishes_a_variable_after_a_kill_at_each_edge(
    site: Site, gitlab: GitLabSession, matrix: Any, engine_world: Callable[..., Any]
) -> None:
    number = itertools.count()

    def make() -> Any:
        name = f"KEY_{next(number)}"
        adapter = GitLabCiVariable(site.projects())
        secret = SecretRef(
            f"gitlab/variable/{name}",
            GitLabCiVariable.kind,
            "test",
            dict(site.secret(GitLabCiVariable.kind, variables=f"{name}=key").parameters),
        )
        first = adapter.create(secret, 0, None)
        adapter.distribute(secret, first)

        def holds(values: Values) -> bool:
            variable = gitlab.variable(site.project_id, name)
            return variable is not None and variable.value == values["key"]

        def is_filled() -> bool:
            variable = gitlab.variable(site.project_id, name)
            return variable is not None and bool(variable.value)

        # Nobody but the variable itself knows the value: the old one ends where the new begins.
        return engine_world(
            adapter, secret, first, holds, has_overlap=False, holds_working=is_filled
        )

    assert matrix.kill_everywhere(make, every=5) > 2
