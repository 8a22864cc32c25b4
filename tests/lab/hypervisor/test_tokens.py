"""API tokens that are made, given rights and removed through the API."""

from __future__ import annotations

import time
from typing import Any

import pytest

ADMINISTRATOR = "admin@pve!operator"
TOKENS = "/access/users/infraflows@pve/token"


def administer(cluster: Any, method: str, path: str, /, **parameters: Any) -> Any:
    return cluster.do(method, path, token=ADMINISTRATOR, **parameters)


def make(cluster: Any, name: str, **details: Any) -> str:
    return str(administer(cluster, "POST", f"{TOKENS}/{name}", **details)["value"])


def test_a_secret_is_told_once_and_works_at_once(cluster: Any) -> None:
    made = administer(cluster, "POST", f"{TOKENS}/fresh", comment="c", expire=0)

    assert made["full-tokenid"] == "infraflows@pve!fresh"
    assert made["info"] == {"comment": "c", "expire": 0, "privsep": 1}
    who = {"token": "infraflows@pve!fresh", "secret": made["value"]}
    assert cluster.get("/version", **who)["release"] == "8.4"
    shown = administer(cluster, "GET", f"{TOKENS}/fresh")
    assert made["value"] not in str(shown)


def test_a_new_token_may_do_nothing_until_it_is_given_rights(cluster: Any) -> None:
    who = {"token": "infraflows@pve!fresh", "secret": make(cluster, "fresh")}
    assert cluster.refused("GET", "/cluster/status", **who)[0] == 403

    administer(
        cluster,
        "PUT",
        "/access/acl",
        path="/",
        roles="PVEAuditor",
        tokens="infraflows@pve!fresh",
    )
    assert cluster.get("/cluster/status", **who)

    administer(
        cluster,
        "PUT",
        "/access/acl",
        path="/",
        roles="PVEAuditor",
        tokens="infraflows@pve!fresh",
        delete=1,
    )
    assert cluster.refused("GET", "/cluster/status", **who)[0] == 403


def test_a_token_that_was_removed_is_refused_and_its_entries_are_gone(cluster: Any) -> None:
    secret = make(cluster, "fresh")
    administer(
        cluster,
        "PUT",
        "/access/acl",
        path="/vms",
        roles="PVEVMUser",
        tokens="infraflows@pve!fresh",
    )

    administer(cluster, "DELETE", f"{TOKENS}/fresh")

    answer = cluster.refused("GET", "/version", token="infraflows@pve!fresh", secret=secret)
    assert answer == (401, "no such token 'fresh' for user 'infraflows@pve'")
    entries = administer(cluster, "GET", "/access/acl")
    assert all(entry["ugid"] != "infraflows@pve!fresh" for entry in entries)
    again = cluster.refused("DELETE", f"{TOKENS}/fresh", token=ADMINISTRATOR)
    assert again == (500, "no such token 'fresh' for user 'infraflows@pve'")


def test_a_token_that_was_removed_stays_removed_after_a_restart(cluster: Any) -> None:
    administer(cluster, "DELETE", f"{TOKENS}/worker")

    cluster.stop()
    cluster.start()

    assert cluster.refused("GET", "/version")[0] == 401
    assert administer(cluster, "GET", "/version")


def test_an_expired_token_is_refused(cluster: Any) -> None:
    secret = make(cluster, "short", expire=int(time.time()) - 10)

    answer = cluster.refused("GET", "/version", token="infraflows@pve!short", secret=secret)
    assert answer[0] == 401


def test_a_name_that_is_taken_is_refused(cluster: Any) -> None:
    answer = cluster.send("POST", f"{TOKENS}/worker", token=ADMINISTRATOR)

    assert answer.status_code == 400
    assert answer.json()["errors"] == {"tokenid": "Token already exists."}


@pytest.mark.parametrize(
    ("method", "path", "parameters"),
    [
        ("GET", TOKENS, {}),
        ("POST", f"{TOKENS}/mine", {}),
        ("DELETE", f"{TOKENS}/worker", {}),
        ("PUT", "/access/acl", {"path": "/", "roles": "Administrator", "tokens": "a@pve!b"}),
    ],
)
def test_a_token_cannot_raise_itself(
    cluster: Any, method: str, path: str, parameters: dict[str, str]
) -> None:
    assert cluster.refused(method, path, **parameters)[0] == 403


def test_what_is_not_simulated_is_named(cluster: Any) -> None:
    status, words = cluster.refused("POST", f"{TOKENS}/all", token=ADMINISTRATOR, privsep=0)

    assert status == 501
    assert "privsep" in words
