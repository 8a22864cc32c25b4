"""What happens in a GitLab project: webhooks and their deliveries, pipelines, commit statuses.

Promises that a webhook is there once for each address and has exactly the wanted events. GitLab
never shows a signing token again, only that there is one (`signing_token_present`; see
https://docs.gitlab.com/api/project_webhooks/), so who calls says when it is to be written anew.
GitLab disables a webhook after failures: `alert_status` is `temporarily_disabled` or `disabled`,
and a successful test delivery or a change of the webhook makes it `executable` again. Resending a
delivery is limited to five each minute: that is a `TemporaryError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blocks.gitlab_transport import GitLabTransport
from domain.errors import Conflict, PermanentError, Unreachable

EVENTS = (
    "push_events",
    "tag_push_events",
    "merge_requests_events",
    "note_events",
    "issues_events",
    "job_events",
    "pipeline_events",
    "deployment_events",
    "releases_events",
    "wiki_page_events",
)
FINISHED = ("success", "failed", "canceled", "skipped")
WAITS_FOR_PERSON = "manual"
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Hook:
    """A webhook of a project."""

    hook_id: int
    url: str
    events: frozenset[str]
    is_verifying_tls: bool
    state: str
    """`executable`, `temporarily_disabled` or `disabled`."""
    has_signing_token: bool
    branch_filter: str = ""
    name: str = ""

    @property
    def is_enabled(self) -> bool:
        """True when GitLab delivers to it."""
        return self.state in ("executable", "")


@dataclass(frozen=True)
class WantedHook:
    """How a webhook shall be."""

    url: str
    events: frozenset[str]
    name: str = ""
    branch_filter: str = ""


@dataclass(frozen=True)
class Delivery:
    """One attempt of GitLab to deliver an event."""

    event_id: int
    trigger: str
    status: str
    """HTTP status, or a word as `internal error` when there was no answer."""
    delivery_key: str
    """GitLab's Idempotency-Key, the same in every attempt; empty when it is not told."""
    body: Mapping[str, Any]
    tried_at: datetime | None = None
    """When; None when this GitLab does not tell."""

    @property
    def is_accepted(self) -> bool:
        """True when the receiver answered 2xx."""
        return len(self.status) == 3 and self.status.startswith("2")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of a commit."""

    pipeline_id: int
    status: str
    ref: str
    web_url: str

    @property
    def is_finished(self) -> bool:
        """True when nothing more happens by itself."""
        return self.status in (*FINISHED, WAITS_FOR_PERSON)


@dataclass(frozen=True)
class Deployment:
    """A deployment job that has ended well."""

    deployment_id: int
    environment: str
    ref: str
    """Branch or tag that it was made from."""
    commit: str


class EventCalls:
    """The part of a session that deals with webhooks and pipelines."""

    http: GitLabTransport

    # --- webhooks ----------------------------------------------------------------------------

    def hooks(self, project_id: int) -> list[Hook]:
        """Return the webhooks of a project."""
        found = self.http.list_all(
            f"list the webhooks of {project_id}", f"/projects/{project_id}/hooks"
        )
        return [_hook(each) for each in found]

    def ensure_hook(self, project_id: int, wanted: WantedHook, signing_token: str = "") -> Hook:
        """Make one webhook to this address, exactly so; a given token is written, also anew.

        Raises:
            Conflict: it read back otherwise.
        """
        act, path = f"set the webhook of {project_id}", f"/projects/{project_id}/hooks"
        present = [each for each in self.hooks(project_id) if each.url == wanted.url]
        for double in present[1:]:
            self.delete_hook(project_id, double.hook_id)
        is_same = bool(present) and _is_as(present[0], wanted) and present[0].is_enabled
        if is_same and not signing_token:
            return present[0]
        body = _hook_body(wanted, signing_token)
        if present:
            self.http.put(act, f"{path}/{present[0].hook_id}", body, is_secret=True)
        else:
            self.http.post(act, path, body, is_secret=True)
        after = [each for each in self.hooks(project_id) if each.url == wanted.url]
        is_token_kept = not signing_token or (bool(after) and after[0].has_signing_token)
        if len(after) != 1 or not _is_as(after[0], wanted) or not is_token_kept:
            raise Conflict(
                f"Unable to {act}: it read back otherwise than it was written. Look whether this "
                "GitLab is new enough to know signing tokens, then run again."
            )
        return after[0]

    def enable_hook(self, project_id: int, hook_id: int) -> None:
        """Have GitLab deliver again to a webhook that it disabled, by a test delivery.

        Raises:
            PermanentError: the receiver does not accept the delivery.
        """
        self.http.post(
            f"test the webhook {hook_id} of {project_id}",
            f"/projects/{project_id}/hooks/{hook_id}/test/push_events",
            {},
        )

    def delete_hook(self, project_id: int, hook_id: int) -> bool:
        """Remove a webhook; false when it was gone."""
        return self.http.delete(
            f"remove the webhook {hook_id} of {project_id}",
            f"/projects/{project_id}/hooks/{hook_id}",
        )

    def deliveries(self, project_id: int, hook_id: int, status: str = "") -> list[Delivery]:
        """Return what GitLab tried to deliver in the last days, newest first.

        `status` is `successful`, `client_failure`, `server_failure` or a number.
        """
        query = {"status": status} if status else {}
        found = self.http.list_all(
            f"list the deliveries of the webhook {hook_id} of {project_id}",
            f"/projects/{project_id}/hooks/{hook_id}/events",
            **query,
        )
        return [_delivery(each) for each in found]

    def last_deployment(self, project_id: int, environment: str) -> Deployment | None:
        """Return the newest deployment to an environment that succeeded; nothing if none did."""
        found = self.http.get(
            f"read the deployments to {environment} of {project_id}",
            f"/projects/{project_id}/deployments",
            environment=environment,
            status="success",
            order_by="id",
            sort="desc",
            per_page=1,
        )
        for each in found:
            return Deployment(int(each["id"]), environment, str(each["ref"]), str(each["sha"]))
        return None

    def resend(self, project_id: int, hook_id: int, event_id: int) -> str:
        """Have GitLab deliver an event again; returns the receiver's HTTP status."""
        answer = self.http.post(
            f"resend the delivery {event_id} of {project_id}",
            f"/projects/{project_id}/hooks/{hook_id}/events/{event_id}/resend",
            {},
        )
        return str(answer.get("response_status") or "")

    # --- pipelines ---------------------------------------------------------------------------

    def pipelines(self, project_id: int, commit: str) -> list[Pipeline]:
        """Return the pipelines of a commit, newest first."""
        found = self.http.list_all(
            f"list the pipelines of {commit[:12]} of {project_id}",
            f"/projects/{project_id}/pipelines",
            sha=commit,
        )
        made = [
            Pipeline(int(e["id"]), str(e["status"]), str(e.get("ref") or ""), str(e["web_url"]))
            for e in found
        ]
        return sorted(made, key=lambda each: each.pipeline_id, reverse=True)

    def wait_for_pipeline(
        self,
        project_id: int,
        commit: str,
        timeout_seconds: float,
        on_look: Callable[[Pipeline | None], None] = lambda _pipeline: None,
    ) -> Pipeline:
        """Wait until the commit's newest pipeline is finished or waits for a person.

        Raises:
            Unreachable: it did not come to an end in time. PermanentError: it failed.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = self.pipelines(project_id, commit)
            newest = found[0] if found else None
            on_look(newest)
            if newest is not None and newest.is_finished:
                break
            if time.monotonic() >= deadline:
                state = newest.status if newest else "not there"
                raise Unreachable(
                    f"Unable to see the pipeline of {commit[:12]} end within "
                    f"{timeout_seconds:.0f} s: it is {state}. Look whether a runner is free."
                )
            time.sleep(min(POLL_SECONDS, max(0.05, deadline - time.monotonic())))
        if newest.status in ("failed", "canceled"):
            raise PermanentError(
                f"Unable to use the pipeline of {commit[:12]}: it is {newest.status}. See "
                f"{newest.web_url}."
            )
        return newest

    def set_commit_status(
        self, project_id: int, commit: str, name: str, state: str, description: str, url: str = ""
    ) -> None:
        """Show a state beside a commit: pending, running, success, failed or canceled.

        GitLab refuses a change from a state to itself: that is a success here.
        """
        body = {"name": name, "state": state, "description": description[:255]}
        if url:
            body["target_url"] = url
        try:
            self.http.post(
                f"set the status of {commit[:12]} of {project_id}",
                f"/projects/{project_id}/statuses/{commit}",
                body,
            )
        except PermanentError as error:
            if "Cannot transition status" not in str(error):
                raise


def _hook(found: Mapping[str, Any]) -> Hook:
    return Hook(
        hook_id=int(found["id"]),
        url=str(found["url"]),
        events=frozenset(name for name in EVENTS if found.get(name)),
        is_verifying_tls=bool(found.get("enable_ssl_verification", True)),
        state=str(found.get("alert_status") or ""),
        has_signing_token=bool(found.get("signing_token_present")),
        branch_filter=str(found.get("push_events_branch_filter") or ""),
        name=str(found.get("name") or ""),
    )


def _hook_body(wanted: WantedHook, signing_token: str) -> dict[str, Any]:
    body: dict[str, Any] = {name: name in wanted.events for name in EVENTS}
    body |= {"url": wanted.url, "name": wanted.name, "enable_ssl_verification": True}
    body["push_events_branch_filter"] = wanted.branch_filter
    if signing_token:
        body["signing_token"] = signing_token
    return body


def _is_as(hook: Hook, wanted: WantedHook) -> bool:
    return (
        hook.url == wanted.url
        and hook.events == wanted.events
        and hook.is_verifying_tls
        and hook.branch_filter == wanted.branch_filter
        and hook.name == wanted.name
    )


def _delivery(found: Mapping[str, Any]) -> Delivery:
    headers = {str(k).lower(): str(v) for k, v in (found.get("request_headers") or {}).items()}
    return Delivery(
        event_id=int(found["id"]),
        trigger=str(found.get("trigger") or ""),
        status=str(found.get("response_status") or ""),
        delivery_key=headers.get("idempotency-key") or headers.get("webhook-id") or "",
        body=found.get("request_data") or {},
        tried_at=datetime.fromisoformat(str(found["created_at"]))
        if "created_at" in found
        else None,
    )
