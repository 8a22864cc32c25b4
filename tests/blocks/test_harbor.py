"""The block on the lab's Harbor: what fails arrives as one of the product's errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from blocks.harbor import PULL, PUSH, HarborRegistry, HarborSession, new_secret
from domain.errors import Conflict, NotFound, PermanentError, Unauthorized, Unreachable
from lab.bare_harbor import BareHarbor, bare_harbor

GIB = 1 << 30


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareHarbor]:
    with bare_harbor(tmp_path_factory.mktemp("harbor")) as harbor:
        yield harbor


@pytest.fixture
def block(running: BareHarbor) -> HarborRegistry:
    return HarborRegistry(
        url=running.url,
        registry=running.registry,
        ca_file=running.ca_file,
        credential="infraflows/test/harbor",
    )


@pytest.fixture
def harbor(block: HarborRegistry, running: BareHarbor) -> Iterator[HarborSession]:
    with block.session(running.administrator) as session:
        yield session


@pytest.fixture
def project() -> str:
    return f"shop-{secrets.token_hex(4)}"


def test_a_project_is_private_has_its_quota_and_is_found_by_name(
    harbor: HarborSession, project: str
) -> None:
    assert harbor.project(project) is None
    before = harbor.clock()
    made = harbor.create_project(project, 3 * GIB)
    assert not made.is_public
    assert made.owner == harbor.username()
    assert made.made_at >= before
    assert harbor.quota(made).limit_bytes == 3 * GIB
    harbor.set_quota(made, 4 * GIB)
    assert harbor.quota(made).limit_bytes == 4 * GIB
    with pytest.raises(Conflict, match="already exists"):
        harbor.create_project(project, GIB)
    harbor.delete_project(project)
    harbor.delete_project(project)
    assert harbor.project(project) is None


def test_a_list_is_whole_whatever_the_pages(harbor: HarborSession, project: str) -> None:
    made = harbor.create_project(project, GIB)
    names = {harbor.create_robot(project, f"r{n}", "", PULL).name for n in range(103)}
    assert {robot.name for robot in harbor.robots(made)} == names


def test_a_robot_gets_the_secret_that_its_caller_chose(
    harbor: HarborSession, block: HarborRegistry, project: str
) -> None:
    made = harbor.create_project(project, GIB)
    harbor.create_robot(project, "push", "mark", PUSH)
    (robot,) = harbor.robots(made)
    assert (robot.short_name, robot.description, robot.access) == ("push", "mark", PUSH)
    chosen = {"username": robot.name, "password": new_secret()}
    assert not block.accepts(chosen)
    harbor.set_robot_secret(robot, chosen["password"])
    assert block.accepts(chosen)
    harbor.delete_robot(robot)
    harbor.delete_robot(robot)
    assert not block.accepts(chosen)


def test_a_weak_secret_is_refused_without_being_told(harbor: HarborSession, project: str) -> None:
    made = harbor.create_project(project, GIB)
    harbor.create_robot(project, "push", "", PUSH)
    with pytest.raises(PermanentError) as told:
        harbor.set_robot_secret(harbor.robots(made)[0], "alllowercase")
    assert "alllowercase" not in str(told.value)
    assert "HTTP 400" in str(told.value)


def test_a_wrong_and_a_missing_login_are_told_apart_from_a_silence(
    block: HarborRegistry, running: BareHarbor
) -> None:
    wrong = {"username": "admin", "password": "wrong-password"}
    with block.session(wrong) as session, pytest.raises(Unauthorized) as told:
        session.create_project("never", GIB)
    assert "wrong-password" not in str(told.value)
    assert not block.accepts(wrong)
    assert not block.accepts({})
    with pytest.raises(Unauthorized, match="has no username and password"), block.session({}):
        pass
    nowhere = HarborRegistry(
        url="https://127.0.0.1:1", registry="x", ca_file=running.ca_file, credential="x"
    )
    with pytest.raises(Unreachable, match="does not answer"):
        nowhere.accepts(running.administrator)


def test_a_server_of_another_ca_is_not_spoken_to(running: BareHarbor) -> None:
    stranger = HarborRegistry(url=running.url, registry="x", credential="x")
    with (
        stranger.session(running.administrator) as session,
        pytest.raises(Unreachable, match="does not answer"),
    ):
        session.clock()


def test_the_absent_has_no_tags_and_its_quota_is_not_found(
    harbor: HarborSession, project: str
) -> None:
    made = harbor.create_project(project, GIB)
    assert harbor.tags(project, "app") == []
    assert harbor.repositories(project) == []
    harbor.delete_repository(project, "app")
    harbor.delete_project(project)
    with pytest.raises(NotFound):
        harbor.quota(made)
