"""Webhooks: what is sent when, signed how, tried again when, and switched off when.

Promises: an event is stored before the request that caused it is answered, and delivered also when
the process is killed in between. A delivery that gets no answer within the time-out is tried again
under the same `webhook-id`; an answer of any status ends it. A hook is disabled for a while after
its 4th failure in a row and for good after the 40th; what happens meanwhile is not sent, ever.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime as dt
import fnmatch
import functools
import hashlib
import hmac
import json
import ssl
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from lab.gitlab.instance import VERSION, GitLab, moment, now, stamp
from lab.hypervisor.store import Document

RETRIES = 4
FAILURES_BEFORE_PAUSE = 4
FAILURES_BEFORE_END = 40
LONGEST_PAUSE_SECONDS = 24 * 3600
KEPT_LOGS_PER_HOOK = 400
LOG_DAYS = 7
_SHOWN_BODY = 8192

# Flag of the hook -> name in the header, name in the log.
EVENTS = {
    "push_events": ("Push Hook", "push_hooks"),
    "tag_push_events": ("Tag Push Hook", "tag_push_hooks"),
    "merge_requests_events": ("Merge Request Hook", "merge_request_hooks"),
    "note_events": ("Note Hook", "note_hooks"),
    "pipeline_events": ("Pipeline Hook", "pipeline_hooks"),
    "deployment_events": ("Deployment Hook", "deployment_hooks"),
}
# Flags of events that never happen in the lab.
QUIET_EVENTS = (
    "job_events",
    "issues_events",
    "confidential_issues_events",
    "confidential_note_events",
    "wiki_page_events",
    "releases_events",
    "feature_flag_events",
    "resource_access_token_events",
    "milestone_events",
    "emoji_events",
)


def signing_key(token: str) -> bytes | None:
    """The key in a signing token, or None when it has not the vendor's form."""
    if not token.startswith("whsec_"):
        return None
    try:
        key = base64.b64decode(token.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 else None


def signature(token: str, identifier: str, timestamp: str, body: bytes) -> str:
    """The Standard Webhooks signature of a delivery."""
    key = signing_key(token) or b""
    signed = f"{identifier}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def alert_status(hook: Document) -> str:
    """`executable`, `temporarily_disabled` or `disabled`."""
    if hook["recent_failures"] >= FAILURES_BEFORE_END:
        return "disabled"
    until = hook["disabled_until"]
    return "temporarily_disabled" if until and moment(until) > now() else "executable"


def fire(
    gitlab: GitLab,
    project: Document,
    event: str,
    make: Callable[[], dict[str, Any]],
    ref: str = "",
) -> None:
    """Store an event for every hook that wants it, and begin to deliver it.

    What it says is made only if somebody wants it: that asks git many things.
    """
    wanting = [
        hook
        for hook in gitlab.tables.hooks.where(project_id=project["id"])
        if hook[event] and alert_status(hook) == "executable" and _wants_branch(hook, event, ref)
    ]
    if not wanting:
        return
    payload, event_uuid = make(), str(uuid.uuid4())
    for hook in wanting:
        delivery = _store(gitlab, hook, event, payload, event_uuid)
        gitlab.spawn(deliver(gitlab, delivery["id"]))


def _wants_branch(hook: Document, event: str, ref: str) -> bool:
    wanted = hook["push_events_branch_filter"]
    if event != "push_events" or not wanted:
        return True
    return fnmatch.fnmatchcase(ref.removeprefix("refs/heads/"), wanted)


def _store(
    gitlab: GitLab,
    hook: Document,
    event: str,
    payload: dict[str, Any],
    event_uuid: str,
    key: str = "",
) -> Document:
    return gitlab.tables.deliveries.add(
        {
            "hook_id": hook["id"],
            "project_id": hook["project_id"],
            "event": event,
            "event_uuid": event_uuid,
            "idempotency_key": key or str(uuid.uuid4()),
            "body": json.dumps(payload, separators=(",", ":")),
            "attempts": 0,
            "next_at": stamp(),
        }
    )


def resume(gitlab: GitLab) -> None:
    """Go on with what was not delivered when the process ended."""
    for delivery in gitlab.tables.deliveries:
        gitlab.spawn(deliver(gitlab, delivery["id"]))


async def deliver(gitlab: GitLab, delivery_id: int) -> None:
    """Try until there is an answer, the tries are used up, or the hook is off."""
    while (delivery := gitlab.tables.deliveries.get(delivery_id)) is not None:
        await asyncio.sleep(max(0.0, (moment(delivery["next_at"]) - now()).total_seconds()))
        hook = gitlab.tables.hooks.get(delivery["hook_id"])
        if hook is None or alert_status(hook) != "executable":
            gitlab.tables.deliveries.remove(delivery_id)
            return
        status = await attempt(gitlab, hook, delivery)
        attempts = delivery["attempts"] + 1
        if status is not None or attempts > RETRIES:
            gitlab.tables.deliveries.remove(delivery_id)
            return
        wait = gitlab.settings.retry_seconds * (1 + (attempts**4 - 1) / 15)
        next_at = stamp(now() + dt.timedelta(seconds=wait))
        if gitlab.tables.deliveries.get(delivery_id) is not None:
            gitlab.tables.deliveries.save({**delivery, "attempts": attempts, "next_at": next_at})


def request_headers(gitlab: GitLab, hook: Document, delivery: Document) -> dict[str, str]:
    """The headers of one attempt."""
    key, body = delivery["idempotency_key"], delivery["body"].encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"GitLab/{VERSION}",
        "Idempotency-Key": key,
        "X-Gitlab-Event": EVENTS[delivery["event"]][0],
        "X-Gitlab-Webhook-UUID": hook["uuid"],
        "X-Gitlab-Instance": gitlab.url,
        "X-Gitlab-Event-UUID": delivery["event_uuid"],
        "webhook-id": key,
        "webhook-timestamp": str(int(time.time())),
    }
    if hook["token"]:
        headers["X-Gitlab-Token"] = hook["token"]
    if hook["signing_token"]:
        headers["webhook-signature"] = signature(
            hook["signing_token"], key, headers["webhook-timestamp"], body
        )
    return headers


async def attempt(gitlab: GitLab, hook: Document, delivery: Document) -> int | None:
    """One request; returns the status of the answer, None when there was none."""
    headers, allowed = (
        request_headers(gitlab, hook, delivery),
        (gitlab.settings.delivery_timeout_seconds),
    )
    begun, status, answer_headers, answer = time.monotonic(), None, {}, ""
    try:
        # A plain time-out of httpx begins anew with each read: the whole attempt has 10 seconds.
        async with (
            asyncio.timeout(allowed),
            httpx.AsyncClient(
                verify=_trust(gitlab, hook), trust_env=False, timeout=allowed
            ) as client,
        ):
            got = await client.post(hook["url"], content=delivery["body"].encode(), headers=headers)
        status, answer_headers, answer = got.status_code, dict(got.headers), got.text[:_SHOWN_BODY]
    except TimeoutError:
        answer = f"Net::ReadTimeout: no answer in {gitlab.settings.delivery_timeout_seconds:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        answer = f"{type(error).__name__}: {error}"
    _log(
        gitlab,
        hook,
        delivery,
        {
            "request_headers": {
                **headers,
                **({"X-Gitlab-Token": "[REDACTED]"} if hook["token"] else {}),
            },
            "response_headers": answer_headers,
            "response_body": answer,
            "execution_duration": time.monotonic() - begun,
            "response_status": str(status) if status is not None else "internal error",
        },
    )
    _count(gitlab, hook["id"], is_success=status is not None and 200 <= status < 300)
    return status


def _trust(gitlab: GitLab, hook: Document) -> ssl.SSLContext | bool:
    if not hook["enable_ssl_verification"] or hook["url"].startswith("http:"):
        return False
    return _context(gitlab.settings.ca_file)


@functools.cache
def _context(ca_file: str) -> ssl.SSLContext:
    # Reading all CAs of a system takes longer than many a delivery.
    return ssl.create_default_context(cafile=ca_file or None)


def _log(gitlab: GitLab, hook: Document, delivery: Document, outcome: dict[str, Any]) -> None:
    if gitlab.tables.hooks.get(hook["id"]) is None:
        return
    gitlab.tables.hook_logs.add(
        {
            "hook_id": hook["id"],
            "project_id": hook["project_id"],
            "url": hook["url"],
            "event": delivery["event"],
            "trigger": EVENTS[delivery["event"]][1],
            "idempotency_key": delivery["idempotency_key"],
            "request_data": json.loads(delivery["body"]),
            "created_at": stamp(),
            **outcome,
        }
    )
    logs = gitlab.tables.hook_logs.where(hook_id=hook["id"])
    for old in logs[:-KEPT_LOGS_PER_HOOK]:
        gitlab.tables.hook_logs.remove(old["id"])


def _count(gitlab: GitLab, hook_id: int, *, is_success: bool) -> None:
    """Remember a success or a failure, and switch the hook off after too many in a row."""
    hook = gitlab.tables.hooks.get(hook_id)
    if hook is None:
        return
    if is_success:
        if hook["recent_failures"] or hook["disabled_until"]:
            cleared = {"recent_failures": 0, "backoff_count": 0, "disabled_until": None}
            gitlab.tables.hooks.save({**hook, **cleared})
        return
    failures, pauses, until = (
        hook["recent_failures"] + 1,
        hook["backoff_count"],
        hook["disabled_until"],
    )
    if failures >= FAILURES_BEFORE_PAUSE:
        seconds = min(gitlab.settings.disable_seconds * 2**pauses, LONGEST_PAUSE_SECONDS)
        until, pauses = stamp(now() + dt.timedelta(seconds=seconds)), pauses + 1
    changed = {"recent_failures": failures, "backoff_count": pauses, "disabled_until": until}
    gitlab.tables.hooks.save({**hook, **changed})


async def send_now(
    gitlab: GitLab, hook: Document, event: str, payload: dict[str, Any], key: str = ""
) -> Document:
    """One attempt at once, also for a hook that is off (tests and re-sends); returns its log."""
    delivery = {
        "event": event,
        "event_uuid": str(uuid.uuid4()),
        "idempotency_key": key or str(uuid.uuid4()),
        "body": json.dumps(payload, separators=(",", ":")),
    }
    await attempt(gitlab, hook, delivery)
    return gitlab.tables.hook_logs.where(hook_id=hook["id"])[-1]


def recent_logs(gitlab: GitLab, hook: Document) -> list[Document]:
    """The log of the past seven days, newest first."""
    oldest = now() - dt.timedelta(days=LOG_DAYS)
    logs = gitlab.tables.hook_logs.where(hook_id=hook["id"])
    return [log for log in reversed(logs) if moment(log["created_at"]) > oldest]
