"""The pipeline that is really rendered: GitLab takes it and makes jobs of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blocks.gitlab_server import GitLabSession
from domain.onboarding.app_spec import BuildKind
from domain.onboarding.pipeline import managed_files
from domain.onboarding.tenant import Tenant
from tasks.onboarding.steps.gitlab_project import GitLabProject

STEP = GitLabProject()


@pytest.mark.parametrize("kind", list(BuildKind))
def test_the_files_of_each_kind_are_converged_and_start_a_pipeline(
    gitlab: GitLabSession, side: Any, make_tenant: Callable[..., Tenant], kind: BuildKind
) -> None:
    tenant = make_tenant(side.project(), kind=kind.value)
    STEP.apply(tenant)
    assert STEP.found(tenant) == STEP.wanted(tenant)
    for path, text in managed_files(tenant).items():
        assert gitlab.file(tenant.project_id, path, "main") == text
    commit = gitlab.head(tenant.project_id, "main")
    (pipeline,) = gitlab.pipelines(tenant.project_id, commit)
    jobs = side.call("GET", f"/projects/{tenant.project_id}/pipelines/{pipeline.pipeline_id}/jobs")
    names = {each["name"] for each in jobs}
    assert {"validate app.yaml", "test", "build image", "deploy to staging"} <= names
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}
