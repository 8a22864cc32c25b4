"""Real secrets of two applications, rotated by the lab's worker and tried from outside afterwards.

An AppRole's secret id, a periodic token and a PostgreSQL user for each: what was in use before is
refused by the system itself, what is in use now is accepted, and neither stands anywhere in
Prefect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from lab import rotation_demo
from lab.driver import Driver, RunView
from lab.layout import ENVIRONMENT, GATEWAY, POSTGRESQL_PORT, Layout
from lab.secret_search import Wanted, in_database, in_text
from lab.services.https_probe import request
from lab.services.openbao_setup import APPS_APPROLE_MOUNT, KV_MOUNT, root_client
from lab.services.postgresql import APPS_DATABASE

pytestmark = pytest.mark.lab

NIGHTLY, ONE, LEAK = (f"rotate-secrets/{name}" for name in ("nightly", "one", "leak"))
RUN_SECONDS = 300.0
SECRET_PARTS = ("secret_id", "token", "password")
Values = dict[str, dict[str, str]]


def values_now(layout: Layout) -> Values:
    bao = root_client(layout)
    found: Values = {}
    for path in rotation_demo.paths():
        found[path] = bao.call("GET", f"{KV_MOUNT}/data/{path}")["data"]["data"]
    return found


def is_accepted(layout: Layout, path: str, values: dict[str, str]) -> bool:
    """Use a value as its application would, with no other right."""
    if "secret_id" in values:
        url = f"{layout.openbao_url}/v1/auth/{APPS_APPROLE_MOUNT}/login"
        body = {"role_id": values["role_id"], "secret_id": values["secret_id"]}
        reply = request(layout, "POST", url, json=body)
        assert reply.status_code in (200, 400), reply.text
        return reply.status_code == 200
    if "token" in values:
        url = f"{layout.openbao_url}/v1/auth/token/lookup-self"
        reply = request(layout, "GET", url, headers={"X-Vault-Token": values["token"]})
        assert reply.status_code in (200, 403), reply.text
        return reply.status_code == 200
    try:
        psycopg.connect(
            host=GATEWAY,
            port=POSTGRESQL_PORT,
            dbname=APPS_DATABASE,
            user=values["username"],
            password=values["password"],
            connect_timeout=20,
        ).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" not in str(error):
            raise
        return False
    return True


@dataclass
class Rotated:
    """The demo's secrets before and after a first nightly run."""

    driver: Driver
    run: RunView
    old: Values = field(repr=False)
    new: Values = field(repr=False)
    seen: set[str] = field(repr=False)
    """Every secret value that was ever in use."""

    def note(self, values: Values) -> Values:
        self.seen |= {v for each in values.values() for k, v in each.items() if k in SECRET_PARTS}
        return values


@pytest.fixture(scope="module")
def rotated(driver: Driver) -> Rotated:
    """Seed the demo's secrets and let the nightly run rotate them."""
    layout = driver.layout
    bao = root_client(layout)
    for path in rotation_demo.paths():  # of an earlier session whose lab was kept
        bao.call("DELETE", f"{KV_MOUNT}/metadata/{path}")
    records = bao.call("LIST", f"{KV_MOUNT}/metadata/rotation/{ENVIRONMENT}", absent_is_none=True)
    for name in records["data"]["keys"] if records else ():
        bao.call("DELETE", f"{KV_MOUNT}/metadata/rotation/{ENVIRONMENT}/{name}")
    rotation_demo.seed(layout)
    old = values_now(layout)
    run = driver.complete(driver.start_with(NIGHTLY, {"environment": ENVIRONMENT}))
    made = Rotated(driver, run, old, values_now(layout), set())
    made.note(old)
    made.note(made.new)
    return made


def test_every_secret_that_was_due_is_rotated(rotated: Rotated) -> None:
    table = rotated.driver.artifacts(rotated.run.run_id)[f"{ENVIRONMENT}-rotation-secrets"]
    assert {row["path"]: row["state"] for row in table} == dict.fromkeys(
        rotation_demo.paths(), "✔ rotated"
    )
    for path in rotation_demo.paths():
        differing = {
            part
            for part in SECRET_PARTS
            if rotated.old[path].get(part) != rotated.new[path].get(part)
        }
        assert len(differing) == 1, path


@pytest.mark.parametrize("path", rotation_demo.paths())
def test_the_old_value_is_refused_and_the_new_one_accepted(
    path: str, rotated: Rotated, inside_lab: Layout
) -> None:
    assert not is_accepted(inside_lab, path, rotated.old[path])
    assert is_accepted(inside_lab, path, rotated.new[path])


def test_the_ledger_holds_a_signed_proof_of_each_death_and_no_value(rotated: Rotated) -> None:
    layout = rotated.driver.layout
    ledger = layout.ledger_directory / "rotation.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    mine = [line for line in lines if line["run_id"] == rotated.run.run_id]
    proofs = {line["target"]: line["details"] for line in mine if line["step"] == "prove dead"}
    assert set(proofs) == set(rotation_demo.paths())
    assert all(d["fingerprint"].startswith("vault:v") for d in proofs.values())
    said = rotated.driver.command("infraflows", "verify-ledger", str(ledger))
    assert "chain and signatures are right" in said
    assert not [value for value in rotated.seen if value in ledger.read_text()]


def test_the_records_hold_no_value_any_more(rotated: Rotated) -> None:
    bao = root_client(rotated.driver.layout)
    prefix = f"rotation/{ENVIRONMENT}"
    names = bao.call("LIST", f"{KV_MOUNT}/metadata/{prefix}")["data"]["keys"]
    assert len(names) == len(rotation_demo.paths())
    kept = [bao.call("GET", f"{KV_MOUNT}/data/{prefix}/{name}")["data"]["data"] for name in names]
    assert not [key for record in kept for key in record if key.startswith("value_")]


def test_a_second_night_finds_nothing_due_and_shows_it_in_the_terminal(rotated: Rotated) -> None:
    before = values_now(rotated.driver.layout)
    site = str(rotated.driver.layout.site_file)
    shown = rotated.driver.command("infraflows", "run", NIGHTLY, "--site", site, "--watch")
    assert "– skipped" in shown
    assert "nothing is due" in shown
    assert "apps/test/ci/database" in shown
    assert values_now(rotated.driver.layout) == before


def test_a_dry_run_after_a_leak_shows_what_it_reaches_and_touches_nothing(
    rotated: Rotated,
) -> None:
    driver = rotated.driver
    before = values_now(driver.layout)
    leak = {"kind": "path", "value": rotation_demo.path_of("shop", "token")}
    parameters = {"environment": ENVIRONMENT, "leak": leak, "dry_run": True}
    run = driver.complete(driver.start_with(LEAK, parameters))
    found = driver.artifacts(run.run_id)
    reached = {row["path"]: row["why"] for row in found[f"{ENVIRONMENT}-rotation-blast-radius"]}
    # The token opens all that its policy names: the leak is followed to its end.
    shop = {path for path in rotation_demo.paths() if "/shop/" in path}
    assert set(reached) == shop
    assert reached[leak["value"]].startswith("leaked")
    assert "readable" in reached[rotation_demo.path_of("shop", "database")]
    assert "data:image/svg+xml" in found[f"{ENVIRONMENT}-rotation-graph"]
    assert values_now(driver.layout) == before


def test_after_the_leak_of_a_prefix_all_of_it_is_rotated_and_nothing_else(
    rotated: Rotated, inside_lab: Layout
) -> None:
    driver = rotated.driver
    before = values_now(driver.layout)
    leak = {"kind": "prefix", "value": "apps/production"}
    driver.complete(driver.start_with(LEAK, {"environment": ENVIRONMENT, "leak": leak}))
    after = rotated.note(values_now(driver.layout))
    for path in rotation_demo.paths():
        is_hit = path.startswith("apps/production/")
        assert (after[path] != before[path]) is is_hit, path
        assert is_accepted(inside_lab, path, after[path])
        if is_hit:
            assert not is_accepted(inside_lab, path, before[path])


def test_a_leaked_token_is_revoked_and_what_it_could_read_is_rotated(
    rotated: Rotated, inside_lab: Layout
) -> None:
    driver = rotated.driver
    bao = root_client(driver.layout)
    stolen = bao.call("POST", "auth/token/create/apps-ci-b", {})["auth"]
    before = values_now(driver.layout)
    leak = {"kind": "accessor", "value": stolen["accessor"]}
    driver.complete(driver.start_with(LEAK, {"environment": ENVIRONMENT, "leak": leak}))
    after = rotated.note(values_now(driver.layout))
    assert not is_accepted(inside_lab, "stolen", {"token": stolen["client_token"]})
    rotated.seen.add(stolen["client_token"])
    assert {path for path in after if after[path] != before[path]} == {
        path for path in rotation_demo.paths() if "/ci/" in path
    }


def test_one_secret_is_rotated_by_hand(rotated: Rotated, inside_lab: Layout) -> None:
    driver = rotated.driver
    path = rotation_demo.path_of("ci", "database")
    before = values_now(driver.layout)
    driver.complete(driver.start_with(ONE, {"environment": ENVIRONMENT, "path": path}))
    after = rotated.note(values_now(driver.layout))
    assert {each for each in after if after[each] != before[each]} == {path}
    assert not is_accepted(inside_lab, path, before[path])
    assert is_accepted(inside_lab, path, after[path])


def everything_that_prefect_tells(driver: Driver) -> list[bytes]:
    """Return runs, task runs, artifacts, logs and events' sources as the API gives them."""
    texts: list[Any] = []
    for kind in ("flow_runs", "task_runs", "artifacts", "logs", "variables", "block_documents"):
        offset = 0
        while page := driver.api("POST", f"{kind}/filter", {"limit": 200, "offset": offset}):
            texts += page
            offset += len(page)
    return [json.dumps(text).encode() for text in texts]


def test_no_value_that_was_ever_in_use_stands_in_prefect(rotated: Rotated) -> None:
    assert len(rotated.seen) >= 16
    wanted = Wanted({f"value {n}": value for n, value in enumerate(sorted(rotated.seen))})
    told = everything_that_prefect_tells(rotated.driver)
    assert len(told) > 100
    path = rotation_demo.path_of("ci", "token")
    assert any(path.encode() in text for text in told)  # the search is able to find
    assert in_text(wanted, "Prefect's API", told) == set()
    assert in_database(wanted, rotated.driver.layout) == set()
