"""What is believed, what is stored, what is answered, and how soon."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deployments.gateway.settings import Limits
from domain.errors import Unreachable
from domain.webhooks.rate_limit import Rate

from .conftest import ENVIRONMENT, Gateway, World, app_text, push, running_gateway, signed

ALERT = {"version": "4", "groupKey": "g", "status": "firing", "alerts": [{"labels": {}}]}
ALERTMANAGER_PATH = f"webhooks/{ENVIRONMENT}/alertmanager"


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


async def test_a_signed_push_is_stored_and_the_application_is_onboarded(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    reply = await gateway.deliver(project, push(project), world.now)
    assert (reply.status, reply.body["status"]) == (202, "stored")
    await gateway.settle()
    assert world.tenants["shop"]["project_id"] == 17
    assert world.tenants["shop"]["commit"] == project.commit
    assert world.tenants["shop"]["app"]["repository"] == "storefront/shop"


async def test_the_same_delivery_again_is_known_and_starts_nothing(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    for expected in (202, 200, 200):
        reply = await gateway.deliver(project, push(project), world.now, "one-id")
        assert reply.status == expected
    await gateway.settle()
    assert len(world.runs) == 1


async def test_the_same_id_of_another_project_is_another_delivery(
    world: World, gateway: Gateway
) -> None:
    for number in (17, 18):
        project = world.add_project(number, app_text(f"shop-{number}"))
        assert (await gateway.deliver(project, push(project), world.now, "one-id")).status == 202


async def test_an_event_that_means_nothing_is_stored_as_ignored_with_its_reason(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    reply = await gateway.deliver(project, push(project, touches=False), world.now)
    assert (reply.status, reply.body["status"]) == (200, "ignored")
    assert await gateway.store.counts() == {"ignored": 1}
    rows = await gateway.store._do(lambda engine: engine.execute("SELECT reason FROM deliveries"))
    assert rows == [("the push does not touch app.yaml",)]


@pytest.mark.parametrize("kind", ["\x00", "\ud800", "x" * 10_000, "Ünicode", ""])
async def test_an_event_of_a_strange_name_is_stored_under_another(
    world: World, gateway: Gateway, kind: str
) -> None:
    project = world.add_project(17)
    reply = await gateway.deliver(project, {"object_kind": kind, "project_id": 17}, world.now)
    assert (reply.status, reply.body["status"]) == (200, "ignored")
    rows = await gateway.store._do(lambda engine: engine.execute("SELECT event FROM deliveries"))
    assert rows == [("unknown",)]


async def test_an_unknown_project_looks_like_a_path_that_is_not_there(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    body = json.dumps({**push(project), "project_id": 18, "project": {"id": 18}}).encode()
    reply = await gateway.send("/gitlab", body, signed(project.key, body, world.now))
    assert (reply.status, reply.body["detail"]) == (404, "not found")


async def test_the_older_token_counts_where_it_is_configured_only(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    body = json.dumps(push(project)).encode()
    token = [("x-gitlab-token", "older-token")]
    assert (await gateway.send("/gitlab", body, token)).status == 401
    world.secrets[f"webhooks/{ENVIRONMENT}/gitlab/17"]["token"] = "older-token"
    world.now += 3
    assert (await gateway.send("/gitlab", body, token)).status == 202
    assert (await gateway.send("/gitlab", body, token)).status == 200
    wrong = [*token, ("webhook-signature", "v1,AAAA"), ("webhook-id", "a")]
    wrong.append(("webhook-timestamp", str(int(world.now))))
    assert (await gateway.send("/gitlab", body, wrong)).status == 401


async def test_a_new_key_is_believed_at_once(world: World, gateway: Gateway) -> None:
    project = world.add_project(17, app_text("shop"))
    assert (await gateway.deliver(project, push(project), world.now)).status == 202
    project.key = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    world.secrets[f"webhooks/{ENVIRONMENT}/gitlab/17"] = {"signing_key": project.key}
    world.now += 3
    assert (await gateway.deliver(project, push(project), world.now)).status == 202


async def test_a_key_that_was_taken_away_is_not_believed_after_a_minute(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    assert (await gateway.deliver(project, push(project), world.now)).status == 202
    del world.secrets[f"webhooks/{ENVIRONMENT}/gitlab/17"]
    world.now += 61
    assert (await gateway.deliver(project, push(project), world.now)).status == 404


async def test_without_openbao_known_projects_go_on_and_others_are_told_to_come_again(
    world: World, gateway: Gateway
) -> None:
    known, new = (world.add_project(n, app_text(f"shop-{n}")) for n in (17, 18))
    assert (await gateway.deliver(known, push(known), world.now)).status == 202
    world.is_openbao_up = False
    world.now += 120
    assert (await gateway.deliver(known, push(known), world.now)).status == 202
    reply = await gateway.deliver(new, push(new), world.now)
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) > 0
    world.now += 900
    assert (await gateway.deliver(known, push(known), world.now)).status == 503


async def test_an_unusable_key_is_our_fault_and_not_the_senders(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    world.secrets[f"webhooks/{ENVIRONMENT}/gitlab/17"] = {"signing_key": "whsec_short"}
    assert (await gateway.deliver(project, push(project), world.now)).status == 503


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_body_beyond_the_limit_is_cut_off(
    world: World, tmp_path: Path, is_streamed: bool
) -> None:
    async with running_gateway(world, tmp_path, Limits(body_bytes=1000)) as gateway:
        project = world.add_project(17, app_text("shop"))
        body = json.dumps(push(project)).encode() + b" " * 1000
        parts = [body[at : at + 100] for at in range(0, len(body), 100)] if is_streamed else None
        headers = signed(project.key, body, world.now)
        reply = await gateway.send("/gitlab", body, headers, parts=parts)
        assert reply.status == 413
        assert reply.headers["connection"] == "close"


async def test_a_length_that_is_none_is_refused(world: World, gateway: Gateway) -> None:
    for length in ("-1", "1e3", "", "9" * 30):
        reply = await gateway.send("/gitlab", b"{}", [], length=length)
        assert reply.status in (400, 413)


async def test_no_answer_repeats_what_was_sent(world: World, gateway: Gateway) -> None:
    secret = "do-not-repeat-me"
    bodies = [secret.encode(), json.dumps({"object_kind": secret, "project_id": 17}).encode()]
    world.add_project(17)
    for body in bodies:
        for path in ("/gitlab", "/alertmanager"):
            reply = await gateway.send(path, body, [("x-other", secret), *bearer(secret)])
            assert secret not in json.dumps(reply.body)
            assert secret not in json.dumps(reply.headers)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [("GET", "/gitlab", 405), ("POST", "/healthz", 405), ("GET", "/", 404), ("GET", "/docs", 404)],
)
async def test_there_is_nothing_but_four_routes(
    gateway: Gateway, method: str, path: str, expected: int
) -> None:
    assert (await gateway.send(path, b"", [], method=method)).status == expected


async def test_another_type_of_content_is_refused(world: World, gateway: Gateway) -> None:
    project = world.add_project(17, app_text("shop"))
    body = json.dumps(push(project)).encode()
    headers = signed(project.key, body, world.now)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
        assert (await gateway.send("/gitlab", body, headers, kind=kind)).status == 415
    kind = "application/json; charset=utf-8"
    assert (await gateway.send("/gitlab", body, headers, kind=kind)).status == 202


async def test_an_address_that_sends_too_much_is_told_to_wait(world: World, tmp_path: Path) -> None:
    limits = Limits(source_rate=Rate(per_second=1, burst=3))
    async with running_gateway(world, tmp_path, limits) as gateway:
        project = world.add_project(17, app_text("shop"))
        answers = [await gateway.deliver(project, push(project), world.now) for _ in range(4)]
        assert [answer.status for answer in answers] == [202, 202, 202, 429]
        assert answers[-1].headers["retry-after"] == "1"
        body = json.dumps(push(project)).encode()
        headers = signed(project.key, body, world.now)
        other = await gateway.send("/gitlab", body, headers, address="192.0.2.2")
        assert other.status == 202


async def test_forgeries_do_not_use_up_what_a_project_may_send(
    world: World, tmp_path: Path
) -> None:
    limits = Limits(project_rate=Rate(per_second=1, burst=2))
    async with running_gateway(world, tmp_path, limits) as gateway:
        project = world.add_project(17, app_text("shop"))
        body = json.dumps(push(project)).encode()
        for _ in range(20):
            assert (await gateway.send("/gitlab", body, [])).status == 401
        statuses = [
            (await gateway.deliver(project, push(project), world.now)).status for _ in range(3)
        ]
        assert statuses == [202, 202, 429]


async def test_guessing_project_ids_does_not_reach_openbao_for_long(
    world: World, tmp_path: Path
) -> None:
    asked: list[str] = []
    world.fault = asked.append
    limits = Limits(lookup_rate=Rate(per_second=1, burst=5))
    async with running_gateway(world, tmp_path, limits) as gateway:
        statuses = []
        for number in range(100, 120):
            body = json.dumps({"object_kind": "push", "project_id": number}).encode()
            statuses.append((await gateway.send("/gitlab", body, [])).status)
    assert statuses == [404] * 5 + [429] * 15
    assert asked.count("openbao") == 5


# --- time -------------------------------------------------------------------------------------


class Slow:
    """Holds up whoever asks, as a system that hangs does."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self, _: str) -> None:
        self.released.wait(30)


async def test_an_openbao_that_hangs_never_makes_an_answer_late(
    world: World, tmp_path: Path
) -> None:
    slow = Slow()
    world.fault = slow
    limits = Limits(answer_seconds=0.5, secrets_seconds=0.2)
    async with running_gateway(world, tmp_path, limits) as gateway:
        projects = [world.add_project(n, app_text(f"shop-{n}")) for n in range(17, 47)]
        began = time.monotonic()
        replies = await asyncio.gather(*(gateway.deliver(p, push(p), world.now) for p in projects))
        took = time.monotonic() - began
        slow.released.set()
        world.fault = lambda _: None
    assert {reply.status for reply in replies} == {503}
    assert took < 3.0


async def test_a_gitlab_that_hangs_never_makes_an_answer_late(
    world: World, gateway: Gateway
) -> None:
    slow = Slow()
    project = world.add_project(17, app_text("shop"))
    assert (await gateway.deliver(project, push(project), world.now)).status == 202
    await gateway.settle()
    world.fault = slow
    worst = 0.0
    for _ in range(30):
        began = time.monotonic()
        assert (await gateway.deliver(project, push(project), world.now)).status == 202
        worst = max(worst, time.monotonic() - began)
    slow.released.set()
    world.fault = lambda _: None
    assert worst < 2.0


async def test_a_store_that_hangs_is_answered_with_come_again(world: World, tmp_path: Path) -> None:
    async with running_gateway(world, tmp_path, Limits(answer_seconds=0.3)) as gateway:
        project = world.add_project(17, app_text("shop"))
        released = threading.Event()
        held = asyncio.create_task(gateway.store._do(lambda _: released.wait(30)))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        reply = await gateway.deliver(project, push(project), world.now)
        assert reply.status == 503
        assert time.monotonic() - began < 2.0
        released.set()
        await held


async def test_a_body_that_trickles_in_is_not_waited_for(world: World, tmp_path: Path) -> None:
    async with running_gateway(world, tmp_path, Limits(body_seconds=0.2)) as gateway:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def answer(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/gitlab",
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
            "client": ("192.0.2.1", 1),
        }
        await gateway.app(scope, receive, answer)
    assert sent[0]["status"] == 408


# --- Alertmanager -----------------------------------------------------------------------------


async def test_an_alert_is_verified_stored_and_kept_for_whoever_acts_on_it(
    world: World, gateway: Gateway
) -> None:
    world.secrets[ALERTMANAGER_PATH] = {"token": "alert-token"}
    body = json.dumps(ALERT).encode()
    assert (await gateway.send("/alertmanager", body, bearer("alert-token"))).status == 202
    assert (await gateway.send("/alertmanager", body, bearer("alert-token"))).status == 200
    for headers in (bearer("other"), [], [*bearer("alert-token"), *bearer("alert-token")]):
        assert (await gateway.send("/alertmanager", body, headers)).status == 401
    world.now += 3600
    # It still burns an hour later, word for word: that is news.
    assert (await gateway.send("/alertmanager", body, bearer("alert-token"))).status == 202
    await asyncio.sleep(0.1)
    assert await gateway.store.counts() == {"pending": 2}


async def test_alertmanager_may_prove_itself_by_name_and_password(
    world: World, gateway: Gateway
) -> None:
    world.secrets[ALERTMANAGER_PATH] = {"username": "alert", "password": "pass:word"}
    body = json.dumps(ALERT).encode()
    for text, expected in (("alert:pass:word", 202), ("alert:other", 401), (":", 401)):
        encoded = base64.b64encode(text.encode()).decode()
        headers = [("authorization", f"Basic {encoded}")]
        assert (await gateway.send("/alertmanager", body, headers)).status == expected
    for broken in ("Basic !!!", "Basic", "Digest x", "Bearer alert:pass:word"):
        headers = [("authorization", broken)]
        assert (await gateway.send("/alertmanager", body, headers)).status == 401


async def test_without_a_credential_there_is_no_alertmanager(gateway: Gateway) -> None:
    assert (await gateway.send("/alertmanager", b"{}", bearer("any"))).status == 404


async def test_what_is_no_alert_is_refused(world: World, gateway: Gateway) -> None:
    world.secrets[ALERTMANAGER_PATH] = {"token": "alert-token"}
    for body in (b"{}", b"[]", b"x", b'{"alerts": 1}'):
        assert (await gateway.send("/alertmanager", body, bearer("alert-token"))).status == 400


# --- looking ------------------------------------------------------------------------------------


async def test_health_follows_store_and_dispatcher(world: World, gateway: Gateway) -> None:
    await asyncio.sleep(0.1)
    assert (await gateway.send("/healthz", b"", [], method="GET")).status == 200
    gateway.dispatcher.is_working = False
    gateway.dispatcher._once = _fails  # type: ignore[method-assign]
    await asyncio.sleep(0.1)
    assert (await gateway.send("/healthz", b"", [], method="GET")).status == 503


async def _fails() -> None:
    raise Unreachable("Unable to work: a test wants it. End it.")


async def test_metrics_count_answers_and_refusals_and_name_nobody(
    world: World, gateway: Gateway
) -> None:
    project = world.add_project(17, app_text("shop"))
    await gateway.deliver(project, push(project), world.now)
    body = json.dumps(push(project)).encode()
    await gateway.send("/gitlab", body, [])
    await gateway.settle()
    reply = await gateway.send("/metrics", b"", [], method="GET")
    text = reply.body["text"].decode()
    assert 'infraflows_gateway_deliveries_total{outcome="stored",source="gitlab"} 1.0' in text
    assert 'infraflows_gateway_refusals_total{reason="no_proof",source="gitlab"} 1.0' in text
    assert "infraflows_gateway_pending_deliveries 0.0" in text
    assert "shop" not in text
    assert project.key not in text
