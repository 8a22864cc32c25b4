"""What kustomize makes of the files is what the policies judge, object for object."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.errors import Conflict
from domain.manifest_order import key_of
from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests.kustomize import tag_in, with_tag
from domain.onboarding.manifests.workload import rendered
from domain.onboarding.tenant import Tenant
from tasks.onboarding.steps.gitops import files_of

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def build(directory: Path, tenant: Tenant, stage: Stage) -> list[dict[str, Any]]:
    for path, text in files_of(tenant).items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["kubectl", "kustomize", str(directory / tenant.overlay_directory(stage))],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == "", "kustomize warns of something that is deprecated"
    return list(yaml.safe_load_all(done.stdout))


def by_identity(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key_of(document).text: document for document in objects}


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("kind", ["full_tenant", "image_tenant"])
def test_kustomize_builds_what_the_policies_judge(
    kind: str, stage: Stage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tenant: Tenant = request.getfixturevalue(kind)
    assert by_identity(build(tmp_path, tenant, stage)) == by_identity(rendered(tenant, stage))


def test_another_tag_is_one_line_of_one_file(full_tenant: Tenant) -> None:
    files = files_of(full_tenant)
    moved = Tenant(
        full_tenant.platform,
        full_tenant.app,
        full_tenant.project_id,
        {**full_tenant.tags, Stage.STAGING: "3f2a9c1"},
    )
    differing = {path for path, text in files_of(moved).items() if files[path] != text}
    path = f"{full_tenant.overlay_directory(Stage.STAGING)}/kustomization.yaml"
    assert differing == {path}
    assert with_tag(files[path], "3f2a9c1", path) == files_of(moved)[path]
    lines = zip(files[path].splitlines(), files_of(moved)[path].splitlines(), strict=True)
    assert sum(a != b for a, b in lines) == 1


@pytest.mark.parametrize("tag", ["1234567", "1e10", "v1.2.3-main", "0123", "true"])
def test_a_tag_that_looks_like_a_number_stays_text(tag: str, full_tenant: Tenant) -> None:
    path = f"{full_tenant.overlay_directory(Stage.STAGING)}/kustomization.yaml"
    text = with_tag(files_of(full_tenant)[path], tag, path)
    assert yaml.safe_load(text)["images"][0]["newTag"] == tag
    assert tag_in(text) == tag


@pytest.mark.parametrize("tag", ["", "a b", "x\n  evil: y", "'", "-x", "a" * 129])
def test_what_is_no_tag_never_gets_into_a_file(tag: str, full_tenant: Tenant) -> None:
    path = f"{full_tenant.overlay_directory(Stage.STAGING)}/kustomization.yaml"
    with pytest.raises(Conflict, match="no image tag"):
        with_tag(files_of(full_tenant)[path], tag, path)


def test_a_ready_made_image_has_no_tag_to_set(image_tenant: Tenant) -> None:
    path = f"{image_tenant.overlay_directory(Stage.STAGING)}/kustomization.yaml"
    text = files_of(image_tenant)[path]
    assert tag_in(text) is None
    with pytest.raises(Conflict, match="ready-made"):
        with_tag(text, "v2", path)


def test_a_stage_without_a_tag_names_an_image_that_cannot_be_an_old_one(
    full_tenant: Tenant,
) -> None:
    unbuilt = Tenant(full_tenant.platform, full_tenant.app, 7, {})
    deployment = next(d for d in rendered(unbuilt, Stage.STAGING) if d["kind"] == "Deployment")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "harbor.example.org/shop/shop:unbuilt"
