"""Pipelines of pushes, the stand-in runner, deployments and their events."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.bare_gitlab import bare_gitlab
from lab.bare_harbor import BareHarbor, bare_harbor

CONFIG = """\
stages: [test, build, staging, production]
variables:
  IMAGE: $HARBOR_HOST/$HARBOR_PROJECT/$CI_PROJECT_NAME
workflow:
  rules:
    - if: $CI_PIPELINE_SOURCE == "merge_request_event"
    - if: $CI_COMMIT_TAG =~ /^v\\d+/
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
.main:
  rules:
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
test:
  stage: test
  rules:
    - if: $CI_PIPELINE_SOURCE == "merge_request_event"
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
  script: [make test]
build image:
  extends: .main
  stage: build
  script:
    - buildah push "$IMAGE:$CI_COMMIT_SHORT_SHA"
name version:
  stage: build
  rules:
    - if: $CI_COMMIT_TAG
  script:
    - skopeo copy "docker://$IMAGE:$CI_COMMIT_SHORT_SHA" "docker://$IMAGE:$CI_COMMIT_TAG-main"
deploy to staging:
  extends: .main
  stage: staging
  environment: {name: staging, url: https://shop-staging.example.org}
  script: [echo]
deploy to production:
  stage: production
  environment: production
  rules:
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
      when: manual
      allow_failure: true
  script: [echo]
"""
SIMPLE = CONFIG.replace("buildah push", "echo").replace("$HARBOR_HOST/$HARBOR_PROJECT/", "")


def _add(project: Any, text: str, branch: str = "main", message: str = "ci") -> str:
    action = {"action": "create", "file_path": ".gitlab-ci.yml", "content": text}
    data = {"branch": branch, "commit_message": message, "actions": [action]}
    if branch != "main":
        data["start_branch"] = "main"
    return str(project.commits.create(data).id)


def _finished(project: Any, sha: str) -> Any:
    found = project.pipelines.list(sha=sha, get_all=True)
    return found[0] if found and found[0].status in ("success", "failed", "manual") else None


def _jobs(project: Any, pipeline_id: int) -> dict[str, Any]:
    return {job.name: job for job in project.pipelines.get(pipeline_id).jobs.list(get_all=True)}


def test_a_push_runs_a_pipeline_that_waits_at_the_gate_and_deploys_before_it(
    project: Any, receiver: Any, wait_until: Callable[..., Any]
) -> None:
    project.hooks.create(
        {
            "url": receiver.url,
            "push_events": False,
            "pipeline_events": True,
            "deployment_events": True,
        }
    )
    sha = _add(project, SIMPLE)
    run = wait_until(lambda: _finished(project, sha))
    assert run.status == "success"
    jobs = _jobs(project, run.id)
    assert {name: job.status for name, job in jobs.items()} == {
        "test": "success", "build image": "success", "deploy to staging": "success",
        "deploy to production": "manual",
    }  # fmt: skip
    told = {d.payload["status"]: d.payload for d in receiver.wait(2, "Deployment Hook")}
    assert set(told) == {"running", "success"}
    assert (told["success"]["environment"], told["success"]["short_sha"]) == ("staging", sha[:8])
    assert told["success"]["environment_external_url"] == "https://shop-staging.example.org"
    assert told["success"]["deployable_id"] == jobs["deploy to staging"].id
    last = [d.payload["object_attributes"]["status"] for d in receiver.wait(3, "Pipeline Hook")]
    assert (last[0], last[-1]) == ("created", "success")


def test_a_manual_job_deploys_when_a_person_plays_it(
    server: Any, project: Any, receiver: Any, wait_until: Callable[..., Any]
) -> None:
    sha = _add(project, SIMPLE)
    run = wait_until(lambda: _finished(project, sha))
    project.hooks.create({"url": receiver.url, "push_events": False, "deployment_events": True})
    job = _jobs(project, run.id)["deploy to production"]
    server.client("mira").projects.get(project.id).jobs.get(job.id, lazy=True).play()
    payload = next(d.payload for d in receiver.wait(2) if d.payload["status"] == "success")
    assert (payload["environment"], payload["environment_tier"]) == ("production", "production")
    assert payload["user"]["username"] == "mira"
    assert {e.name: e.state for e in project.environments.list(get_all=True)} == {
        "staging": "available",
        "production": "available",
    }
    made = project.deployments.list(environment="production", get_all=True)
    assert [(d.status, d.sha) for d in made] == [("success", sha)]


def test_a_merge_request_has_only_the_jobs_whose_rules_ask_for_it(
    project: Any, wait_until: Callable[..., Any]
) -> None:
    _add(project, SIMPLE, "topic")
    assert project.pipelines.list(get_all=True) == [], "the workflow has none for a topic branch"
    request = project.mergerequests.create(
        {"source_branch": "topic", "target_branch": "main", "title": "CI"}
    )
    (run,) = wait_until(lambda: request.pipelines.list(get_all=True))
    assert (run.source, run.ref) == ("merge_request_event", "refs/merge-requests/1/head")
    assert set(_jobs(project, run.id)) == {"test"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "Invalid configuration format"),
        ("a: {stage: nowhere, script: x}", "chosen stage nowhere does not exist"),
        ("a: {script: x, only: [main]}", "`only` is not simulated"),
        ("include: other.yml\na: {script: x}", "`include` is not simulated"),
        ("a: {script: x, rules: [{if: '$A ='}]}", "invalid expression syntax"),
        ("a: {extends: .b, script: x}", "unknown keys in `extends`"),
    ],
)
def test_a_wrong_configuration_makes_a_failed_pipeline_that_says_why(
    project: Any, text: str, problem: str
) -> None:
    sha = _add(project, text)
    (run,) = project.pipelines.list(sha=sha, get_all=True)
    assert run.status == "failed"
    assert problem in project.pipelines.get(run.id).yaml_errors


def test_a_commit_that_skips_ci_has_no_pipeline(project: Any) -> None:
    sha = _add(project, SIMPLE, message="chore: settle [skip ci]")
    assert project.pipelines.list(sha=sha, get_all=True) == []


def test_a_job_without_its_variables_fails_with_a_trace_that_says_so(
    project: Any, wait_until: Callable[..., Any]
) -> None:
    sha = _add(project, CONFIG)
    run = wait_until(lambda: _finished(project, sha))
    assert run.status == "failed"
    jobs = _jobs(project, run.id)
    trace = project.jobs.get(jobs["build image"].id).trace().decode()
    assert "Unable to push the image: HARBOR_HOST, HARBOR_PROJECT, HARBOR_USERNAME" in trace
    assert jobs["deploy to staging"].status == "skipped"


def test_a_pipeline_goes_on_after_a_kill(
    server: Any, project: Any, wait_until: Callable[..., Any]
) -> None:
    sha = _add(project, SIMPLE)
    server.kill()
    server.start()
    assert wait_until(lambda: _finished(project, sha)).status == "success"


@pytest.fixture(scope="module")
def harbor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareHarbor]:
    """A Harbor with the distribution's registry behind it."""
    with bare_harbor(tmp_path_factory.mktemp("harbor")) as running:
        yield running


@pytest.fixture(scope="module")
def beside_harbor(tmp_path_factory: pytest.TempPathFactory, harbor: BareHarbor) -> Iterator[Any]:
    """A GitLab whose runner trusts that Harbor."""
    directory = tmp_path_factory.mktemp("gitlab-beside-harbor")
    with bare_gitlab(directory, registry_ca_file=harbor.ca_file) as running:
        yield running


@pytest.fixture
def built(beside_harbor: Any, harbor: BareHarbor) -> Any:
    """A project whose variables log in at Harbor."""
    with harbor.client() as client:
        client.post(
            "/api/v2.0/projects", json={"project_name": "shop", "metadata": {"public": "false"}}
        )
    client = beside_harbor.client()
    group = client.groups.get("storefront")
    name = f"shop-{uuid.uuid4().hex[:8]}"
    project = client.projects.create(
        {"name": name, "namespace_id": group.id, "initialize_with_readme": True}
    )
    login = {
        "HARBOR_HOST": harbor.registry,
        "HARBOR_PROJECT": "shop",
        "HARBOR_USERNAME": harbor.administrator["username"],
        "HARBOR_PASSWORD": harbor.administrator["password"],
    }
    for key, value in login.items():
        project.variables.create({"key": key, "value": value, "protected": True})
    return project


def test_the_build_pushes_a_real_image_and_a_tag_gives_it_a_second_name(
    harbor: BareHarbor, built: Any, wait_until: Callable[..., Any]
) -> None:
    sha = _add(built, CONFIG)
    run = wait_until(lambda: _finished(built, sha))
    jobs = _jobs(built, run.id)
    trace = built.jobs.get(jobs["build image"].id).trace().decode()
    assert run.status == "success", trace
    assert harbor.administrator["password"] not in trace
    built.protectedtags.create({"name": "v*"})
    built.tags.create({"tag_name": "v1.0.0", "ref": "main"})
    wait_until(
        lambda: [
            r for r in built.pipelines.list(ref="v1.0.0", get_all=True) if r.status == "success"
        ]
    )
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    with harbor.client() as client:
        found = [
            client.get(f"/v2/shop/{built.path}/manifests/{name}", headers=accept)
            for name in (sha[:8], "v1.0.0-main")
        ]
        assert [answer.status_code for answer in found] == [200, 200]
        assert found[0].content == found[1].content
        config = client.get(
            f"/v2/shop/{built.path}/blobs/{found[0].json()['config']['digest']}"
        ).json()
    assert config["config"]["Labels"]["org.opencontainers.image.revision"] == sha


def test_a_login_that_the_registry_refuses_fails_the_job_without_telling_it(
    built: Any, wait_until: Callable[..., Any]
) -> None:
    built.variables.update("HARBOR_PASSWORD", {"value": "wrong-password"})
    sha = _add(built, CONFIG)
    run = wait_until(lambda: _finished(built, sha))
    jobs = _jobs(built, run.id)
    assert jobs["build image"].status == "failed"
    trace = built.jobs.get(jobs["build image"].id).trace().decode()
    assert "the registry refused the login" in trace
    assert "wrong-password" not in trace


def test_a_version_of_a_commit_that_was_never_built_is_refused(
    built: Any, wait_until: Callable[..., Any]
) -> None:
    built.protectedtags.create({"name": "v*"})
    sha = _add(built, CONFIG, "topic")
    built.tags.create({"tag_name": "v9.0.0", "ref": "topic"})
    run = wait_until(lambda: _finished(built, sha))
    trace = built.jobs.get(_jobs(built, run.id)["name version"].id).trace().decode()
    assert f"Unable to read shop/{built.path}:{sha[:8]}" in trace
    assert run.status == "failed"
