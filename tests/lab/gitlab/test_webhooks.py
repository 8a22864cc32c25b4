"""Webhook deliveries: what they say, how they are signed, tried again, and switched off."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from typing import Any

import gitlab
import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from lab.bare_gitlab import BareGitLab


def _signing_token() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _commit(project: Any, name: str = "a", branch: str = "main") -> Any:
    return project.commits.create(
        {"branch": branch, "commit_message": f"add {name}", "start_branch": "main",
         "actions": [{"action": "create", "file_path": name, "content": name}]}
        if branch != "main" else
        {"branch": branch, "commit_message": f"add {name}",
         "actions": [{"action": "create", "file_path": name, "content": name}]}
    )  # fmt: skip


def test_a_push_is_delivered_with_both_tokens_and_verifies_by_an_independent_library(
    server: BareGitLab, project: Any, receiver: Any
) -> None:
    token = _signing_token()
    hook = project.hooks.create({"url": receiver.url, "token": "s3cret", "signing_token": token})
    assert (hook.token_present, hook.signing_token_present) == (True, True)
    assert token not in str(hook.attributes)
    assert "s3cret" not in str(hook.attributes)
    commit = _commit(project)
    (delivery,) = receiver.wait(1)
    verified = Webhook(token).verify(delivery.body, delivery.headers)
    assert verified["after"] == commit.id
    headers = delivery.headers
    assert headers["x-gitlab-event"] == "Push Hook"
    assert headers["x-gitlab-token"] == "s3cret"
    assert headers["idempotency-key"] == headers["webhook-id"]
    assert headers["x-gitlab-instance"] == server.url
    with pytest.raises(WebhookVerificationError):
        Webhook(_signing_token()).verify(delivery.body, headers)


def test_a_push_says_what_the_vendor_documents(project: Any, receiver: Any) -> None:
    project.hooks.create({"url": receiver.url})
    before = project.commits.get("main").id
    commit = _commit(project, "app.yaml")
    payload = receiver.wait(1)[0].payload
    assert (payload["object_kind"], payload["ref"]) == ("push", "refs/heads/main")
    assert (payload["before"], payload["after"], payload["checkout_sha"]) == (
        before,
        commit.id,
        commit.id,
    )
    assert (payload["project_id"], payload["project"]["id"]) == (project.id, project.id)
    assert payload["project"]["path_with_namespace"] == project.path_with_namespace
    assert payload["total_commits_count"] == 1
    (told,) = payload["commits"]
    assert (told["added"], told["modified"], told["removed"]) == (["app.yaml"], [], [])
    assert told["title"] == "add app.yaml"


def test_a_signing_token_of_another_form_is_refused(project: Any, receiver: Any) -> None:
    for token in ("secret", "whsec_c2hvcnQ="):
        with pytest.raises(gitlab.GitlabCreateError) as caught:
            project.hooks.create({"url": receiver.url, "signing_token": token})
        assert caught.value.response_code == 422


def test_a_hook_gets_only_what_it_asked_for(project: Any, receiver: Any) -> None:
    project.hooks.create(
        {"url": receiver.url, "push_events_branch_filter": "release/*", "tag_push_events": True}
    )
    _commit(project, "a")
    _commit(project, "b", "release/1")
    project.tags.create({"tag_name": "v1", "ref": "main", "message": "one"})
    receiver.wait(2)
    assert sorted(d.payload["ref"] for d in receiver.deliveries) == [
        "refs/heads/release/1",
        "refs/tags/v1",
    ]
    (tag,) = receiver.of_kind("Tag Push Hook")
    assert (tag.payload["object_kind"], tag.payload["message"]) == ("tag_push", "one")
    assert tag.payload["checkout_sha"] == project.commits.get("main").id


def test_a_merge_request_is_told_at_each_turn(project: Any, receiver: Any) -> None:
    project.hooks.create({"url": receiver.url, "push_events": False, "merge_requests_events": True})
    _commit(project, "a", "topic")
    request = project.mergerequests.create(
        {"source_branch": "topic", "target_branch": "main", "title": "Add a"}
    )
    project.files.create(
        {"file_path": "z", "branch": "topic", "content": "1", "commit_message": "more"}
    )
    request.merge()
    found = {d.payload["object_attributes"]["action"]: d.payload for d in receiver.wait(3)}
    assert set(found) == {"open", "update", "merge"}
    assert "oldrev" in found["update"]["object_attributes"]
    merged = found["merge"]["object_attributes"]
    assert (merged["state"], merged["iid"], merged["target_branch"]) == ("merged", 1, "main")
    assert merged["merge_commit_sha"] == project.commits.get("main").id
    assert found["merge"]["user"]["username"] == "infraflows"


def test_a_delivery_without_an_answer_is_tried_again_under_the_same_id(
    project: Any, receiver: Any
) -> None:
    token = _signing_token()
    project.hooks.create({"url": receiver.url, "signing_token": token})
    receiver.answers = lambda number: {1: 0, 2: -0.8}.get(number, 200)
    _commit(project)
    deliveries = receiver.wait(3)
    assert len({d.headers["webhook-id"] for d in deliveries}) == 1
    assert len({d.body for d in deliveries}) == 1
    for delivery in deliveries:
        Webhook(token).verify(delivery.body, delivery.headers)


def test_an_answer_of_any_status_is_final_and_counts_as_a_failure(
    project: Any, receiver: Any, wait_until: Callable[..., Any]
) -> None:
    hook = project.hooks.create({"url": receiver.url})
    receiver.answers = lambda _: 503
    _commit(project)
    receiver.wait(1)
    (event,) = wait_until(lambda: _events(project, hook))
    assert (event["response_status"], event["trigger"]) == ("503", "push_hooks")
    assert len(receiver.deliveries) == 1


def _events(project: Any, hook: Any, **query: Any) -> list[Any]:
    path = f"/projects/{project.id}/hooks/{hook.id}/events"
    return list(project.manager.gitlab.http_list(path, query_data=query, get_all=True))


def test_a_failing_hook_is_disabled_and_what_happens_meanwhile_is_never_sent(
    project: Any, receiver: Any, wait_until: Callable[..., Any]
) -> None:
    hook = project.hooks.create({"url": receiver.url})
    receiver.answers = lambda number: 500 if number <= 4 else 200
    for number in range(4):
        assert project.hooks.get(hook.id).alert_status == "executable"
        _commit(project, f"f{number}")
        receiver.wait(number + 1)
        wait_until(lambda count=number + 1: len(_events(project, hook)) == count)
    assert project.hooks.get(hook.id).alert_status == "temporarily_disabled"
    lost = _commit(project, "lost")
    wait_until(lambda: project.hooks.get(hook.id).alert_status == "executable")
    kept = _commit(project, "kept")
    receiver.wait(5)
    assert [d.payload["after"] for d in receiver.deliveries][4:] == [kept.id]
    assert lost.id not in {event["request_data"]["after"] for event in _events(project, hook)}
    wait_until(lambda: project.hooks.get(hook.id).disabled_until is None)


def test_a_hook_ends_for_good_at_the_40th_failure_and_a_good_test_revives_it(
    project: Any, receiver: Any
) -> None:
    hook = project.hooks.create({"url": receiver.url})
    receiver.answers = lambda _: 500
    for _ in range(40):
        with pytest.raises(gitlab.GitlabHttpError) as caught:
            project.manager.gitlab.http_post(
                f"/projects/{project.id}/hooks/{hook.id}/test/push_events"
            )
        assert caught.value.response_code == 422
    assert project.hooks.get(hook.id).alert_status == "disabled"
    receiver.answers = lambda _: 200
    assert project.hooks.get(hook.id).test("push_events") is None
    assert project.hooks.get(hook.id).alert_status == "executable"


def test_events_are_listed_by_status_without_secrets_and_sent_again_under_the_same_id(
    project: Any, receiver: Any, wait_until: Callable[..., Any]
) -> None:
    hook = project.hooks.create({"url": receiver.url, "token": "s3cret"})
    receiver.answers = lambda number: 503 if number == 1 else 200
    _commit(project)
    (event,) = wait_until(lambda: _events(project, hook, status="server_failure"))
    assert event["request_headers"]["X-Gitlab-Token"] == "[REDACTED]"
    assert _events(project, hook, status="successful") == []
    path = f"/projects/{project.id}/hooks/{hook.id}/events/{event['id']}/resend"
    assert project.manager.gitlab.http_post(path)["response_status"] == 200
    first, second = receiver.wait(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.payload == second.payload


def test_a_stored_event_is_delivered_although_the_server_was_killed(
    server: BareGitLab, project: Any, receiver: Any
) -> None:
    project.hooks.create({"url": receiver.url})
    receiver.answers = lambda number: -0.4 if number == 1 else 200
    commit = _commit(project)
    receiver.wait(1)
    server.kill()
    server.start()
    deliveries = receiver.wait(2)
    assert {d.payload["after"] for d in deliveries} == {commit.id}
    assert len({d.headers["webhook-id"] for d in deliveries}) == 1


def test_a_receiver_whose_certificate_is_not_trusted_gets_nothing(
    project: Any, receiver: Any, wait_until: Callable[..., Any]
) -> None:
    hook = project.hooks.create({"url": receiver.url.replace("http:", "https:")})
    _commit(project)
    event = wait_until(lambda: _events(project, hook))[0]
    assert event["response_status"] == "internal error"
    assert receiver.deliveries == []
