"""The step that gives the pipeline its access, killed at every change that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from blocks.gitlab_access import CiVariable
from blocks.gitlab_server import GitLabSession
from blocks.openbao import OpenBaoSession
from blocks.rotation.git_references import references_status
from domain.errors import Conflict, NotFound
from domain.onboarding.gitlab_mark import MARK_PATH, ProjectMark
from domain.onboarding.tenant import Tenant
from tasks.onboarding.steps.gitlab_access import GitLabAccess, deploy_token_name

STEP = GitLabAccess()
ROBOT = {"username": "robot$shop+push", "password": "canary-of-the-robots-password"}
KEYS = ["HARBOR_HOST", "HARBOR_PASSWORD", "HARBOR_PROJECT", "HARBOR_USERNAME"]


@pytest.fixture
def make(side: Any, bao: OpenBaoSession, make_tenant: Callable[..., Tenant]) -> Callable[..., Any]:
    """Return how an application is made whose push robot lies in OpenBao."""

    def made(**fields: Any) -> Tenant:
        tenant = make_tenant(side.project(), **fields)
        bao.write(tenant.push_robot_path, ROBOT)
        return tenant

    return made


@pytest.fixture
def tenant(make: Callable[..., Tenant]) -> Tenant:
    return make()


def outdated(tenant: Tenant) -> set[str]:
    found, wanted = STEP.found(tenant), STEP.wanted(tenant)
    return {name for name in {*found, *wanted} if found.get(name) != wanted.get(name)}


def login(bao: OpenBaoSession, tenant: Tenant) -> dict[str, str]:
    return bao.read(tenant.deploy_token_path)


def test_the_pipeline_gets_its_variables_and_openbao_the_deploy_token(
    gitlab: GitLabSession, side: Any, bao: OpenBaoSession, tenant: Tenant
) -> None:
    assert STEP.found(tenant) == {}
    STEP.apply(tenant)
    assert STEP.found(tenant) == STEP.wanted(tenant)
    variables = {each.key: each for each in gitlab.variables(tenant.project_id)}
    assert sorted(variables) == KEYS
    assert variables["HARBOR_PASSWORD"].value == ROBOT["password"]
    assert variables["HARBOR_PASSWORD"].is_masked
    assert all(variables[key].is_protected for key in ("HARBOR_PASSWORD", "HARBOR_USERNAME"))
    assert variables["HARBOR_USERNAME"].value == ROBOT["username"]
    url = gitlab.project(tenant.project_id).http_url
    assert references_status(url, side.ca_file, login(bao, tenant), "test") == 200


def test_applying_again_changes_nothing(
    gitlab: GitLabSession, bao: OpenBaoSession, tenant: Tenant, mortal: Any
) -> None:
    STEP.apply(tenant)
    before = login(bao, tenant), gitlab.deploy_tokens(tenant.project_id)
    mortal.arm(-1)
    STEP.apply(tenant)
    assert mortal.changes == 0
    assert (login(bao, tenant), gitlab.deploy_tokens(tenant.project_id)) == before


def test_a_renewed_robot_is_seen_and_written(
    gitlab: GitLabSession, bao: OpenBaoSession, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    bao.write(tenant.push_robot_path, {**ROBOT, "password": "another-password-of-it"})
    assert outdated(tenant) == {"variable HARBOR_PASSWORD"}
    STEP.apply(tenant)
    assert outdated(tenant) == set()


def test_a_flag_that_a_person_changed_is_drift(gitlab: GitLabSession, tenant: Tenant) -> None:
    STEP.apply(tenant)
    held = gitlab.variable(tenant.project_id, "HARBOR_PASSWORD")
    assert held is not None
    gitlab.set_variable(tenant.project_id, replace(held, is_masked=False))
    assert outdated(tenant) == {"variable HARBOR_PASSWORD"}
    STEP.apply(tenant)
    assert outdated(tenant) == set()


def test_a_variable_of_somebody_else_is_never_overwritten(
    gitlab: GitLabSession, tenant: Tenant
) -> None:
    theirs = [CiVariable(key, "theirs") for key in ("HARBOR_HOST", "HARBOR_PROJECT")]
    for each in theirs:
        gitlab.set_variable(tenant.project_id, each)
    with pytest.raises(Conflict, match="HARBOR_HOST, HARBOR_PROJECT were made by somebody else"):
        STEP.apply(tenant)
    assert gitlab.variables(tenant.project_id) == theirs
    assert gitlab.deploy_tokens(tenant.project_id) == []


def test_without_the_robots_secret_nothing_is_made(
    gitlab: GitLabSession, side: Any, make_tenant: Callable[..., Tenant]
) -> None:
    tenant = make_tenant(side.project())
    with pytest.raises(NotFound, match="harbor-push"):
        STEP.apply(tenant)
    assert gitlab.variables(tenant.project_id) == []


def test_an_application_that_is_not_built_gets_no_variables(
    gitlab: GitLabSession, make: Callable[..., Tenant]
) -> None:
    tenant = make(kind=None, image="registry.example.org/team/shop:1.4.2")
    STEP.apply(tenant)
    assert STEP.found(tenant) == STEP.wanted(tenant)
    assert gitlab.variables(tenant.project_id) == []


def test_variables_go_when_the_pipeline_does(
    gitlab: GitLabSession, make_tenant: Callable[..., Tenant], tenant: Tenant
) -> None:
    STEP.apply(tenant)
    fields = {"kind": None, "image": "registry.example.org/team/shop:1.4.2"}
    later = make_tenant(tenant.project_id, tenant.name, **fields)
    STEP.apply(later)
    assert STEP.found(later) == STEP.wanted(later)
    assert gitlab.variables(tenant.project_id) == []


def test_a_deploy_token_whose_value_is_lost_is_replaced(
    gitlab: GitLabSession, bao: OpenBaoSession, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    (first,) = gitlab.deploy_tokens(tenant.project_id)
    bao.delete(tenant.deploy_token_path)
    STEP.apply(tenant)
    (second,) = gitlab.deploy_tokens(tenant.project_id)
    assert second.token_id != first.token_id
    assert login(bao, tenant)["token_id"] == str(second.token_id)


def test_a_deploy_token_that_a_person_removed_is_made_again(
    gitlab: GitLabSession, bao: OpenBaoSession, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    gitlab.delete_deploy_token(tenant.project_id, int(login(bao, tenant)["token_id"]))
    assert outdated(tenant) == {f"deploy token {deploy_token_name(tenant.name)}"}
    STEP.apply(tenant)
    assert outdated(tenant) == set()


def test_a_rotation_under_way_is_not_disturbed(
    gitlab: GitLabSession, bao: OpenBaoSession, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    name = f"{deploy_token_name(tenant.name)} (generation 2)"
    pending = gitlab.create_deploy_token(tenant.project_id, name, ["read_repository"])
    assert outdated(tenant) == set()
    STEP.apply(tenant)
    held = {each.token_id for each in gitlab.deploy_tokens(tenant.project_id)}
    assert pending.token_id in held
    STEP.remove(tenant)
    assert gitlab.deploy_tokens(tenant.project_id) == []


def test_a_project_of_another_application_gets_nothing(
    gitlab: GitLabSession, make: Callable[..., Tenant], tenant: Tenant
) -> None:
    mark = {MARK_PATH: ProjectMark("another").text()}
    gitlab.commit_files(tenant.project_id, "main", "ci: mark", mark)
    with pytest.raises(Conflict, match="belongs to the application another"):
        STEP.apply(tenant)
    assert gitlab.variables(tenant.project_id) == []
    assert gitlab.deploy_tokens(tenant.project_id) == []


def test_removing_leaves_what_is_not_ours(
    gitlab: GitLabSession, bao: OpenBaoSession, tenant: Tenant
) -> None:
    theirs = CiVariable("THEIRS", "value")
    gitlab.set_variable(tenant.project_id, theirs)
    kept = gitlab.create_deploy_token(tenant.project_id, "theirs", ["read_repository"])
    STEP.apply(tenant)
    STEP.remove(tenant)
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}
    assert gitlab.variables(tenant.project_id) == [theirs]
    assert [each.token_id for each in gitlab.deploy_tokens(tenant.project_id)] == [kept.token_id]
    assert not bao.exists(tenant.deploy_token_path)
    assert bao.exists(tenant.push_robot_path)


def test_of_a_project_that_its_team_deleted_only_openbao_is_cleaned(
    side: Any, bao: OpenBaoSession, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    side.call("DELETE", f"/projects/{tenant.project_id}")
    assert set(STEP.found(tenant)) == {f"deploy token {deploy_token_name(tenant.name)}"}
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}


def test_a_kill_after_any_change_is_finished_by_the_next_run(
    gitlab: GitLabSession,
    bao: OpenBaoSession,
    make: Callable[..., Tenant],
    mortal: Any,
    killed: type[BaseException],
) -> None:
    for act, is_removal in ((STEP.apply, False), (STEP.remove, True)):
        number = 0
        while True:
            number += 1
            tenant = make()
            if is_removal:
                STEP.apply(tenant)
            mortal.arm(number)
            try:
                act(tenant)
            except killed:
                pass
            else:
                mortal.arm(-1)
                break
            mortal.arm(-1)
            act(tenant)
            where = f"{act.__name__}, killed after change {number}"
            assert STEP.found(tenant) == ({} if is_removal else STEP.wanted(tenant)), where
            tokens = gitlab.deploy_tokens(tenant.project_id)
            keys = sorted(each.key for each in gitlab.variables(tenant.project_id))
            if is_removal:
                assert (tokens, keys) == ([], []), where
            else:
                assert keys == KEYS, where
                assert [str(t.token_id) for t in tokens] == [login(bao, tenant)["token_id"]], where
        # Four variables, the token, and its value in OpenBao.
        assert number > 6, number
