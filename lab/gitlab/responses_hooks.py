"""Webhooks of a project, as the API shows and changes them. Secrets go in and never come out."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlsplit

from lab.gitlab import models_access as access
from lab.gitlab import models_hooks as hooks
from lab.gitlab import payloads
from lab.gitlab.calls import NO_CONTENT, Answer, Call
from lab.gitlab.exceptions import BadRequest, Missing, NotSimulated, Unprocessable
from lab.gitlab.instance import stamp
from lab.gitlab.repository import ZERO
from lab.hypervisor.store import Document

FLAGS = (*hooks.EVENTS, *hooks.QUIET_EVENTS)
STATUS_CATEGORIES = {"successful": "2", "client_failure": "4", "server_failure": "5"}


def _show(hook: Document) -> dict[str, Any]:
    kept = ("id", "url", "name", "description", "project_id", "push_events_branch_filter",
            "branch_filter_strategy", "enable_ssl_verification", "created_at", "disabled_until",
            *FLAGS)  # fmt: skip
    return {
        **{key: hook[key] for key in kept},
        "alert_status": hooks.alert_status(hook),
        "repository_update_events": False,
        "url_variables": [],
        "custom_headers": [],
        "custom_webhook_template": "",
        "token_present": bool(hook["token"]),
        "signing_token_present": bool(hook["signing_token"]),
    }


def listing(call: Call) -> Any:
    """GET /projects/:id/hooks."""
    project = call.project(access.MAINTAINER)
    return [_show(hook) for hook in call.gitlab.tables.hooks.where(project_id=project["id"])]


def _hook(call: Call) -> Document:
    project = call.project(access.MAINTAINER)
    hook = call.gitlab.tables.hooks.get(call.number("hook"))
    if hook is None or hook["project_id"] != project["id"]:
        raise Missing
    return hook


def get(call: Call) -> Any:
    """GET /projects/:id/hooks/:hook_id."""
    return _show(_hook(call))


def _check(given: dict[str, Any]) -> None:
    if "url" in given:
        parts = urlsplit(given["url"])
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unprocessable("Invalid url given")
    if given.get("branch_filter_strategy", "wildcard") not in ("wildcard", "all_branches"):
        raise BadRequest({"branch_filter_strategy": ["is not simulated by the lab's GitLab"]})
    if given.get("signing_token") and hooks.signing_key(given["signing_token"]) is None:
        text = "must be in the format whsec_<base64> and encode a 32-byte key"
        raise Unprocessable({"signing_token": [text]})


def create(call: Call) -> Any:
    """POST /projects/:id/hooks."""
    project, given = call.project(access.MAINTAINER), call.params
    _check(given)
    hook = call.gitlab.tables.hooks.add(
        {
            "project_id": project["id"],
            "url": given["url"],
            "name": given.get("name"),
            "description": given.get("description"),
            "push_events_branch_filter": given.get("push_events_branch_filter") or "",
            "branch_filter_strategy": given.get("branch_filter_strategy", "wildcard"),
            "enable_ssl_verification": given.get("enable_ssl_verification", True),
            "token": given.get("token") or "",
            "signing_token": given.get("signing_token") or "",
            "uuid": str(uuid.uuid4()),
            "recent_failures": 0,
            "backoff_count": 0,
            "disabled_until": None,
            "created_at": stamp(),
            **{flag: given.get(flag, flag == "push_events") for flag in FLAGS},
        }
    )
    return Answer(_show(hook), 201)


def edit(call: Call) -> Any:
    """PUT /projects/:id/hooks/:hook_id."""
    hook, given = _hook(call), dict(call.params)
    _check(given)
    given = {key: "" if value is None else value for key, value in given.items()}
    return _show(call.gitlab.tables.hooks.save({**hook, **given}))


def delete(call: Call) -> Any:
    """DELETE /projects/:id/hooks/:hook_id."""
    hook, tables = _hook(call), call.gitlab.tables
    for table in (tables.deliveries, tables.hook_logs):
        for row in table.where(hook_id=hook["id"]):
            table.remove(row["id"])
    tables.hooks.remove(hook["id"])
    return NO_CONTENT


def events(call: Call) -> Any:
    """GET /projects/:id/hooks/:hook_id/events."""
    logs = hooks.recent_logs(call.gitlab, _hook(call))
    status = call.params.get("status")
    if status is not None:
        prefix = STATUS_CATEGORIES.get(status, status)
        logs = [log for log in logs if log["response_status"].startswith(prefix)]
    kept = ("id", "url", "trigger", "request_headers", "request_data", "response_headers",
            "response_body", "execution_duration", "response_status")  # fmt: skip
    return [{key: log[key] for key in kept} for log in logs]


async def resend(call: Call) -> Any:
    """POST /projects/:id/hooks/:hook_id/events/:event_id/resend, under the same webhook-id."""
    hook = _hook(call)
    log = call.gitlab.tables.hook_logs.get(call.number("event"))
    if log is None or log["hook_id"] != hook["id"]:
        raise Missing
    sent = await hooks.send_now(
        call.gitlab, hook, log["event"], log["request_data"], log["idempotency_key"]
    )
    return _outcome(sent)


def _outcome(log: Document) -> Answer:
    if not log["response_status"].isdigit():
        raise Unprocessable(log["response_body"])
    return Answer({"response_status": int(log["response_status"])}, 201)


async def test(call: Call) -> Any:
    """POST /projects/:id/hooks/:hook_id/test/:trigger, with the project's own latest data."""
    hook, trigger = _hook(call), call.path["trigger"]
    if trigger in hooks.QUIET_EVENTS:
        raise NotSimulated(f"The event {trigger}")
    if trigger not in hooks.EVENTS:
        raise BadRequest("trigger does not have a valid value")
    project = call.project(access.MAINTAINER)
    payload = _sample(call, project, trigger)
    if payload is None:
        what = trigger.removesuffix("_events").replace("_", " ")
        raise Unprocessable(f"Ensure the project has {what}.")
    log = await hooks.send_now(call.gitlab, hook, trigger, payload)
    if not log["response_status"].startswith("2"):
        raise Unprocessable(log["response_body"])
    return Answer({"message": "201 Created"}, 201)


def _sample(call: Call, project: Document, trigger: str) -> dict[str, Any] | None:
    gitlab, user = call.gitlab, call.user
    repository, tables = gitlab.repository(project), gitlab.tables
    match trigger:
        case "push_events" | "tag_push_events":
            name = project["default_branch"]
            head = repository.reference(f"refs/heads/{name}")
            if head is None:
                return None
            parents = repository.commit(head).parents
            change = (parents[0] if parents else ZERO, head, f"refs/heads/{name}")
            return payloads.push(gitlab, project, user, change, is_protected=True)
        case "merge_requests_events":
            rows = tables.merge_requests.where(project_id=project["id"])
            return (
                payloads.merge_request(gitlab, project, user, rows[-1], "update", {})
                if rows
                else None
            )
        case "pipeline_events":
            rows = tables.pipelines.where(project_id=project["id"])
            return payloads.pipeline(gitlab, project, user, rows[-1]) if rows else None
        case "deployment_events":
            rows = tables.deployments.where(project_id=project["id"])
            return payloads.deployment(gitlab, project, user, rows[-1]) if rows else None
    return None
