"""A pipeline that GitLab accepts: stages and needs exist, and only a person starts production."""

from __future__ import annotations

import json
from collections.abc import Callable
from graphlib import TopologicalSorter
from typing import Any

import pytest
import yaml

from domain.onboarding.app_spec import EXAMPLE_APP, BuildKind, Stage
from domain.onboarding.pipeline import PIPELINE_PATH, SCHEMA_PATH, managed_files
from domain.onboarding.tenant import Tenant
from lab.gitlab import ci_config

GLOBAL_KEYS = {"stages", "variables", "workflow", "default"}
JOB_KEYS = {
    "artifacts", "before_script", "cache", "environment", "extends", "image", "interruptible",
    "needs", "resource_group", "rules", "script", "stage", "variables",
}  # fmt: skip
"""Of GitLab's CI/CD reference: a job may have these, with the values that the tests below allow."""

TIERS = {"production", "staging", "testing", "development", "other"}


@pytest.fixture(params=list(BuildKind))
def tenant(request: pytest.FixtureRequest, make_tenant: Callable[..., Tenant]) -> Tenant:
    return make_tenant(kind=request.param.value)


@pytest.fixture
def pipeline(tenant: Tenant) -> dict[str, Any]:
    return dict(yaml.safe_load(managed_files(tenant)[PIPELINE_PATH]))


@pytest.fixture
def jobs(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, body in pipeline.items():
        if name in GLOBAL_KEYS or name.startswith("."):
            continue
        parent = pipeline.get(body.get("extends", ""), {})
        found[name] = {**parent, **body}
    return found


def test_every_job_has_a_stage_that_exists_and_a_script(
    pipeline: dict[str, Any], jobs: dict[str, dict[str, Any]]
) -> None:
    assert len(jobs) >= 10
    assert len(set(pipeline["stages"])) == len(pipeline["stages"])
    for name, job in jobs.items():
        assert job["stage"] in pipeline["stages"], name
        assert job["script"], name
        assert all(isinstance(line, str) for line in job["script"]), name
        assert set(job) <= JOB_KEYS, name


def test_every_stage_has_a_job(pipeline: dict[str, Any], jobs: dict[str, dict[str, Any]]) -> None:
    assert {job["stage"] for job in jobs.values()} == set(pipeline["stages"])


def test_what_a_job_extends_and_needs_exists_without_a_cycle(
    pipeline: dict[str, Any], jobs: dict[str, dict[str, Any]]
) -> None:
    for job in jobs.values():
        assert job.get("extends") is None or job["extends"] in pipeline
    needs = {name: job.get("needs", []) for name, job in jobs.items()}
    assert all(needed in jobs for wanted in needs.values() for needed in wanted)
    list(TopologicalSorter(needs).static_order())
    order = pipeline["stages"].index
    for name, wanted in needs.items():
        assert all(order(jobs[n]["stage"]) <= order(jobs[name]["stage"]) for n in wanted)


def test_a_needed_job_is_in_every_pipeline_of_the_one_that_needs_it(
    jobs: dict[str, dict[str, Any]],
) -> None:
    for job in jobs.values():
        for needed in job.get("needs", []):
            there = [rule["if"] for rule in jobs[needed]["rules"]]
            assert all(rule["if"] in there for rule in job["rules"])


def test_every_rule_is_of_a_pipeline_that_the_workflow_starts(
    pipeline: dict[str, Any], jobs: dict[str, dict[str, Any]]
) -> None:
    started = [rule["if"] for rule in pipeline["workflow"]["rules"]]
    for name, job in jobs.items():
        for rule in job["rules"]:
            assert any(rule["if"].startswith(condition) for condition in started), name


def test_variables_are_text(pipeline: dict[str, Any], jobs: dict[str, dict[str, Any]]) -> None:
    for group in (pipeline, *jobs.values()):
        assert all(isinstance(value, str) for value in group.get("variables", {}).values())


def test_only_a_person_starts_production_and_nothing_waits_outside_it(
    jobs: dict[str, dict[str, Any]],
) -> None:
    for stage in Stage:
        job = jobs[f"deploy to {stage.value}"]
        assert job["environment"]["name"] == stage.value
        assert job["environment"]["deployment_tier"] in TIERS
        assert job["resource_group"] == stage.value
        by_hand = [rule.get("when") == "manual" for rule in job["rules"]]
        assert by_hand == [stage is Stage.PRODUCTION]


def test_deploy_jobs_come_in_the_order_in_which_changes_travel(pipeline: dict[str, Any]) -> None:
    assert pipeline["stages"][-3:] == ["development", "staging", "production"]


def test_images_are_tagged_by_commit_and_by_version_and_branch(
    jobs: dict[str, dict[str, Any]],
) -> None:
    pushed = "\n".join(jobs["build image"]["script"])
    named = "\n".join(jobs["name version"]["script"])
    assert 'buildah push "$IMAGE:$CI_COMMIT_SHORT_SHA"' in pushed
    assert '"docker://$IMAGE:$CI_COMMIT_TAG-$CI_DEFAULT_BRANCH"' in named
    assert jobs["build image"]["rules"] == [{"if": "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"}]
    assert jobs["name version"]["rules"] == [{"if": r"$CI_COMMIT_TAG =~ /^v\d+\.\d+\.\d+$/"}]


def test_the_image_is_the_one_that_the_cluster_runs(
    tenant: Tenant, pipeline: dict[str, Any]
) -> None:
    image = pipeline["variables"]["IMAGE"]
    image = image.replace("$HARBOR_HOST", tenant.platform.registry)
    image = image.replace("$HARBOR_PROJECT", tenant.harbor_project)
    assert tenant.image(Stage.STAGING).startswith(f"{image}:")


def test_no_job_gets_a_credential_that_reaches_a_cluster_or_the_gitops_repository(
    tenant: Tenant,
) -> None:
    text = managed_files(tenant)[PIPELINE_PATH]
    for word in ("KUBECONFIG", "kubectl", "argocd", tenant.platform.gitops_url):
        assert word not in text


def test_a_password_is_never_an_argument(tenant: Tenant) -> None:
    text = managed_files(tenant)[PIPELINE_PATH]
    assert "--password " not in text
    assert text.count("--password-stdin") == 2


def test_only_node_projects_get_hooks_for_commit_messages(
    make_tenant: Callable[..., Tenant],
) -> None:
    own = {"commitlint.config.cjs", ".husky/commit-msg"}
    assert own <= set(managed_files(make_tenant(kind="node")))
    assert not own & set(managed_files(make_tenant(kind="go")))


def test_the_release_configuration_is_yaml_with_the_tag_that_names_versions(
    make_tenant: Callable[..., Tenant],
) -> None:
    release = yaml.safe_load(managed_files(make_tenant())[".releaserc.yaml"])
    assert release["tagFormat"] == "v${version}"


def test_a_ready_made_image_has_no_pipeline(image_tenant: Tenant) -> None:
    assert managed_files(image_tenant) == {}


def test_a_missing_stage_has_neither_stage_nor_job(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant(environments={"staging": {}})
    pipeline = yaml.safe_load(managed_files(tenant)[PIPELINE_PATH])
    assert "production" not in pipeline["stages"]
    assert "deploy to production" not in pipeline


def test_the_schema_for_editors_wants_what_the_spec_wants(
    make_tenant: Callable[..., Tenant],
) -> None:
    schema = json.loads(managed_files(make_tenant())[SCHEMA_PATH])
    assert "repository" not in schema["required"]
    assert set(schema["required"]) <= set(EXAMPLE_APP)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_BRANCH": "main"},
            ["validate", "test", "build", "scan", "development", "staging", "production"],
        ),
        ({"CI_PIPELINE_SOURCE": "merge_request_event"}, ["validate", "test", "scan"]),
        ({"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_TAG": "v1.2.3"}, ["build"]),
        ({"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_TAG": "v1.2.3-rc1"}, []),
        ({"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_BRANCH": "feature"}, []),
    ],
)
def test_each_event_starts_the_stages_that_it_is_meant_to(
    variables: dict[str, str], expected: list[str], tenant: Tenant
) -> None:
    text = managed_files(tenant)[PIPELINE_PATH]
    config = ci_config.read(text, {"CI_DEFAULT_BRANCH": "main", **variables})
    assert config.stages == expected
    gated = [job.name for job in config.jobs if job.when == "manual"]
    assert gated == (["deploy to production"] if "production" in expected else [])
