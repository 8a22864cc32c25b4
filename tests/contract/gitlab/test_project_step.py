"""The step that converges an application's GitLab project, killed at every change that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from blocks.gitlab_repository import Protection
from blocks.gitlab_server import GitLabSession
from domain.errors import Conflict
from domain.onboarding.gitlab_mark import MARK_PATH
from domain.onboarding.tenant import Tenant
from tasks.onboarding.steps import gitlab_project
from tasks.onboarding.steps.gitlab_project import PIPELINE_PATH, GitLabProject

STEP = GitLabProject()
FILES = {PIPELINE_PATH: "stages: [build]\n", "commitlint.config.js": "module.exports = {};\n"}
OTHERS = Protection(push_level=30, merge_level=40, is_force_push_allowed=True)
NAMES = (
    "remove_source_branch_after_merge",
    "only_allow_merge_if_all_discussions_are_resolved",
    "only_allow_merge_if_pipeline_succeeds",
    "auto_cancel_pending_pipelines",
    "ci_forward_deployment_enabled",
)


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the pipeline's texts are; the renderer has tests of its own."""
    texts = dict(FILES)
    monkeypatch.setattr(gitlab_project, "managed_files", lambda _tenant: dict(texts))
    return texts


@pytest.fixture
def tenant(project: int, make_tenant: Callable[..., Tenant]) -> Tenant:
    return make_tenant(project)


def state(gitlab: GitLabSession, project: int) -> dict[str, Any]:
    """Return all that the step may change in a project."""
    paths = [*FILES, MARK_PATH, "README.md", "other.txt"]
    return {
        "files": {path: gitlab.file_or_none(project, path, "main") for path in paths},
        "settings": gitlab.settings(project, *NAMES),
        "branches": gitlab.protections(project),
        "tags": gitlab.tag_protections(project),
    }


def test_a_project_is_converged_once(gitlab: GitLabSession, side: Any, tenant: Tenant) -> None:
    project = tenant.project_id
    assert STEP.found(tenant) == {}
    STEP.apply(tenant)
    assert STEP.found(tenant) == STEP.wanted(tenant)
    head = gitlab.head(project, "main")
    STEP.apply(tenant)
    assert gitlab.head(project, "main") == head
    assert side.commits(project) == [
        f"ci: converge the managed files of {tenant.name}",
        "feat: begin",
    ]


def test_removing_puts_everything_back_and_keeps_the_project(
    gitlab: GitLabSession, tenant: Tenant
) -> None:
    project = tenant.project_id
    gitlab.change_settings(project, {"auto_cancel_pending_pipelines": "disabled"})
    gitlab.protect(project, "main", OTHERS)
    gitlab.protect_tags(project, "v*", 30)
    gitlab.protect_tags(project, "other-*", 30)
    before = state(gitlab, project)

    STEP.apply(tenant)
    assert state(gitlab, project) != before
    STEP.remove(tenant)
    STEP.remove(tenant)

    assert state(gitlab, project) == before
    assert STEP.found(tenant) == {}


def test_what_was_not_protected_before_is_not_after(gitlab: GitLabSession, tenant: Tenant) -> None:
    gitlab.unprotect(tenant.project_id, "main")
    STEP.apply(tenant)
    STEP.remove(tenant)
    assert gitlab.protections(tenant.project_id) == {}
    assert gitlab.tag_protections(tenant.project_id) == {}


def test_a_managed_file_that_a_person_changed_is_drift_and_is_mended(
    gitlab: GitLabSession, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    gitlab.commit_files(tenant.project_id, "main", "feat: mine", {PIPELINE_PATH: "mine: {}\n"})
    gitlab.unprotect(tenant.project_id, "main")
    found, wanted = STEP.found(tenant), STEP.wanted(tenant)
    assert {name for name in wanted if found.get(name) != wanted[name]} == {
        f"file {PIPELINE_PATH}",
        gitlab_project.PROTECTION_THING,
    }
    STEP.apply(tenant)
    assert STEP.found(tenant) == wanted


def test_a_pipeline_of_the_teams_own_is_never_overwritten(
    gitlab: GitLabSession, tenant: Tenant
) -> None:
    own = {PIPELINE_PATH: "mine: {}\n"}
    gitlab.commit_files(tenant.project_id, "main", "feat: mine", own)
    before = state(gitlab, tenant.project_id)
    with pytest.raises(
        Conflict, match=r"\.gitlab-ci\.yml was there before .* delete \.gitlab-ci\.yml"
    ):
        STEP.apply(tenant)
    assert state(gitlab, tenant.project_id) == before
    assert STEP.found(tenant) == {}


def test_all_files_in_the_way_are_told_at_once(gitlab: GitLabSession, tenant: Tenant) -> None:
    gitlab.commit_files(tenant.project_id, "main", "feat: x", dict.fromkeys(FILES, "mine\n"))
    with pytest.raises(Conflict, match=r"\.gitlab-ci\.yml, commitlint\.config\.js were there"):
        STEP.apply(tenant)


def test_a_project_of_another_application_is_refused_and_left_alone(
    gitlab: GitLabSession, tenant: Tenant, make_tenant: Callable[..., Tenant]
) -> None:
    STEP.apply(tenant)
    before, other = state(gitlab, tenant.project_id), make_tenant(tenant.project_id)
    assert STEP.found(other) == {}
    with pytest.raises(Conflict, match=f"belongs to the application {tenant.name}"):
        STEP.apply(other)
    STEP.remove(other)
    assert state(gitlab, tenant.project_id) == before


def test_a_file_and_a_setting_that_are_wanted_no_more_go(
    gitlab: GitLabSession, tenant: Tenant, files: dict[str, str]
) -> None:
    name = "only_allow_merge_if_pipeline_succeeds"
    before = gitlab.settings(tenant.project_id, name)
    STEP.apply(tenant)
    assert gitlab.settings(tenant.project_id, name) == {name: True}
    del files[PIPELINE_PATH]
    STEP.apply(tenant)
    assert STEP.found(tenant) == STEP.wanted(tenant)
    assert gitlab.file_or_none(tenant.project_id, PIPELINE_PATH, "main") is None
    assert gitlab.settings(tenant.project_id, name) == before


def test_a_renamed_project_keeps_its_application(
    gitlab: GitLabSession, side: Any, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    path = gitlab.project(tenant.project_id).path.rpartition("/")[2]
    side.call("PUT", f"/projects/{tenant.project_id}", {"path": f"{path}-renamed"})
    assert STEP.found(tenant) == STEP.wanted(tenant)


def test_another_default_branch_is_protected_and_the_former_one_released(
    gitlab: GitLabSession, side: Any, tenant: Tenant
) -> None:
    project = tenant.project_id
    gitlab.protect(project, "main", OTHERS)
    STEP.apply(tenant)
    body = {"branch": "trunk", "ref": "main"}
    side.call("POST", f"/projects/{project}/repository/branches", body)
    side.call("PUT", f"/projects/{project}", {"default_branch": "trunk"})
    assert STEP.found(tenant) != STEP.wanted(tenant)
    STEP.apply(tenant)
    assert STEP.found(tenant) == STEP.wanted(tenant)
    assert gitlab.protections(project) == {"main": OTHERS, "trunk": gitlab_project.PROTECTION}
    STEP.remove(tenant)
    assert gitlab.protections(project) == {"main": OTHERS}


def test_an_archived_project_is_refused_with_the_way_out(side: Any, tenant: Tenant) -> None:
    STEP.apply(tenant)
    side.call("POST", f"/projects/{tenant.project_id}/archive")
    assert STEP.found(tenant) == STEP.wanted(tenant)
    for act in (STEP.apply, STEP.remove):
        with pytest.raises(Conflict, match=r"it is archived\. Unarchive it"):
            act(tenant)
    side.call("POST", f"/projects/{tenant.project_id}/unarchive")
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}


def test_of_a_project_that_its_team_deleted_nothing_is_left(side: Any, tenant: Tenant) -> None:
    STEP.apply(tenant)
    side.call("DELETE", f"/projects/{tenant.project_id}")
    assert STEP.found(tenant) == {}
    STEP.remove(tenant)


def test_an_empty_project_gets_its_first_commit(
    gitlab: GitLabSession, side: Any, make_tenant: Callable[..., Tenant]
) -> None:
    tenant = make_tenant(side.project(is_empty=True))
    STEP.apply(tenant)
    assert STEP.found(tenant) == STEP.wanted(tenant)


def test_a_mark_that_a_person_broke_restores_only_what_is_ours(
    gitlab: GitLabSession, tenant: Tenant
) -> None:
    STEP.apply(tenant)
    text = gitlab.file(tenant.project_id, MARK_PATH, "main")
    document = json.loads(text)
    document["before"]["settings"]["visibility"] = "public"
    broken = {MARK_PATH: json.dumps(document)}
    gitlab.commit_files(tenant.project_id, "main", "feat: break", broken)
    STEP.remove(tenant)
    assert gitlab.settings(tenant.project_id, "visibility") == {"visibility": "private"}


def test_a_kill_after_any_change_is_finished_by_the_next_run(
    gitlab: GitLabSession,
    side: Any,
    make_tenant: Callable[..., Tenant],
    mortal: Any,
    killed: type[BaseException],
) -> None:
    def fresh() -> Tenant:
        tenant = make_tenant(side.project())
        gitlab.protect(tenant.project_id, "main", OTHERS)
        gitlab.protect_tags(tenant.project_id, "v*", 30)
        return tenant

    for act, undo in ((STEP.apply, False), (STEP.remove, True)):
        number = 0
        while True:
            number += 1
            tenant = fresh()
            before = state(gitlab, tenant.project_id)
            if undo:
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
            assert STEP.found(tenant) == ({} if undo else STEP.wanted(tenant)), where
            assert len(side.commits(tenant.project_id)) == (3 if undo else 2), where
            STEP.remove(tenant)
            assert state(gitlab, tenant.project_id) == before, where
        # The commit, the settings, and two protections that are replaced.
        assert number > 5, number
