"""The API answers as Harbor does: codes, words, paging, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.harbor.urls import ROUTES

API = "/api/v2.0"
README = Path(__file__).parents[3] / "lab" / "harbor" / "README.md"
ErrorOf = Callable[[httpx.Response], tuple[int, str, str]]


def test_a_project_is_found_by_name_and_by_id_and_a_second_one_is_refused(
    trial: Any, error_of: ErrorOf
) -> None:
    name = trial.project(metadata={"public": "false"}, storage_limit=1 << 20)
    project = trial.admin.get(f"{API}/projects/{name}").json()
    assert project["metadata"] == {"public": "false"}
    by_id = trial.admin.get(f"{API}/projects/{project['project_id']}").json()
    assert by_id == project
    by_name = trial.admin.get(
        f"{API}/projects/{project['project_id']}", headers={"X-Is-Resource-Name": "true"}
    )
    assert by_name.status_code == 404
    assert trial.admin.head(f"{API}/projects", params={"project_name": name}).status_code == 200
    again = trial.admin.post(f"{API}/projects", json={"project_name": name})
    assert error_of(again) == (409, "CONFLICT", f"The project named {name} already exists")
    gone = trial.admin.get(f"{API}/projects/nobody")
    assert error_of(gone) == (404, "NOT_FOUND", "project nobody not found")


def test_a_project_with_repositories_is_not_deleted(trial: Any, error_of: ErrorOf) -> None:
    name = trial.project()
    assert trial.oci().push(f"{name}/app", "1", b"layer" * 100).status_code == 201
    refused = trial.admin.delete(f"{API}/projects/{name}")
    text = "the project contains repositories, can not be deleted"
    assert error_of(refused) == (412, "PRECONDITION", text)
    answer = trial.admin.get(f"{API}/projects/{name}/_deletable").json()
    assert answer == {"deletable": False, "message": text}
    trial.admin.delete(f"{API}/projects/{name}/repositories/app")
    assert trial.admin.delete(f"{API}/projects/{name}").status_code == 200
    assert trial.admin.get(f"{API}/projects/{name}").status_code == 404


def test_robots_and_labels_go_with_their_project(trial: Any) -> None:
    name = trial.project()
    number = trial.admin.get(f"{API}/projects/{name}").json()["project_id"]
    robot = trial.robot(name, "pull")
    label = {"name": "mark", "scope": "p", "project_id": number}
    made = trial.admin.post(f"{API}/labels", json=label)
    assert made.status_code == 201
    trial.admin.delete(f"{API}/projects/{name}")
    assert trial.admin.get(f"{API}/robots/{robot['id']}").status_code == 404
    assert trial.admin.get(made.headers["location"]).status_code == 404


@pytest.mark.parametrize("name", ["Shop", "shop_", "-shop", "sh op", ""])
def test_a_project_name_that_no_image_can_have_is_refused(
    trial: Any, error_of: ErrorOf, name: str
) -> None:
    answer = trial.admin.post(f"{API}/projects", json={"project_name": name})
    assert error_of(answer)[:2] == (400, "BAD_REQUEST")


def test_metadata_is_read_changed_and_unknown_keys_are_refused(
    trial: Any, error_of: ErrorOf
) -> None:
    path = f"{API}/projects/{trial.project()}/metadatas"
    assert trial.admin.post(path, json={"prevent_vul": "true"}).status_code == 200
    assert trial.admin.get(path).json() == {"public": "false", "prevent_vul": "true"}
    assert trial.admin.put(f"{path}/prevent_vul", json={"prevent_vul": "false"}).status_code == 200
    assert trial.admin.delete(f"{path}/prevent_vul").status_code == 200
    assert trial.admin.get(f"{path}/prevent_vul").status_code == 404
    unknown = trial.admin.post(path, json={"owner-of-this": "me"})
    assert error_of(unknown) == (400, "BAD_REQUEST", "invalid key: owner-of-this")


def test_lists_come_in_pages_with_their_count(trial: Any) -> None:
    name = trial.project()
    number = trial.admin.get(f"{API}/projects/{name}").json()["project_id"]
    made = [trial.robot(name, "pull")["name"] for _ in range(5)]
    query = {"q": f"Level=project,ProjectID={number}", "page_size": 2}
    found: list[str] = []
    path, params = f"{API}/robots", dict(query)
    for page in (1, 2, 3):
        answer = trial.admin.get(path, params=params | {"page": page})
        assert answer.headers["x-total-count"] == "5"
        assert ('rel="next"' in answer.headers.get("link", "")) == (page < 3)
        found += [each["name"] for each in answer.json()]
    assert found == made
    assert trial.admin.get(path, params=params | {"page_size": 101}).status_code == 422


def test_a_robots_secret_is_told_once_and_kept_as_a_hash_only(trial: Any) -> None:
    robot = trial.robot(trial.project(), "pull")
    path = f"{API}/robots/{robot['id']}"
    assert "secret" not in trial.admin.get(path).json()
    own = "Correct1Horse2Battery3"
    assert trial.admin.patch(path, json={"secret": own}).json() == {"secret": ""}
    with trial.harbor.client(robot["name"], own) as client:
        assert client.get("/v2/").status_code == 200
    state = trial.harbor.directory / "state"
    stored = b"".join(file.read_bytes() for file in state.iterdir())
    assert own.encode() not in stored
    assert robot["secret"].encode() not in stored


def test_a_weak_secret_a_new_name_and_an_unknown_right_are_refused(
    trial: Any, error_of: ErrorOf
) -> None:
    project = trial.project()
    robot = trial.robot(project, "pull")
    path = f"{API}/robots/{robot['id']}"
    assert error_of(trial.admin.patch(path, json={"secret": "short"}))[0] == 400
    held = trial.admin.get(path).json()
    renamed = trial.admin.put(path, json=held | {"name": "robot$other"})
    assert error_of(renamed)[2] == "cannot update the level or name of robot"
    held["permissions"][0]["access"].append({"resource": "repository", "action": "fly"})
    wrong = trial.admin.put(path, json=held)
    assert error_of(wrong)[2] == "bad request permission: repository:fly"


def test_a_robot_administers_what_its_rights_say_and_no_more(trial: Any, error_of: ErrorOf) -> None:
    own, other = trial.project(), trial.project()
    robot = trial.robot(own, "pull", "list")
    with trial.harbor.client(robot["name"], robot["secret"]) as client:
        assert client.get(f"{API}/projects/{own}/repositories").status_code == 200
        refused = client.get(f"{API}/projects/{other}/repositories")
        assert error_of(refused) == (403, "FORBIDDEN", "forbidden")
        assert client.delete(f"{API}/projects/{own}").status_code == 403
        assert client.get(f"{API}/robots/{robot['id']}").status_code == 403
        assert client.get(f"{API}/quotas").status_code == 403
        assert client.get(f"{API}/users/current").status_code == 412


def test_a_robot_of_the_system_makes_projects_and_their_robots(trial: Any) -> None:
    wish = {
        "name": f"maker-{trial.project()}",
        "level": "system",
        "duration": 30,
        "permissions": [
            {
                "kind": "system",
                "namespace": "/",
                "access": [
                    {"resource": "project", "action": "create"},
                    {"resource": "project", "action": "list"},
                ],
            },
            {
                "kind": "project",
                "namespace": "*",
                "access": [{"resource": "project", "action": "read"}],
            },
        ],
    }
    made = trial.admin.post(f"{API}/robots", json=wish).json()
    with trial.harbor.client(made["name"], made["secret"]) as client:
        name = f"{wish['name']}-own"
        assert client.post(f"{API}/projects", json={"project_name": name}).status_code == 201
        assert client.get(f"{API}/projects/{name}").json()["name"] == name
        assert client.delete(f"{API}/projects/{name}").status_code == 403


def test_nobody_and_a_wrong_password_are_refused(trial: Any, error_of: ErrorOf) -> None:
    with trial.harbor.client("admin", "wrong") as client:
        wrong = client.get(f"{API}/projects")
        assert error_of(wrong) == (401, "UNAUTHORIZED", "unauthorized")
        nobody = client.get(f"{API}/users/current", auth=None)
        assert nobody.status_code == 401
        challenge = client.get("/v2/", auth=None).headers["www-authenticate"]
    assert challenge.startswith(f'Bearer realm="{trial.harbor.url}/service/token"')


def test_a_browsers_session_changes_nothing_without_its_token(
    trial: Any, error_of: ErrorOf
) -> None:
    answer = trial.admin.post(
        f"{API}/projects", json={"project_name": "forged"}, headers={"Cookie": "sid=abc"}
    )
    assert error_of(answer) == (403, "FORBIDDEN", "CSRF token invalid")
    assert trial.admin.get(f"{API}/projects/forged").status_code == 404


def test_health_asks_the_registry_and_the_system_tells_its_version(trial: Any) -> None:
    health = trial.admin.get(f"{API}/health", auth=None).json()
    assert health["status"] == "healthy"
    assert {"name": "registry", "status": "healthy"} in health["components"]
    info = trial.admin.get(f"{API}/systeminfo").json()
    assert info["harbor_version"].startswith("v2.")
    assert "external_url" not in trial.admin.get(f"{API}/systeminfo", auth=None).json()
    assert trial.admin.get(f"{API}/users/current").json()["sysadmin_flag"] is True


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/audit-logs"),
        ("POST", f"{API}/system/gc/schedule"),
        ("GET", f"{API}/projects/1/members"),
        ("POST", "/c/login"),
        ("GET", "/v2/library/app/referrers/sha256:0"),
    ],
)
def test_what_is_not_simulated_says_so(
    trial: Any, error_of: ErrorOf, method: str, path: str
) -> None:
    if "referrers" in path:
        trial.admin.post(f"{API}/projects", json={"project_name": "library"})
    status, code, message = error_of(trial.admin.request(method, path))
    assert (status, code) == (501, "NOT_IMPLEMENTED")
    assert message.endswith("is not simulated by the lab's Harbor")


def test_the_readme_names_every_path_that_is_simulated() -> None:
    told = set(re.findall(r"`(?:[A-Z, ]+ )?(/[^`]*)`", README.read_text()))
    assert {route.path for route in ROUTES} - told == set()
