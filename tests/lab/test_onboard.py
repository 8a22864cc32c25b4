"""A team's push becomes an application that answers, and goes again without a trace.

One application of its own lives through the module: pushed, onboarded by its signed webhook, built
and deployed, changed, disturbed, rolled back and taken off. Everything is done the way a team and
an operator do it, on the demo's cluster, and looked at with the administrators' eyes.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from domain.errors import LifecycleError
from domain.manifest_order import ObjectKey
from lab.app_holdings import cluster_api
from lab.driver import Driver, RunView
from lab.layout import DEMO_CLUSTER, ENVIRONMENT, GITOPS_REPOSITORY
from lab.onboarding_demo import APP_FILE, BRANCH, GROUP, demo_files
from lab.onboarding_trial import (
    BUILT,
    CONNECT,
    DEPLOY,
    OFFBOARD,
    ONBOARD,
    ROLLBACK,
    RUN_SECONDS,
    STAGES,
    TAG_LENGTH,
    Trial,
)
from lab.secret_search import Wanted, in_database, in_files, in_repository, in_text
from lab.services.namespace import inside

pytestmark = pytest.mark.lab

APP = "books"
GATE_SECONDS = 120.0
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Onboarded:
    """How the application came to be."""

    trial: Trial
    before: list[str]
    """What the administrators saw before the project was connected."""
    commit: str
    run: RunView
    deploys: list[str]
    early: list[str]
    """Runs that were there before the push of its `app.yaml`."""


@dataclass(frozen=True)
class Changed:
    """The application's second version, with more replicas in staging."""

    run: RunView
    plan: list[dict[str, str]]
    first: str
    """The tag that was served before."""
    second: str


@pytest.fixture(scope="module")
def trial(driver: Driver, request: pytest.FixtureRequest) -> Trial:
    """A project of its own for the application, on the demo's cluster."""
    if not driver.inventory().of(DEMO_CLUSTER).machines:
        request.getfixturevalue("demo")
    return Trial(driver, APP)


@pytest.fixture(scope="module")
def books(trial: Trial) -> Onboarded:
    """The application after the push of its `app.yaml`, with its first image deployed."""
    runs, deploys = trial.runs(ONBOARD), trial.runs(DEPLOY)
    files = demo_files(APP)
    trial.push({k: v for k, v in files.items() if k != APP_FILE}, "feat: a book shop")
    before = trial.lines()
    trial.driver.complete(trial.start(CONNECT, project=f"{GROUP}/{APP}"))
    early = trial.runs(ONBOARD)[len(runs) :]
    commit = trial.push(files, "feat: run on the platform")
    run = trial.onboarded(len(runs))
    return Onboarded(trial, before, commit, run, trial.deployed(len(deploys)), early)


# --- onboarding ------------------------------------------------------------------------------


def test_a_pushed_app_yaml_is_onboarded_by_its_signed_webhook(
    trial: Trial, books: Onboarded
) -> None:
    delivery = trial.push_event(books.commit)
    assert delivery["request_headers"]["webhook-signature"].startswith("v1,")
    assert int(delivery["response_status"]) in (200, 202)
    assert books.early == []
    assert books.run.name == "Completed"
    assert set(books.run.phases.values()) == {"done"}
    given = trial.parameters(books.run.run_id)
    assert (given["project_id"], given["commit"]) == (trial.project_id, books.commit)
    assert given["app"]["repository"] == f"{GROUP}/{APP}"


def test_the_run_shows_each_step_with_its_time(trial: Trial, books: Onboarded) -> None:
    steps = trial.driver.artifacts(books.run.run_id)[f"app-{APP}-steps"]
    assert {row["state"] for row in steps} == {"✔ done"}
    assert all(float(row["seconds"]) > 0 for row in steps)
    assert {row["system"] for row in steps} >= {
        "gitlab", "harbor", "openbao", "postgresql", "kubernetes", "git", "dns", "argocd",
    }  # fmt: skip


def test_every_stage_is_synced_in_argo_cd(trial: Trial, books: Onboarded) -> None:
    found = trial.argocd_applications()
    assert sorted(found) == sorted(f"{APP}-{stage}" for stage in STAGES)
    for name, application in found.items():
        assert application["status"]["sync"]["status"] == "Synced", name
    for stage in BUILT:
        assert found[f"{APP}-{stage}"]["status"]["health"]["status"] == "Healthy"
        assert found[f"{APP}-{stage}"]["spec"]["syncPolicy"]["automated"]["prune"]
    assert "automated" not in found[f"{APP}-production"]["spec"].get("syncPolicy", {})


def test_the_commit_is_told_what_was_made_and_where_it_answers(
    trial: Trial, books: Onboarded
) -> None:
    notes = trial.gitlab("GET", f"repository/commits/{books.commit}/comments")
    (text,) = [note["note"] for note in notes if f"{APP}: onboarded" in note["note"]]
    assert "| System | What was made |" in text
    assert re.search(r"\| kubernetes \| \d+ created \|", text)
    for stage, host in trial.hosts.items():
        assert re.search(rf"^- {stage}\b.* https://{host}/$", text, re.MULTILINE)
    assert f"{trial.layout.gitlab_url}/{GROUP}/{APP}" in text
    assert f"/flow-runs/flow-run/{books.run.run_id}" in text


def test_the_pipelines_image_is_deployed_and_answers_over_https(
    trial: Trial, books: Onboarded
) -> None:
    stages = {trial.parameters(run)["stage"] for run in books.deploys}
    assert stages == set(BUILT)
    (tag,) = {trial.parameters(run)["tag"] for run in books.deploys}
    assert tag == trial.head_tag()
    for stage in BUILT:
        answer = trial.serves(stage)
        assert (answer.status, answer.version) == (200, tag)
        assert trial.hosts[stage] in answer.certificate_names
    # Nobody pressed the button of the production job.
    assert trial.serves("production").version == "unbuilt"


def test_a_resent_webhook_starts_nothing_new(trial: Trial, books: Onboarded) -> None:
    delivery = trial.push_event(books.commit)
    runs = {name: trial.runs(name) for name in (ONBOARD, DEPLOY)}
    hook, _ = trial.deliveries()
    answered = trial.gitlab("POST", f"hooks/{hook}/events/{delivery['id']}/resend")
    assert answered["response_status"] == 200
    again = trial.deliveries()[1][0]
    key = "webhook-id"
    assert again["request_headers"][key] == delivery["request_headers"][key]
    assert "known already" in again["response_body"]
    time.sleep(3)  # the gateway acts within one
    assert {name: trial.runs(name) for name in runs} == runs


# --- merge requests --------------------------------------------------------------------------


@pytest.fixture
def topic(trial: Trial, books: Onboarded) -> Iterator[str]:
    yield "more-books"
    trial.gitlab("DELETE", "repository/branches/more-books")


def commit_to(trial: Trial, branch: str, text: str, **start: str) -> None:
    action = {"action": "update", "file_path": APP_FILE, "content": text}
    message = "feat: change what the book shop needs"
    body = {"branch": branch, "commit_message": message, "actions": [action], **start}
    trial.gitlab("POST", "repository/commits", body)


def told(trial: Trial, iid: int, words: str) -> dict[str, Any]:
    """Wait until the one comment on a merge request says something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = trial.gitlab("GET", f"merge_requests/{iid}/notes?per_page=100")
        notes = [note for note in found if not note["system"]]
        assert len(notes) <= 1
        if notes and words in notes[0]["body"]:
            return dict(notes[0])
        assert time.monotonic() < deadline, f"{words!r} is not in {[n['body'] for n in notes]}"
        time.sleep(0.2)


def test_a_bad_app_yaml_in_a_merge_request_has_one_comment_that_follows_it(
    trial: Trial, books: Onboarded, topic: str
) -> None:
    runs = trial.runs(ONBOARD)
    good = demo_files(APP)[APP_FILE]
    bad = good.replace("port: 8000", "port: 80").replace("replicas: 2}", "replicas: none}", 1)
    commit_to(trial, topic, bad, start_branch=BRANCH)
    request = {"source_branch": topic, "target_branch": BRANCH, "title": "feat: more books"}
    iid = trial.gitlab("POST", "merge_requests", request)["iid"]
    note = told(trial, iid, "2 problems")
    for word, name in (("port: 80", "port"), ("replicas: none", "environments.staging.replicas")):
        line = next(n for n, text in enumerate(bad.splitlines(), 1) if word in text)
        assert re.search(rf"\| \[{line}\]\(\S+#L{line}\) \| {re.escape(name)} \|", note["body"])

    commit_to(trial, topic, good.replace("port: 8000", "port: 80"))
    assert told(trial, iid, "1 problem.")["id"] == note["id"]
    commit_to(trial, topic, good.replace("connections: 20", "connections: 10"))
    assert told(trial, iid, "is in order")["id"] == note["id"]
    assert trial.runs(ONBOARD) == runs
    trial.gitlab("PUT", f"merge_requests/{iid}", {"state_event": "close"})


# --- day 2 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(trial: Trial, books: Onboarded) -> Changed:
    """Push a second version, which wants more replicas in staging, and see it deployed."""
    first, runs, deploys = trial.serves("staging").version, trial.runs(ONBOARD), trial.runs(DEPLOY)
    content = demo_files(APP)
    app = content[APP_FILE].replace("staging: {replicas: 2}", "staging: {replicas: 3}")
    shop = content["shop.py"].replace("Hello from the shop", "Welcome to the book shop")
    assert (app, shop) != (content[APP_FILE], content["shop.py"])
    commit = trial.push({APP_FILE: app, "shop.py": shop}, "feat: a warmer welcome")
    run = trial.onboarded(len(runs))
    trial.deployed(len(deploys))
    plan = trial.driver.artifacts(run.run_id)[f"app-{APP}-plan"]
    return Changed(run, plan, first, commit[:TAG_LENGTH])


def test_a_changed_app_yaml_changes_what_it_is_about_and_nothing_else(
    trial: Trial, books: Onboarded, changed: Changed
) -> None:
    assert {(row["act"], row["thing"], row["why"]) for row in changed.plan} == {
        ("~ change", f"ResourceQuota {APP}-staging/app in {DEMO_CLUSTER}", "spec"),
        ("~ change", f"file apps/{APP}/overlays/staging/kustomization.yaml", "spec"),
    }
    assert trial.object("apps/v1", "Deployment", "staging", APP)["spec"]["replicas"] == 3


def test_a_new_version_is_built_and_deployed_by_the_push(
    trial: Trial, books: Onboarded, changed: Changed
) -> None:
    assert changed.second != changed.first
    assert {stage: trial.serves(stage).version for stage in BUILT} == dict.fromkeys(
        BUILT, changed.second
    )


def test_what_somebody_changed_by_hand_is_shown_as_drift_and_put_right(
    trial: Trial, books: Onboarded, changed: Changed
) -> None:
    key = ObjectKey("v1", "ResourceQuota", f"{APP}-staging", "app")
    with inside(trial.layout.namespace_path), cluster_api(trial.layout) as api:
        before = api.get(key)["spec"]["hard"]
        disturbed = api.merge(key, {"spec": {"hard": {"pods": "999"}}}, "kubectl-edit")
        assert disturbed["spec"]["hard"] != before
    run = trial.driver.start_with(ONBOARD, trial.parameters(changed.run.run_id))
    trial.driver.complete(run, timeout_seconds=RUN_SECONDS)
    (row,) = trial.driver.artifacts(run)[f"app-{APP}-plan"]
    assert (row["why"], row["step"], row["act"]) == ("drift", "kubernetes-tenancy", "~ change")
    assert row["thing"] == f"ResourceQuota {APP}-staging/app in {DEMO_CLUSTER}"
    assert trial.object("v1", "ResourceQuota", "staging", "app")["spec"]["hard"] == before


def test_a_roll_back_proves_that_the_previous_version_serves_again(
    trial: Trial, books: Onboarded, changed: Changed
) -> None:
    run = trial.driver.complete(trial.start(ROLLBACK, name=APP, stage="staging"))
    assert set(run.phases.values()) == {"done"}
    checks = trial.driver.artifacts(run.run_id)[f"app-{APP}-checks"]
    assert {row["result"] for row in checks} == {"✔ passed"}
    assert any(f"version {changed.first}" in row["detail"] for row in checks)
    assert trial.serves("staging").version == changed.first
    assert trial.serves("development").version == changed.second


# --- secrets ---------------------------------------------------------------------------------


def test_no_secret_of_the_application_is_in_prefect_a_log_or_git(
    trial: Trial, books: Onboarded, changed: Changed
) -> None:
    found = trial.secrets()
    assert len(found) == 10
    assert all(len(value) >= 16 for value in found.values())
    wanted, layout = Wanted(found), trial.layout
    assert in_database(wanted, layout) == set()
    places = [layout.log_directory, layout.prefect_directory, layout.ledger_directory]
    assert in_files(wanted, places) == set()
    assert in_repository(wanted, layout.git_directory / GITOPS_REPOSITORY) == set()
    for repository in (layout.gitlab_directory / "repositories").glob("*.git"):
        assert in_repository(wanted, repository) == set()
    shown = [
        json.dumps(trial.driver.artifacts(run)).encode()
        for name in (ONBOARD, DEPLOY, ROLLBACK)
        for run in trial.runs(name)
    ]
    assert any(f"apps/{APP}/harbor-push".encode() in text for text in shown)
    assert in_text(wanted, "artifacts", shown) == set()


def test_the_search_is_able_to_find_the_applications_secrets(
    trial: Trial, books: Onboarded
) -> None:
    wanted = Wanted(trial.secrets(), has_forms=False)
    # GitLab itself has to know what it signs with, and what it gives to pipelines.
    found = {find.secret for find in in_files(wanted, [trial.layout.gitlab_directory])}
    assert f"apps/{APP}/harbor-push password" in found
    assert f"webhooks/{ENVIRONMENT}/gitlab/{trial.project_id} signing_key" in found


# --- off-boarding ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def removed(trial: Trial, books: Onboarded, changed: Changed) -> RunView:
    """Take the application off, by the word of a person."""
    run = trial.start(OFFBOARD, name=APP)
    paused = trial.driver.wait_until(run, lambda v: v.state == "PAUSED", "the gate", GATE_SECONDS)
    assert paused.phases["remove"] == "waiting"
    assert trial.serves("development").status == 200
    trial.driver.command("infraflows", "approve", run, "--by", "Ada")
    return trial.driver.complete(run, timeout_seconds=RUN_SECONDS)


def test_nothing_is_left_of_an_application_that_was_taken_off(
    trial: Trial, books: Onboarded, removed: RunView
) -> None:
    assert set(removed.phases.values()) == {"done"}
    # Their own file is the team's; what asks Kubernetes about logins is every application's.
    kept = (f"GitLab: file {APP_FILE}", "Kubernetes: namespace infraflows-system")
    after = [line for line in trial.lines() if line not in kept]
    assert after == [line for line in books.before if line not in kept]
    for stage in STAGES:
        with pytest.raises(LifecycleError, match="certificate"):
            trial.serves(stage)


def test_the_removal_shows_every_thing_before_and_after(
    trial: Trial, books: Onboarded, removed: RunView
) -> None:
    rows = trial.driver.artifacts(removed.run_id)[f"app-{APP}-inventory"]
    assert len(rows) > 50
    assert {row["result"] for row in rows} == {"- gone"}


def test_a_removed_application_stays_away_and_a_second_removal_changes_nothing(
    trial: Trial, books: Onboarded, removed: RunView
) -> None:
    runs = trial.runs(ONBOARD)
    again = trial.driver.complete(trial.start(OFFBOARD, name=APP))
    assert again.phases["remove"] == "skipped"
    assert "Nothing of it is there." in trial.driver.artifacts(again.run_id)[f"app-{APP}-report"]
    assert trial.runs(ONBOARD) == runs
