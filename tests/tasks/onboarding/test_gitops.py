"""The GitOps step against a real Git repository: one commit, many writers, tags, the way back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tasks.onboarding.steps.gitops as step_module
from blocks.git_repository import GitRepository
from domain.errors import Conflict, NotFound
from domain.onboarding.app_spec import Stage
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import differences
from tasks.onboarding.steps.gitops import GitOps, current_tags, previous_tag, set_tag

STEP = GitOps()


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def bare(tmp_path: Path, planted_secrets: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "gitops.git"
    directory.mkdir()
    git(directory, "init", "--quiet", "--bare", "--initial-branch=main", ".")
    repository = GitRepository(url=f"file://{directory}", credential="infraflows/lab/git")
    secrets = planted_secrets({"infraflows/lab/git": {"username": "u", "password": "p"}})
    monkeypatch.setattr(step_module, "openbao", secrets)
    names: list[str] = []

    def by_name(name: str) -> GitRepository:
        names.append(name)
        return repository

    monkeypatch.setattr(step_module, "git_repository", by_name)
    return directory


@pytest.fixture
def tenant(make_tenant: Callable[..., Tenant], bare: Path) -> Tenant:
    return make_tenant()


def commit(bare: Path, path: str, text: str, tmp_path: Path) -> None:
    """Commit one file as a person does."""
    clone = tmp_path / "person"
    git(tmp_path, "clone", "--quiet", str(bare), str(clone))
    (clone / path).parent.mkdir(parents=True, exist_ok=True)
    (clone / path).write_text(text)
    git(clone, "add", "--all")
    git(clone, "-c", "user.name=p", "-c", "user.email=p@example.org", "commit", "-qm", "by hand")
    git(clone, "push", "--quiet", "origin", "HEAD:main")


def acts(tenant: Tenant) -> dict[str, str]:
    found = differences("gitops", "git", STEP.found(tenant), STEP.wanted(tenant))
    return {change.thing.rpartition("shop/")[2]: change.act.value for change in found}


def commits(bare: Path) -> int:
    return int(git(bare, "rev-list", "--count", "main"))


def test_what_is_committed_is_found_as_wanted_and_again_makes_no_commit(
    tenant: Tenant, bare: Path
) -> None:
    assert STEP.found(tenant) == {}
    STEP.apply(tenant)
    assert acts(tenant) == {}
    assert commits(bare) == 1
    STEP.apply(tenant)
    assert commits(bare) == 1


def test_a_stage_that_is_no_longer_wanted_goes_in_the_same_commit(
    tenant: Tenant, make_tenant: Callable[..., Tenant], bare: Path
) -> None:
    STEP.apply(tenant)
    smaller = make_tenant(environments={"staging": {}})
    assert acts(smaller)["overlays/production/kustomization.yaml"] == "delete"
    STEP.apply(smaller)
    assert acts(smaller) == {}
    assert commits(bare) == 2


def test_a_change_by_hand_is_seen_and_taken_back(
    tenant: Tenant, bare: Path, tmp_path: Path
) -> None:
    STEP.apply(tenant)
    commit(bare, "apps/shop/base/service.yaml", "kind: Service\n", tmp_path)
    assert acts(tenant) == {"base/service.yaml": "change"}
    STEP.apply(tenant)
    assert acts(tenant) == {}


def test_a_file_that_was_put_beside_is_seen_and_removed(
    tenant: Tenant, bare: Path, tmp_path: Path
) -> None:
    STEP.apply(tenant)
    commit(bare, "apps/shop/base/job.yaml", "kind: Job\n", tmp_path)
    assert acts(tenant) == {"base/job.yaml": "delete"}
    STEP.apply(tenant)
    assert acts(tenant) == {}


def test_a_directory_of_somebody_else_is_not_taken_over(
    tenant: Tenant, bare: Path, tmp_path: Path
) -> None:
    commit(bare, "apps/shop/base/kustomization.yaml", "resources: []\n", tmp_path)
    with pytest.raises(Conflict, match="1 files of somebody else"):
        STEP.apply(tenant)
    assert STEP.found(tenant) == {}
    STEP.remove(tenant)
    assert commits(bare) == 1


def test_removal_leaves_the_others_and_may_be_repeated(
    tenant: Tenant, make_tenant: Callable[..., Tenant], bare: Path
) -> None:
    other = make_tenant(name="shop-two")
    STEP.apply(tenant)
    STEP.apply(other)
    STEP.remove(tenant)
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}
    assert differences("", "", STEP.found(other), STEP.wanted(other)) == []
    assert commits(bare) == 3


def test_applications_that_commit_at_once_all_succeed(
    make_tenant: Callable[..., Tenant], bare: Path
) -> None:
    tenants = [make_tenant(name=f"app-{number}") for number in range(6)]
    with ThreadPoolExecutor(len(tenants)) as pool:
        list(pool.map(STEP.apply, tenants))
    for tenant in tenants:
        assert differences("", "", STEP.found(tenant), STEP.wanted(tenant)) == []
    assert commits(bare) == len(tenants)


def test_a_deployment_is_one_line_and_what_onboarding_would_write(
    tenant: Tenant, make_tenant: Callable[..., Tenant], bare: Path
) -> None:
    STEP.apply(tenant)
    sha = set_tag(tenant.platform, "shop", Stage.STAGING, "3f2a9c1b")
    assert git(bare, "rev-parse", "main") == sha
    assert git(bare, "show", "--numstat", "--format=", sha).split() == [
        "1",
        "1",
        "apps/shop/overlays/staging/kustomization.yaml",
    ]
    assert current_tags(tenant.platform, "shop")[Stage.STAGING] == "3f2a9c1b"
    assert acts(make_tenant(tags={**tenant.tags, Stage.STAGING: "3f2a9c1b"})) == {}


def test_the_same_tag_again_makes_no_commit(tenant: Tenant, bare: Path) -> None:
    STEP.apply(tenant)
    sha = set_tag(tenant.platform, "shop", Stage.STAGING, "3f2a9c1b")
    assert set_tag(tenant.platform, "shop", Stage.STAGING, "3f2a9c1b") == sha
    assert commits(bare) == 2


def test_the_way_back_leads_to_the_tag_before_whatever_was_committed_between(
    tenant: Tenant, make_tenant: Callable[..., Tenant], bare: Path, tmp_path: Path
) -> None:
    STEP.apply(make_tenant(tags=dict.fromkeys(Stage, "unbuilt")))
    set_tag(tenant.platform, "shop", Stage.STAGING, "1111111a")
    set_tag(tenant.platform, "shop", Stage.PRODUCTION, "2222222b")
    set_tag(tenant.platform, "shop", Stage.STAGING, "3333333c")
    commit(bare, "apps/other/readme", "hello\n", tmp_path)
    assert previous_tag(tenant.platform, "shop", Stage.STAGING) == "1111111a"
    with pytest.raises(NotFound, match="knows no tag before 2222222b"):
        previous_tag(tenant.platform, "shop", Stage.PRODUCTION)


def test_a_numeric_commit_stays_text(tenant: Tenant, bare: Path) -> None:
    STEP.apply(tenant)
    set_tag(tenant.platform, "shop", Stage.STAGING, "12345678")
    assert current_tags(tenant.platform, "shop")[Stage.STAGING] == "12345678"


def test_a_stage_that_does_not_exist_cannot_be_deployed(
    make_tenant: Callable[..., Tenant], bare: Path
) -> None:
    tenant = make_tenant(environments={"staging": {}})
    STEP.apply(tenant)
    with pytest.raises(NotFound):
        set_tag(tenant.platform, "shop", Stage.PRODUCTION, "3f2a9c1b")
    assert current_tags(tenant.platform, "shop") == {Stage.STAGING: "v1.0.0-main"}


def test_deployments_of_all_stages_at_once_all_arrive(tenant: Tenant, bare: Path) -> None:
    STEP.apply(tenant)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda s: set_tag(tenant.platform, "shop", s, f"{s.value[:4]}1234"), Stage))
    tags = current_tags(tenant.platform, "shop")
    assert tags == {stage: f"{stage.value[:4]}1234" for stage in Stage}


def test_a_deployment_never_undoes_what_another_writer_changed_meanwhile(
    tenant: Tenant, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STEP.apply(tenant)
    plain = step_module.with_tag

    def slowly(text: str, tag: str, path: str) -> str:
        monkeypatch.setattr(step_module, "with_tag", plain)
        set_tag(tenant.platform, "shop", Stage.STAGING, "aaaaaaa1")
        return plain(text, tag, path)

    monkeypatch.setattr(step_module, "with_tag", slowly)
    with pytest.raises(Conflict, match="another writer changed it"):
        set_tag(tenant.platform, "shop", Stage.STAGING, "bbbbbbb2")
    assert current_tags(tenant.platform, "shop")[Stage.STAGING] == "aaaaaaa1"
