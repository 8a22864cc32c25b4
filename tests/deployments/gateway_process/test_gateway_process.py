"""From a push in GitLab to a run in Prefect, with kills, outages and what makes up for them."""

from __future__ import annotations

import base64
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import requests
import standardwebhooks

from flows.connect_project import connect_project, disconnect_project
from flows.reconcile_deliveries import reconcile_deliveries
from tasks.onboarding.webhooks import connect_project_webhook

from .conftest import APP, ENVIRONMENT, Site, Wait

CLIENTS = 12


def app(project: Any, port: int = 8080) -> str:
    return APP.format(name=f"app-{project.id}", port=port)


def hooks(project: Any) -> list[Any]:
    return list(project.hooks.list(get_all=True))


def test_a_push_in_gitlab_becomes_a_run_in_prefect(site: Site, wait_until: Wait) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, project.path_with_namespace)
    commit = site.commit(project, app(project))
    run = wait_until(lambda: site.run(project))
    assert run.parameters["project_id"] == project.id
    assert run.parameters["commit"] == commit
    assert run.parameters["app"]["repository"] == project.path_with_namespace
    assert run.tags == ["trigger:webhook"]


def test_connecting_finds_the_file_that_is_there_already(site: Site, wait_until: Wait) -> None:
    project = site.project()
    site.commit(project, app(project))
    connect_project(ENVIRONMENT, str(project.id))
    assert wait_until(lambda: site.run(project))


def test_connecting_again_changes_no_key_and_makes_no_second_hook(site: Site) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, project.path_with_namespace)
    before, key = hooks(project), site.key(project)
    connect_project(ENVIRONMENT, project.path_with_namespace)
    after = hooks(project)
    assert [hook.id for hook in after] == [hook.id for hook in before]
    assert site.key(project) == key


def test_a_newer_push_takes_the_place_of_a_run_that_has_not_begun(
    site: Site, wait_until: Wait
) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, project.path_with_namespace)
    site.commit(project, app(project, 8001))
    first = wait_until(lambda: site.run(project))
    site.commit(project, app(project, 8002))
    second = wait_until(lambda: site.run(project, 2))
    assert second.parameters["app"]["port"] == 8002
    assert wait_until(lambda: site.run(project).state.is_cancelled())
    assert first.id != second.id


def test_a_merge_request_has_one_comment_that_is_kept_up_to_date(
    site: Site, wait_until: Wait
) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, project.path_with_namespace)
    site.commit(project, "name: Shop\nport: eighty\n", "feature")
    request = project.mergerequests.create(
        {"source_branch": "feature", "target_branch": "main", "title": "Onboard"}
    )

    def notes() -> list[Any]:
        return [n for n in request.notes.list(get_all=True) if "infraflows" in n.body]

    (first,) = wait_until(notes)
    assert "cannot be used" in first.body
    assert f"/-/blob/{request.sha}/app.yaml#L1" in first.body
    site.commit(project, app(project), "feature")
    wait_until(lambda: any("is in order" in note.body for note in notes()))
    assert [note.id for note in notes()] == [first.id]
    assert site.run(project) is None


def test_an_invalid_file_on_the_branch_is_answered_on_its_commit(
    site: Site, wait_until: Wait
) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, project.path_with_namespace)
    commit = site.commit(project, "name: Shop\n")
    found = wait_until(lambda: project.commits.get(commit).comments.list(get_all=True))
    assert len(found) == 1
    assert "cannot be used" in found[0].note
    assert site.run(project) is None


# --- kills and outages ------------------------------------------------------------------------


def signed(key: str, body: bytes, message_id: str) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(key).sign(message_id, now, body.decode()),
    }


def test_what_was_answered_2xx_is_there_after_kill_9(site: Site) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, str(project.id))
    key, acknowledged = site.key(project), set()
    event = {
        "object_kind": "push",
        "ref": "refs/heads/other",
        "before": "1" * 40,
        "after": "2" * 40,
        "project_id": project.id,
        "project": {"id": project.id, "default_branch": "main"},
    }
    for _ in range(2):
        ends = threading.Event()

        def send(ends: threading.Event = ends) -> None:
            with site.gateway.client(timeout=5) as client:
                while not ends.is_set():
                    message_id = secrets.token_hex(12)
                    body = json.dumps({**event, "note": message_id}).encode()
                    try:
                        reply = client.post(
                            "/gitlab", content=body, headers=signed(key, body, message_id)
                        )
                    except httpx.HTTPError:
                        return
                    if reply.status_code == 200:
                        acknowledged.add(f"id:{message_id}")
                    elif reply.status_code == 429:
                        time.sleep(0.2)

        threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        site.gateway.kill()
        ends.set()
        for thread in threads:
            thread.join()
        file = site.gateway.directory / "store" / "deliveries.db"
        with sqlite3.connect(file) as database:
            stored = {row[0] for row in database.execute("SELECT delivery_key FROM deliveries")}
        assert acknowledged <= stored
        site.gateway.start()
    assert len(acknowledged) > 100


def test_a_push_in_the_moment_of_a_kill_leads_to_one_run(site: Site, wait_until: Wait) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, str(project.id))
    site.commit(project, app(project))
    wait_until(lambda: site.run(project))
    site.commit(project, app(project, 8001))
    site.gateway.kill()
    # Stored or not, acted on or not: nobody knows.
    site.gateway.start()
    reconcile_deliveries(ENVIRONMENT)
    run = wait_until(lambda: site.run(project, 2))
    assert run.parameters["app"]["port"] == 8001
    assert site.run(project, 3) is None


def test_after_an_outage_reconciling_mends_the_hook_and_makes_up_for_what_was_lost(
    site: Site, wait_until: Wait
) -> None:
    project, asking = site.project(), site.project()
    for each in (project, asking):
        connect_project(ENVIRONMENT, str(each.id))
    site.gateway.stop()
    for port in range(8001, 8007):
        site.commit(project, app(project, port))
    site.commit(asking, "name: Shop\n", "feature")
    request = asking.mergerequests.create(
        {"source_branch": "feature", "target_branch": "main", "title": "Onboard"}
    )
    wait_until(lambda: hooks(project)[0].alert_status != "executable")
    site.gateway.start()
    reconcile_deliveries(ENVIRONMENT)
    assert hooks(project)[0].alert_status == "executable"
    run = wait_until(lambda: site.run(project))
    assert run.parameters["app"]["port"] == 8006
    wait_until(lambda: [n for n in request.notes.list(get_all=True) if "cannot be" in n.body])


PIPELINE = """\
deploy:
  script: [echo deployed]
  environment: {name: staging}
"""


def test_what_was_never_sent_to_a_disabled_hook_is_made_up_for(
    site: Site, wait_until: Wait
) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, str(project.id))
    site.commit(project, app(project))
    assert wait_until(lambda: site.run(project))
    site.gateway.stop()
    for port in range(8001, 8006):
        site.commit(project, app(project, port))
    wait_until(lambda: hooks(project)[0].alert_status != "executable")
    request = _request_with_invalid_file(site, project)
    body = {"branch": "main", "content": PIPELINE, "commit_message": "pipeline"}
    project.files.create({"file_path": ".gitlab-ci.yml", **body})
    deployed = wait_until(lambda: project.deployments.list(status="success"))
    site.gateway.start()
    reconcile_deliveries(ENVIRONMENT)
    run = wait_until(lambda: site.run_of(f"deploy/{project.id}/staging"))
    assert run.parameters["tag"] == deployed[0].sha[:8]
    assert run.parameters["name"] == f"app-{project.id}"
    wait_until(lambda: [n for n in request.notes.list(get_all=True) if "cannot be" in n.body])
    reconcile_deliveries(ENVIRONMENT)
    assert site.run_of(f"deploy/{project.id}/staging", 2) is None


def test_a_hook_that_somebody_removed_or_gave_another_key_is_mended(
    site: Site, wait_until: Wait
) -> None:
    removed, changed = site.project(), site.project()
    for each in (removed, changed):
        connect_project(ENVIRONMENT, str(each.id))
    hooks(removed)[0].delete()
    hook = hooks(changed)[0]
    hook.signing_token = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    hook.save()
    request = _request_with_invalid_file(site, changed)
    wait_until(lambda: _is_refused(changed))
    reconcile_deliveries(ENVIRONMENT)
    assert len(hooks(removed)) == 1
    wait_until(lambda: [n for n in request.notes.list(get_all=True) if "cannot be" in n.body])


def _request_with_invalid_file(site: Site, project: Any) -> Any:
    site.commit(project, "name: Shop\n", "feature")
    return project.mergerequests.create(
        {"source_branch": "feature", "target_branch": "main", "title": "Onboard"}
    )


def _is_refused(project: Any) -> bool:
    path = f"/projects/{project.id}/hooks/{hooks(project)[0].id}/events"
    found = project.manager.gitlab.http_get(path)
    return any(str(each["response_status"]) == "401" for each in found)


def test_a_renamed_and_moved_project_is_still_the_same(site: Site, wait_until: Wait) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, str(project.id))
    site.commit(project, app(project))
    wait_until(lambda: site.run(project))
    project.path = f"{project.path}-renamed"
    project.save()
    site.commit(project, app(project, 8001))
    run = wait_until(lambda: site.run(project, 2))
    assert run.parameters["app"]["repository"].endswith("-renamed")


def test_disconnecting_leaves_nothing_and_may_be_repeated(site: Site) -> None:
    project = site.project()
    connect_project(ENVIRONMENT, str(project.id))
    for _ in range(2):
        disconnect_project(ENVIRONMENT, project.id)
        assert not hooks(project)
    with pytest.raises(Exception, match=r"InvalidPath|None"):
        site.key(project)


# --- killed while connecting ------------------------------------------------------------------


class Killed(BaseException):
    """What SIGKILL is within one process."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return how to be killed after the n-th request; whatever is tried afterwards fails too."""
    send = requests.Session.send

    def arm(number: int) -> None:
        count = [0]

        def counted(self: Any, request: Any, **named: Any) -> Any:
            count[0] += 1
            if number and count[0] > number:
                raise Killed
            return send(self, request, **named)

        monkeypatch.setattr(requests.Session, "send", counted)

    return arm


def test_connecting_survives_a_kill_after_every_request(
    site: Site, kill_after: Callable[[int], None]
) -> None:
    number, is_done = 0, False
    while not is_done:
        number += 1
        project = site.project()
        kill_after(number)
        try:
            connect_project_webhook.fn(ENVIRONMENT, str(project.id))
            is_done = True
        except Killed:
            pass
        kill_after(0)
        connect_project_webhook.fn(ENVIRONMENT, str(project.id))
        (hook,) = hooks(project)
        # The gateway believes what this hook signs, or GitLab would answer with an error.
        hook.manager.gitlab.http_post(f"{hook.manager.path}/{hook.id}/test/push_events")
    assert number > 8
