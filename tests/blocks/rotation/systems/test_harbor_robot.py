"""Robots of the lab's Harbor, tried at its registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from blocks.harbor import PUSH, HarborSession
from blocks.harbor import HarborRegistry as Registry
from blocks.rotation.harbor_robot import HarborRobot
from domain.errors import InvalidSpec, NotFound, PolicyViolation
from domain.rotation.contract import SecretRef, Values
from lab.bare_harbor import BareHarbor, bare_harbor

MARK = "infraflows app=shop robot=push"


@dataclass
class Site:
    harbor: BareHarbor
    numbers: Iterator[int]

    def __post_init__(self) -> None:
        self.block = Registry(
            url=self.harbor.url,
            registry=self.harbor.registry,
            ca_file=self.harbor.ca_file,
            credential="infraflows/test/harbor",
        )

    def adapter(self, administrator: Values | None = None) -> HarborRobot:
        return HarborRobot(lambda _secret: administrator or self.harbor.administrator)

    def secret(self, project: str, **more: str) -> SecretRef:
        given = {
            "harbor_url": self.harbor.url,
            "harbor_ca_file": self.harbor.ca_file,
            "harbor_admin_path": "infraflows/test/harbor",
        }
        return SecretRef(f"apps/{project}/harbor-push", HarborRobot.kind, "test", given | more)

    def made(self) -> tuple[SecretRef, Values]:
        """Make a project with a robot, as onboarding does."""
        project = f"shop{next(self.numbers)}"
        with self.block.session(self.harbor.administrator) as harbor:
            harbor.create_project(project, 1 << 30)
            robot = harbor.create_robot(project, "push", MARK, PUSH)
        return self.secret(project), {"username": robot.name, "password": robot.secret}

    def robots(self, secret: SecretRef) -> dict[str, Any]:
        with self.block.session(self.harbor.administrator) as harbor:
            project = harbor.project(secret.path.split("/")[1])
            assert project is not None
            return {each.short_name: each for each in harbor.robots(project)}

    def works(self, values: Values) -> bool:
        return self.block.accepts(values)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareHarbor]:
    with bare_harbor(tmp_path_factory.mktemp("harbor")) as harbor:
        yield harbor


NUMBERS = itertools.count()


@pytest.fixture
def site(running: BareHarbor) -> Site:
    return Site(running, NUMBERS)


def test_a_robot_rotates_under_load_and_the_old_one_is_refused(
    site: Site, bench: Any, report: Any
) -> None:
    secret, first = site.made()
    rotation = bench.rotation(site.adapter(), secret, first)
    with site.harbor.client() as client:

        def ask() -> str | None:
            with rotation.using() as values:
                login = httpx.BasicAuth(values["username"], values["password"])
                status = client.get("/v2/", auth=login).status_code
            return None if status == 200 else f"HTTP {status}"

        with bench.load(ask) as counted:
            for _turn in range(3):
                proof = rotation.run()
                assert proof.is_dead
                assert proof.answer == "HTTP 401"
                rotation.finish()
    report(HarborRobot.kind, counted)
    assert not site.works(first)
    (robot,) = site.robots(secret).values()
    assert (robot.short_name, robot.description, robot.access) == ("push-a", MARK, PUSH)


def test_a_robot_survives_a_kill_at_every_edge(site: Site, bench: Any) -> None:
    secret, first = site.made()
    rotation = bench.rotation(site.adapter(), secret, first)

    def is_served() -> str | None:
        return None if site.works(rotation.published) else "refused"

    bench.crash_matrix(rotation, is_served, bench.edges)
    assert len(site.robots(secret)) == 1


def test_a_robot_survives_a_kill_at_every_request(
    site: Site, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, first = site.made()
    rotation = bench.rotation(site.adapter(), secret, first)
    send, left, kills = httpx.Client.send, [0], 0

    def mortal(self: Any, request: httpx.Request, **named: Any) -> Any:
        answer = send(self, request, **named)
        if request.method != "GET":
            left[0] -= 1
            if left[0] == 0:
                raise bench.killed(request.method)
        return answer

    monkeypatch.setattr(httpx.Client, "send", mortal)
    for number in range(1, 10):
        left[0] = number
        try:
            rotation.run()
        except bench.killed:
            kills += 1
            left[0] = 0
            assert site.works(rotation.published)
            rotation.run()
        else:
            break
        rotation.finish()
    left[0] = 0
    assert kills >= 2
    assert len(site.robots(secret)) == 1


def test_a_rotation_that_is_given_up_leaves_the_current_robot(site: Site) -> None:
    (secret, current), adapter = site.made(), site.adapter()
    new = adapter.create(secret, 1, current)
    adapter.test(secret, new)
    adapter.rollback(secret, new, current)
    adapter.rollback(secret, new, current)
    assert adapter.prove_dead(secret, new).is_dead
    assert not adapter.prove_dead(secret, current).is_dead


def test_the_first_robot_gets_the_rights_of_the_policy(site: Site) -> None:
    made, _ = site.made()
    project = made.path.split("/")[1]
    secret = site.secret(
        project,
        harbor_project=project,
        harbor_robot="scan",
        harbor_access="repository:pull,artifact:read",
    )
    values = site.adapter().create(secret, 1, None)
    assert site.works(values)
    robot = site.robots(secret)["scan-a"]
    assert robot.access == {("repository", "pull"), ("artifact", "read")}


def test_a_robot_that_is_gone_a_system_robot_and_the_runs_own_are_refused(site: Site) -> None:
    (secret, current), adapter = site.made(), site.adapter()
    with pytest.raises(NotFound, match="does not exist"):
        adapter.create(secret, 1, current | {"username": current["username"] + "x"})
    with pytest.raises(InvalidSpec, match="is no robot of a project"):
        adapter.create(secret, 1, {"username": "robot$worker", "password": "x"})
    remove = HarborRobot(lambda _secret: site.harbor.administrator)
    project, name = current["username"].removeprefix("robot$").split("+")
    with site.block.session(site.harbor.administrator) as harbor:
        mighty = _mighty(harbor, project)
    with pytest.raises(PolicyViolation, match="logged in with it"):
        HarborRobot(lambda _secret: mighty).revoke(secret, mighty)
    assert site.works(mighty)
    remove.revoke(secret, current)
    assert name not in site.robots(secret)


def _mighty(harbor: HarborSession, project: str) -> Values:
    """Return a robot that may look after the robots of its project."""
    rights = {("robot", action) for action in ("create", "read", "list", "delete")}
    made = harbor.create_robot(project, "mighty", "", {("project", "read"), *rights})
    return {"username": made.name, "password": made.secret}


def test_the_engine_finishes_after_a_kill_at_each_edge(
    site: Site, matrix: Any, engine_world: Callable[..., Any]
) -> None:
    def make() -> Any:
        secret, first = site.made()
        return engine_world(site.adapter(), secret, first, site.works)

    assert matrix.kill_everywhere(make, every=3) > 10


def test_as_a_holder_its_parameters_stand_beside_those_of_the_class(site: Site) -> None:
    from blocks.rotation.registry import check_secrets

    pull = {
        "kubeconfig_path": "clusters/demo/kubeconfig",
        "namespace": "shop-production",
        "name": "registry-pull",
        "registry": "harbor.example.org",
        "holder": HarborRobot.kind,
    }
    held = dict(site.secret("shop").parameters)
    kind = "kubernetes-registry-credential"
    check_secrets([SecretRef("apps/shop/harbor-pull", kind, "test", pull | held)])
    held.pop("harbor_url")
    with pytest.raises(InvalidSpec, match="harbor_url"):
        check_secrets([SecretRef("apps/shop/harbor-pull", kind, "test", pull | held)])


def test_no_secret_is_told_by_a_new_robot(site: Site) -> None:
    secret, current = site.made()
    with site.block.session(site.harbor.administrator) as harbor:
        made = harbor.create_robot(secret.path.split("/")[1], "quiet", "", PUSH)
    assert made.secret not in repr(made)
    assert current["password"] not in repr(site.robots(secret))
