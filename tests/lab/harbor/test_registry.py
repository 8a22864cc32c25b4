"""Images are pushed to and pulled from the real registry, with Harbor's rights in front of it."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

API = "/api/v2.0"
ErrorOf = Callable[[httpx.Response], tuple[int, str, str]]


def random_bytes(size: int = 100_000) -> bytes:
    return secrets.token_bytes(size)


def test_what_a_robot_pushes_another_pulls_and_harbor_lists(trial: Any) -> None:
    project, layer = trial.project(), random_bytes()
    pushing = trial.robot(project, "push", "pull")
    pulling = trial.robot(project, "pull")
    client = trial.oci(pushing["name"], pushing["secret"])
    assert client.push(f"{project}/app", "v1.2.0-main", layer).status_code == 201
    puller = trial.oci(pulling["name"], pulling["secret"])
    assert puller.pull(f"{project}/app", "v1.2.0-main") == layer
    base = f"{API}/projects/{project}/repositories"
    (repository,) = trial.admin.get(base).json()
    assert (repository["name"], repository["artifact_count"]) == (f"{project}/app", 1)
    assert repository["pull_count"] == 1
    (artifact,) = trial.admin.get(f"{base}/app/artifacts").json()
    assert [tag["name"] for tag in artifact["tags"]] == ["v1.2.0-main"]
    assert artifact["type"] == "IMAGE"
    assert artifact["size"] == trial.used(project)
    assert puller.pull(f"{project}/app", artifact["digest"]) == layer
    listed = puller.request("GET", f"/v2/{project}/app/tags/list")
    assert listed.json() == {"name": f"{project}/app", "tags": ["v1.2.0-main"]}


def test_a_robot_that_may_only_pull_is_refused_a_push(trial: Any, error_of: ErrorOf) -> None:
    project = trial.project()
    robot = trial.robot(project, "pull")
    answer = trial.oci(robot["name"], robot["secret"]).push(f"{project}/app", "1", random_bytes())
    text = f"unauthorized to access repository: {project}/app, action: push"
    assert error_of(answer) == (401, "UNAUTHORIZED", f"{text}: {text}")


def test_a_robot_can_neither_push_to_nor_pull_from_another_project(trial: Any) -> None:
    own, other = trial.project(), trial.project()
    assert trial.oci().push(f"{other}/app", "1", random_bytes()).status_code == 201
    robot = trial.robot(own, "push", "pull")
    client = trial.oci(robot["name"], robot["secret"])
    assert client.push(f"{other}/app", "2", random_bytes()).status_code == 401
    assert client.pull(f"{other}/app", "1").status_code == 401
    with trial.harbor.client(robot["name"], robot["secret"]) as basic:
        assert basic.get(f"/v2/{other}/app/manifests/1").status_code == 401


def test_a_blob_is_mounted_only_from_a_project_that_one_may_pull_from(trial: Any) -> None:
    own, other = trial.project(), trial.project()
    layer = random_bytes()
    trial.oci().push(f"{other}/app", "1", layer)
    name = "sha256:" + hashlib.sha256(layer).hexdigest()
    robot = trial.robot(own, "push", "pull")
    path = f"/v2/{own}/app/blobs/uploads/?mount={name}&from={other}/app"
    with trial.harbor.client(robot["name"], robot["secret"]) as basic:
        assert basic.post(path).status_code == 401
    with trial.harbor.client() as admin:
        assert admin.post(path).status_code == 201


def test_a_push_to_an_unknown_project_is_refused_in_harbors_words(
    trial: Any, error_of: ErrorOf
) -> None:
    answer = trial.oci().push("no-such-project/app", "1", random_bytes())
    text = "project no-such-project not found"
    assert error_of(answer) == (401, "UNAUTHORIZED", f"{text}: {text}")


def test_a_push_over_the_quota_is_denied_in_harbors_words(trial: Any, error_of: ErrorOf) -> None:
    project = trial.project(storage_limit=3 * 1024 * 1024)
    first = random_bytes(2 * 1024 * 1024)
    client = trial.oci()
    assert client.push(f"{project}/app", "1", first).status_code == 201
    assert error_of(client.push(f"{project}/app", "2", random_bytes(2 * 1024 * 1024))) == (
        403,
        "DENIED",
        "adding 2.0 MiB of storage resource, which when updated to current usage of 2.0 MiB will "
        "exceed the configured upper limit of 3.0 MiB.",
    )
    again = client.push(f"{project}/again", "1", first)
    assert again.status_code == 201, "the same blobs take no more space"
    quota = trial.admin.get(f"{API}/projects/{project}").json()["project_id"]
    answer = trial.admin.put(f"{API}/quotas/{quota}", json={"hard": {"storage": 8 << 20}})
    assert answer.status_code == 200
    assert client.push(f"{project}/app", "2", random_bytes(2 * 1024 * 1024)).status_code == 201


def test_a_deleted_artifact_gives_its_space_back_and_is_not_pulled(trial: Any) -> None:
    project = trial.project()
    trial.oci().push(f"{project}/app", "1", random_bytes())
    assert trial.used(project) > 0
    path = f"{API}/projects/{project}/repositories/app/artifacts/1"
    assert trial.admin.delete(path).status_code == 200
    assert trial.used(project) == 0
    assert trial.oci().pull(f"{project}/app", "1").status_code == 404


def test_a_tag_is_moved_added_and_removed(trial: Any, error_of: ErrorOf) -> None:
    project, client = trial.project(), trial.oci()
    old, new = random_bytes(), random_bytes()
    client.push(f"{project}/app", "main", old)
    client.push(f"{project}/app", "main", new)
    assert client.pull(f"{project}/app", "main") == new
    base = f"{API}/projects/{project}/repositories/app/artifacts"
    newest, oldest = trial.admin.get(base).json()
    assert oldest["tags"] is None
    kept = f"{base}/{oldest['digest']}/tags"
    assert trial.admin.post(kept, json={"name": "kept"}).status_code == 201
    assert client.pull(f"{project}/app", "kept") == old
    taken = trial.admin.post(kept, json={"name": "main"})
    assert error_of(taken) == (409, "CONFLICT", "tag main already exists")
    assert trial.admin.delete(f"{base}/{newest['digest']}/tags/main").status_code == 200
    assert client.pull(f"{project}/app", "main").status_code == 404


def test_a_repository_with_a_slash_in_its_name_is_deleted_by_its_name_encoded_twice(
    trial: Any,
) -> None:
    project = trial.project()
    trial.oci().push(f"{project}/team/app", "1", random_bytes())
    path = f"{API}/projects/{project}/repositories/team%252Fapp"
    assert trial.admin.get(path).json()["name"] == f"{project}/team/app"
    assert trial.admin.delete(path).status_code == 200
    assert trial.admin.get(path).status_code == 404
    assert trial.admin.delete(f"{API}/projects/{project}").status_code == 200


def test_anybody_pulls_from_a_public_project_and_nobody_pushes(trial: Any) -> None:
    project, layer = trial.project(metadata={"public": "true"}), random_bytes()
    trial.oci().push(f"{project}/app", "1", layer)
    robot = trial.robot(trial.project(), "pull", "push")
    other = trial.oci(robot["name"], robot["secret"])
    assert other.pull(f"{project}/app", "1") == layer
    assert other.push(f"{project}/app", "2", random_bytes()).status_code == 401


@pytest.mark.parametrize("end", ["disable", "delete", "refresh"])
def test_a_robot_that_is_no_more_is_refused_at_once(trial: Any, end: str) -> None:
    project = trial.project()
    robot = trial.robot(project, "pull", "push")
    login = (robot["name"], robot["secret"])
    with trial.harbor.client(*login) as basic:
        assert basic.get("/v2/").status_code == 200
        path = f"{API}/robots/{robot['id']}"
        held = trial.admin.get(path).json()
        match end:
            case "disable":
                trial.admin.put(path, json=held | {"disable": True})
            case "delete":
                trial.admin.delete(path)
            case "refresh":
                secret = trial.admin.patch(path, json={"secret": ""}).json()["secret"]
                assert secret != robot["secret"]
                with trial.harbor.client(robot["name"], secret) as fresh:
                    assert fresh.get("/v2/").status_code == 200
        assert basic.get("/v2/").status_code == 401
        token = basic.get("/service/token", params={"service": "harbor-registry"})
        assert token.status_code == 401


def test_a_robot_whose_time_is_over_is_refused(own_trial: Any) -> None:
    robot = own_trial.robot(own_trial.project(), "pull", duration=1)
    left = robot["expires_at"] - time.time()
    assert 86000 < left <= 86400
    own_trial.harbor.kill()
    database = sqlite3.connect(own_trial.harbor.directory / "state" / "harbor.db")
    database.execute(
        "UPDATE documents SET body = json_set(body, '$.expires_at', ?) WHERE kind = 'robot'",
        (int(time.time()) - 1,),
    )
    database.commit()
    database.close()
    own_trial.harbor.start()
    with own_trial.harbor.client(robot["name"], robot["secret"]) as basic:
        assert basic.get("/v2/").status_code == 401


def test_what_was_answered_before_a_kill_is_there_after_it(own_trial: Any) -> None:
    project, layer = own_trial.project(storage_limit=1 << 30), random_bytes()
    robot = own_trial.robot(project, "pull", "push")
    assert own_trial.oci().push(f"{project}/app", "1", layer).status_code == 201
    before = own_trial.admin.get(f"{API}/projects/{project}").json()
    own_trial.harbor.kill()
    own_trial.harbor.start()
    assert own_trial.oci(robot["name"], robot["secret"]).pull(f"{project}/app", "1") == layer
    assert own_trial.admin.get(f"{API}/projects/{project}").json() == before
    assert own_trial.project() != project


def test_a_push_that_was_cut_between_registry_and_record_is_found_again(own_trial: Any) -> None:
    """The registry has taken the manifest, Harbor was killed before it wrote that down."""
    project, layer = own_trial.project(), random_bytes()
    assert own_trial.oci().push(f"{project}/app", "1", layer).status_code == 201
    own_trial.harbor.kill()
    database = sqlite3.connect(own_trial.harbor.directory / "state" / "harbor.db")
    database.execute("DELETE FROM documents WHERE kind IN ('artifact', 'repository')")
    media_type = "application/vnd.oci.image.manifest.v1+json"
    body = f'{{"repository": "{project}/app", "reference": "1", "media_type": "{media_type}"}}'
    database.execute("INSERT INTO documents VALUES ('push', 'cut', ?)", (body,))
    database.commit()
    database.close()
    own_trial.harbor.start()
    assert own_trial.oci().pull(f"{project}/app", "1") == layer
    assert own_trial.used(project) > len(layer)
