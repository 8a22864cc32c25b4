"""The OpenTofu state backend keeps every version and lets one caller write at a time."""

from __future__ import annotations

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

LOCK = {"ID": "11111111-aaaa", "Operation": "OperationTypeApply", "Who": "worker@one"}
OTHER = {"ID": "22222222-bbbb", "Operation": "OperationTypePlan", "Who": "worker@two"}


@pytest.fixture
def state(site: Any) -> Any:
    with httpx.Client(base_url=f"{site.url}/state", auth=site.login, trust_env=False) as client:
        yield client


def test_a_state_that_was_never_written_is_not_found(state: httpx.Client) -> None:
    assert state.get("/lab-demo").status_code == 404


def test_what_was_written_is_read_back_with_its_checksum(state: httpx.Client) -> None:
    body = json.dumps({"serial": 1}).encode()
    assert state.post("/lab-demo", content=body).status_code == 200
    reply = state.get("/lab-demo")
    assert reply.content == body
    digest = base64.b64encode(hashlib.md5(body).digest()).decode()  # noqa: S324 - the protocol's
    assert reply.headers["content-md5"] == digest


def test_every_version_is_kept_and_the_newest_is_served(state: httpx.Client, site: Any) -> None:
    for serial in range(3):
        state.post("/lab-demo", content=json.dumps({"serial": serial}))
    assert state.get("/lab-demo").json() == {"serial": 2}
    versions = sorted((site.directory / "state/lab-demo/versions").iterdir())
    assert [json.loads(version.read_text())["serial"] for version in versions] == [0, 1, 2]


def test_a_held_lock_is_refused_with_the_holders_information(state: httpx.Client) -> None:
    assert state.request("LOCK", "/lab-demo", json=LOCK).status_code == 200
    refused = state.request("LOCK", "/lab-demo", json=OTHER)
    assert refused.status_code == 423
    assert refused.json() == LOCK


def test_a_repeated_lock_of_the_same_owner_succeeds(state: httpx.Client) -> None:
    state.request("LOCK", "/lab-demo", json=LOCK)
    assert state.request("LOCK", "/lab-demo", json=LOCK).status_code == 200


def test_of_many_who_lock_at_once_exactly_one_succeeds(state: httpx.Client) -> None:
    def lock(number: int) -> int:
        return state.request("LOCK", "/lab-demo", json={"ID": f"id-{number}"}).status_code

    with ThreadPoolExecutor(max_workers=12) as pool:
        codes = list(pool.map(lock, range(24)))
    assert codes.count(200) == 1
    assert codes.count(423) == 23


@pytest.mark.parametrize("lock_id", [None, OTHER["ID"]])
def test_writing_under_anothers_lock_is_refused(state: httpx.Client, lock_id: str | None) -> None:
    state.request("LOCK", "/lab-demo", json=LOCK)
    query = {"ID": lock_id} if lock_id else {}
    assert state.post("/lab-demo", params=query, content=b"{}").status_code == 423
    assert state.delete("/lab-demo", params=query).status_code == 423
    assert state.get("/lab-demo").status_code == 404


def test_the_locks_owner_may_write(state: httpx.Client) -> None:
    state.request("LOCK", "/lab-demo", json=LOCK)
    written = state.post("/lab-demo", params={"ID": LOCK["ID"]}, content=b'{"serial": 1}')
    assert written.status_code == 200


def test_a_foreign_unlock_is_refused_and_an_own_one_frees(state: httpx.Client) -> None:
    state.request("LOCK", "/lab-demo", json=LOCK)
    assert state.request("UNLOCK", "/lab-demo", json=OTHER).status_code == 423
    assert state.request("UNLOCK", "/lab-demo", json=LOCK).status_code == 200
    assert state.request("LOCK", "/lab-demo", json=OTHER).status_code == 200


def test_an_unlock_without_a_body_breaks_the_lock_by_force(state: httpx.Client) -> None:
    state.request("LOCK", "/lab-demo", json=LOCK)
    assert state.request("UNLOCK", "/lab-demo").status_code == 200
    assert state.request("LOCK", "/lab-demo", json=OTHER).status_code == 200


def test_a_deleted_state_is_gone_but_its_versions_stay(state: httpx.Client, site: Any) -> None:
    state.post("/lab-demo", content=b'{"serial": 7}')
    assert state.delete("/lab-demo").status_code == 200
    assert state.delete("/lab-demo").status_code == 200
    assert state.get("/lab-demo").status_code == 404
    versions = sorted((site.directory / "state/lab-demo/versions").glob("*.json"))
    assert [json.loads(version.read_text()) for version in versions] == [{"serial": 7}]


@pytest.mark.parametrize(
    ("content", "headers"),
    [(b"not json", {}), (b"{}", {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="})],
    ids=["not a state", "cut on its way"],
)
def test_a_broken_body_is_refused_and_nothing_is_kept(
    state: httpx.Client, content: bytes, headers: dict[str, str]
) -> None:
    assert state.post("/lab-demo", content=content, headers=headers).status_code == 400
    assert state.get("/lab-demo").status_code == 404


@pytest.mark.parametrize("name", ["..", "%2e%2e", ".hidden", "a b"])
def test_a_name_that_could_leave_the_directory_is_refused(state: httpx.Client, name: str) -> None:
    assert state.post(f"/{name}", content=b"{}").status_code in (400, 404, 501)


@pytest.mark.parametrize(
    "login", [None, ("infraflows", "wrong"), ("other", "a-password-of-the-test")]
)
def test_without_the_right_login_nothing_is_said(site: Any, login: Any) -> None:
    reply = httpx.get(f"{site.url}/state/lab-demo", auth=login, trust_env=False)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Basic")


def test_files_of_the_states_are_for_root_alone(state: httpx.Client, site: Any) -> None:
    state.post("/lab-demo", content=b"{}")
    version = next((site.directory / "state/lab-demo/versions").iterdir())
    assert version.stat().st_mode & 0o777 == 0o600


def test_what_is_not_simulated_says_its_name(state: httpx.Client, site: Any) -> None:
    patched = state.patch("/lab-demo")
    assert patched.status_code == 501
    assert "PATCH /state/lab-demo" in patched.text
    elsewhere = httpx.get(f"{site.url}/api/v4/projects", trust_env=False)
    assert elsewhere.status_code == 501
    assert "/api/v4/projects" in elsewhere.text
