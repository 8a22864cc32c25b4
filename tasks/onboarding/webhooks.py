"""Webhooks of GitLab projects: made by an operator's word, mended by the clock.

Promises that connecting twice, or after a kill, leaves one webhook and one key; that a webhook
which GitLab disabled, or somebody removed, is there again; and that what GitLab could not deliver
is delivered. What is pushed needs no second delivery: the gateway is asked to look at the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import task

from blocks.app_platform import app_platform
from blocks.gitlab_events import Delivery, Hook, WantedHook
from blocks.gitlab_repository import ProjectFacts
from blocks.gitlab_server import GitLabSession, gitlab_server
from blocks.openbao import OpenBaoSession, openbao
from blocks.webhook_sender import ask_to_look, deliver
from domain.errors import NotFound, TemporaryError
from domain.onboarding.app_spec import Stage
from domain.webhooks.gitlab_events import CONNECT_KIND, RECONCILE_KIND
from tasks.onboarding.project_connection import EVENTS, NAME, connect, disconnect, secrets_path
from tasks.retry_rules import TEMPORARY

RESENT_AT_ONCE = 5
"""GitLab allows five in a minute."""
SHORT_COMMIT = 8
"""Characters of GitLab's short commit id, by which pipelines tag images."""
GAP_REMEMBERED = timedelta(hours=6)
"""A webhook that failed is disabled for a minute and then longer, and delivers again by itself."""
TOLD_BY_HEAD = frozenset(("push_hooks", "tag_push_hooks", "pipeline_hooks"))
"""Kinds of deliveries that are not sent again: the first is made up by looking at the head, and
nothing follows from the others."""


@dataclass(frozen=True)
class ProjectWebhook:
    """What became of a project's webhook."""

    project_id: int
    repository: str
    state: str
    resent: int = 0


@dataclass(frozen=True)
class _Systems:
    gitlab: GitLabSession
    bao: OpenBaoSession
    address: str
    ca_file: str


@contextmanager
def _systems(environment: str) -> Iterator[_Systems]:
    platform, server = app_platform(environment), gitlab_server(environment)
    address = f"{platform.gateway_url.rstrip('/')}/gitlab"
    with openbao(environment).session() as bao:
        token = bao.read(server.credential).get("token", "")
        with server.session(token) as gitlab:
            yield _Systems(gitlab, bao, address, platform.gateway_ca_file)


@task(name="connect the project", tags=["system:gitlab"], **TEMPORARY)
def connect_project_webhook(environment: str, project: str) -> ProjectWebhook:
    """Make a project's webhook and its key, and have the gateway look at the project at once."""
    with _systems(environment) as at:
        facts = at.gitlab.project(int(project) if project.isdigit() else project)
        hook = connect(at.gitlab, at.bao, environment, facts.project_id, at.address)
        _ask(at, environment, facts.project_id, CONNECT_KIND)
    return ProjectWebhook(facts.project_id, facts.path, hook.state or "executable")


@task(name="disconnect the project", tags=["system:gitlab"], **TEMPORARY)
def disconnect_project_webhook(environment: str, project_id: int) -> None:
    """Remove a project's webhook and its key."""
    with _systems(environment) as at:
        disconnect(at.gitlab, at.bao, environment, project_id, at.address)


@task(name="list the connected projects", tags=["system:openbao"], **TEMPORARY)
def connected_projects(environment: str) -> list[int]:
    """Return the ids of the projects that have a key."""
    prefix = secrets_path(environment, 0).rpartition("/")[0]
    with openbao(environment).session() as bao:
        names = [path.rpartition("/")[2] for path in bao.names_under(prefix)]
    return sorted(int(name) for name in names if name.isdigit())


@task(
    name="reconcile the project",
    task_run_name="reconcile project {project_id}",
    tags=["system:gitlab"],
    **TEMPORARY,
)
def reconcile_project_webhook(environment: str, project_id: int) -> ProjectWebhook:
    """Mend a project's webhook, have missed deliveries sent again, have the head looked at."""
    with _systems(environment) as at:
        try:
            facts = at.gitlab.project(project_id)
        except NotFound:
            return ProjectWebhook(project_id, "", "there is no such project any more")
        key = at.bao.read(secrets_path(environment, project_id))["signing_key"]
        found = [hook for hook in at.gitlab.hooks(project_id) if hook.url == at.address]
        was_delivering = len(found) == 1 and found[0].is_enabled and found[0].has_signing_token
        tried = at.gitlab.deliveries(project_id, found[0].hook_id) if found else []
        missed = _missed(tried)
        wanted = WantedHook(url=at.address, events=EVENTS, name=NAME)
        # A key that GitLab should have cannot be read back: where something failed it is written.
        is_trusted = was_delivering and not missed
        hook = at.gitlab.ensure_hook(project_id, wanted, "" if is_trusted else key)
        if not hook.is_enabled:
            at.gitlab.enable_hook(project_id, hook.hook_id)
        resent = _resent(at.gitlab, project_id, hook, missed)
        _ask(at, environment, project_id, RECONCILE_KIND)
        if not was_delivering or _had_a_gap(tried, datetime.now(UTC)):
            _tell_what_was_never_sent(at, facts, key)
    state = "in order" if was_delivering else "was mended"
    return ProjectWebhook(project_id, facts.path, state, resent)


def _ask(at: _Systems, environment: str, project_id: int, kind: str) -> None:
    key = at.bao.read(secrets_path(environment, project_id))["signing_key"]
    ask_to_look(at.address, at.ca_file, key, project_id, kind)


def _tell_what_was_never_sent(at: _Systems, facts: ProjectFacts, key: str) -> None:
    """Deliver ourselves what GitLab keeps no record of: nothing is sent to a disabled webhook."""
    project_id = facts.project_id
    project = {"id": project_id, "default_branch": facts.default_branch}
    events: list[dict[str, Any]] = [
        {"object_kind": "merge_request", "object_attributes": {"iid": iid, "action": "update"}}
        for iid in at.gitlab.open_merge_requests(project_id)
    ]
    for stage in Stage:
        last = at.gitlab.last_deployment(project_id, stage.value)
        if last is not None:
            event: dict[str, Any] = {
                "object_kind": "deployment",
                "status": "success",
                "environment": stage.value,
            }
            event |= {"ref": last.ref, "short_sha": last.commit[:SHORT_COMMIT]}
            events.append({**event, "deployment_id": last.deployment_id})
    for event in events:
        act = f"tell the gateway about a {event['object_kind']} of project {project_id}"
        deliver(at.address, at.ca_file, key, {**event, "project": project}, act)


def _had_a_gap(tried: Sequence[Delivery], now: datetime) -> bool:
    """True when GitLab may have disabled the webhook for a while not long ago."""
    return any(
        not each.is_accepted and (each.tried_at is None or now - each.tried_at < GAP_REMEMBERED)
        for each in tried
    )


def _missed(tried: Sequence[Delivery]) -> list[Delivery]:
    """Return the newest attempt of each delivery that was never accepted and says what we need."""
    accepted = {each.delivery_key for each in tried if each.is_accepted}
    newest: dict[str, Delivery] = {}
    for each in tried:
        name = each.delivery_key or str(each.event_id)
        if each.delivery_key not in accepted and each.trigger not in TOLD_BY_HEAD:
            newest.setdefault(name, each)
    return list(newest.values())


def _resent(gitlab: GitLabSession, project_id: int, hook: Hook, missed: list[Delivery]) -> int:
    """Have missed deliveries sent again, the oldest first; the rest waits for the next time."""
    count = 0
    for each in list(reversed(missed))[:RESENT_AT_ONCE]:
        try:
            gitlab.resend(project_id, hook.hook_id, each.event_id)
        except (NotFound, TemporaryError):
            # GitLab forgets deliveries, and allows a few each minute only.
            break
        count += 1
    return count
