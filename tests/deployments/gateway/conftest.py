"""A gateway without a network: the real application and store, and the world around it in memory.

The world behaves as its original does where it matters: GitLab knows the newest state of a branch
only, Prefect starts one run for one key, a flow brings its application to what its run carries.
Deliveries are signed by the `standardwebhooks` package, an independent party.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from blocks.delivery_store import DeliveryStore
from blocks.delivery_store_engines import SqliteEngine
from deployments.gateway.acts import Acts
from deployments.gateway.app import gateway_app
from deployments.gateway.dispatcher import Dispatcher
from deployments.gateway.intake import Intake
from deployments.gateway.ports import HeadFile, MergeRequestFile, RunState
from deployments.gateway.settings import Limits
from domain.errors import NotFound, Unreachable

ENVIRONMENT = "trial"
NOW = 1_800_000_000.0
NO_COMMIT = "0" * 40
APP = """\
name: {name}
team: storefront
owners: [ada@example.org]
image: registry.example.org/storefront/{name}:{tag}
port: {port}
environments:
  staging: {{}}
"""


def app_text(name: str, port: int = 8080, tag: str = "1.0.0") -> str:
    """Return a right `app.yaml`."""
    return APP.format(name=name, port=port, tag=tag)


@dataclass
class Project:
    """A project of the world's GitLab, and what it signs with."""

    project_id: int
    key: str
    text: str | None = None
    commit: str = ""
    path: str = "storefront/shop"
    merge_requests: dict[int, MergeRequestFile] = field(default_factory=dict)
    unreviewed: set[str] = field(default_factory=set)
    commit_comments: dict[str, str] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)


class World:
    """GitLab, Prefect, OpenBao and the journals, as the gateway's ports."""

    def __init__(self) -> None:
        self.now = NOW
        self.projects: dict[int, Project] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.states: dict[str, RunState] = {}
        self.tenants: dict[str, dict[str, Any]] = {}
        self.is_openbao_up = True
        self.is_gitlab_up = True
        self.is_prefect_up = True
        self.ends_runs_at_once = True
        self.fault: Callable[[str], None] = lambda _: None

    def clock(self) -> float:
        return self.now

    # --- the team's side ---------------------------------------------------------------------

    def add_project(self, project_id: int, text: str | None = None) -> Project:
        key = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        project = Project(project_id, key)
        self.projects[project_id] = project
        self.secrets[f"webhooks/{ENVIRONMENT}/gitlab/{project_id}"] = {"signing_key": key}
        if text is not None:
            self.commit(project, text)
        return project

    def commit(self, project: Project, text: str | None) -> str:
        project.text, project.commit = text, secrets.token_hex(20)
        return project.commit

    # --- OpenBao -------------------------------------------------------------------------------

    def read(self, path: str) -> Mapping[str, str]:
        self.fault("openbao")
        if not self.is_openbao_up:
            raise Unreachable("Unable to read: OpenBao is down. Wait.")
        if path not in self.secrets:
            raise NotFound(f"Unable to read {path}: it does not exist. Create it.")
        return self.secrets[path]

    # --- GitLab --------------------------------------------------------------------------------

    def _project(self, project_id: int) -> Project:
        self.fault("gitlab")
        if not self.is_gitlab_up:
            raise Unreachable("Unable to read: GitLab is down. Wait.")
        if project_id not in self.projects:
            raise NotFound("Unable to read the project: there is none. Look.")
        return self.projects[project_id]

    def head_file(self, project_id: int) -> HeadFile:
        project = self._project(project_id)
        return HeadFile(project.path, project.commit, project.text, "https://gitlab.example/page")

    def merge_request_file(self, project_id: int, iid: int) -> MergeRequestFile:
        project = self._project(project_id)
        found = replace(project.merge_requests[iid], target_text=project.text)
        return replace(found, has_note=bool(project.notes.get(iid)))

    def is_on_default_branch(self, project_id: int, commit: str) -> bool:
        return commit not in self._project(project_id).unreviewed

    def comment_on_commit(self, project_id: int, commit: str, body: str) -> None:
        self._project(project_id).commit_comments[commit] = body

    def comment_on_merge_request(self, project_id: int, iid: int, body: str) -> None:
        self._project(project_id).notes[iid] = [body]

    # --- Prefect -------------------------------------------------------------------------------

    async def start(self, deployment: str, parameters: Mapping[str, Any], key: str) -> str:
        self.fault("prefect")
        if not self.is_prefect_up:
            raise Unreachable("Unable to start: Prefect is down. Wait.")
        if key not in self.keys:
            run_id = f"run-{len(self.runs) + 1}"
            self.keys[key] = run_id
            self.runs[run_id] = {"deployment": deployment, **parameters}
            self.states[run_id] = RunState.WAITING
            if self.ends_runs_at_once:
                self.end(run_id)
        self.fault("prefect answered")
        return self.keys[key]

    async def find(self, deployment: str, key: str) -> str:
        return self.keys.get(key, "")

    async def state(self, run_id: str) -> RunState:
        return self.states.get(run_id, RunState.GONE)

    async def withdraw(self, run_id: str) -> None:
        if self.states.get(run_id) is RunState.WAITING:
            self.states[run_id] = RunState.GONE

    def end(self, run_id: str, state: RunState = RunState.DONE) -> None:
        """Let a run do its work: the application becomes what it carries."""
        self.states[run_id] = state
        run = self.runs[run_id]
        if state is RunState.DONE and "app" in run:
            self.tenants[run["app"]["name"]] = {**self.tenants.get(run["app"]["name"], {}), **run}
        if state is RunState.DONE and "tag" in run:
            self.tenants[run["name"]] = {**self.tenants.get(run["name"], {}), **run}

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        return [run for run in self.runs.values() if run["deployment"] == deployment]

    # --- the journals --------------------------------------------------------------------------

    def is_onboarded(self, name: str) -> bool:
        return name in self.tenants


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def push(project: Project, *, touches: bool = True, first: bool = False) -> dict[str, Any]:
    """Return the body of a push to the default branch, in GitLab's shape."""
    changed = ["app.yaml"] if touches else ["README.md"]
    return {
        "object_kind": "push",
        "event_name": "push",
        "before": NO_COMMIT if first else "1" * 40,
        "after": project.commit,
        "ref": "refs/heads/main",
        "project_id": project.project_id,
        "project": {"id": project.project_id, "default_branch": "main"},
        "commits": [{"id": project.commit, "added": [], "modified": changed, "removed": []}],
        "total_commits_count": 1,
    }


def merge_request(project: Project, iid: int, action: str = "open") -> dict[str, Any]:
    """Return the body of a merge request's event."""
    return {
        "object_kind": "merge_request",
        "project": {"id": project.project_id, "default_branch": "main"},
        "object_attributes": {
            "iid": iid,
            "action": action,
            "target_project_id": project.project_id,
        },
    }


def deployment(
    project: Project, number: int, tag: str, status: str = "success", stage: str = "staging"
) -> dict[str, Any]:
    """Return the body of a deployment's event."""
    return {
        "object_kind": "deployment",
        "status": status,
        "deployment_id": number,
        "environment": stage,
        "ref": "main",
        "short_sha": tag,
        "project": {"id": project.project_id, "default_branch": "main"},
    }


def signed(
    key: str, body: bytes, now: float, message_id: str | None = None
) -> list[tuple[str, str]]:
    """Return the headers of a delivery, signed by an independent implementation."""
    message_id = message_id or secrets.token_hex(16)
    at = datetime.fromtimestamp(int(now), UTC)
    signature = standardwebhooks.Webhook(key).sign(message_id, at, body.decode())
    return [
        ("webhook-id", message_id),
        ("webhook-timestamp", str(int(now))),
        ("webhook-signature", signature),
    ]


class Gateway:
    """One running application, called as an ASGI server calls it."""

    def __init__(self, app: Any, store: DeliveryStore, dispatcher: Dispatcher, intake: Intake):
        self.app, self.store, self.dispatcher, self.intake = app, store, dispatcher, intake

    async def send(
        self,
        path: str,
        body: bytes,
        headers: list[tuple[str, str]],
        *,
        method: str = "POST",
        kind: str = "application/json",
        parts: list[bytes] | None = None,
        address: str = "192.0.2.1",
        length: str | None = None,
    ) -> Reply:
        """Send a request; `parts` overrides how the body comes in."""
        pairs = [("content-type", kind), *headers]
        if length is not None or parts is None:
            pairs.append(("content-length", length if length is not None else str(len(body))))
        waiting = list(parts if parts is not None else [body])
        started: dict[str, Any] = {}
        content: list[bytes] = []

        async def receive() -> dict[str, Any]:
            if not waiting:
                return {"type": "http.disconnect"}
            part = waiting.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                content.append(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in pairs],
            "client": (address, 40000),
            "server": ("gateway", 8448),
        }
        await self.app(scope, receive, answer)
        replied = {n.decode(): v.decode() for n, v in started["headers"]}
        text = b"".join(content)
        is_json = replied.get("content-type", "").startswith("application/json")
        return Reply(started["status"], replied, json.loads(text) if is_json else {"text": text})

    async def deliver(
        self, project: Project, event: Mapping[str, Any], now: float, message_id: str | None = None
    ) -> Reply:
        """Deliver an event as GitLab does."""
        body = json.dumps(event).encode()
        return await self.send("/gitlab", body, signed(project.key, body, now, message_id))

    async def settle(self, timeout_seconds: float = 20.0) -> None:
        """Return when nothing is pending any more."""
        async with asyncio.timeout(timeout_seconds):
            while await self.store.pending():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running_gateway(
    world: World, directory: Path, limits: Limits | None = None, poll_seconds: float = 0.02
):
    """Run a gateway on a store in `directory`, with its dispatcher at work."""
    store = DeliveryStore(SqliteEngine(directory / "deliveries.db"))
    acts = Acts(ENVIRONMENT, store, world, world, world)
    dispatcher = Dispatcher(store, acts, world.clock, poll_seconds=poll_seconds)
    intake = Intake(ENVIRONMENT, store, world, world.clock, limits, wake=dispatcher.wake)
    app = gateway_app(intake, store, dispatcher)
    async with app.router.lifespan_context(app):
        yield Gateway(app, store, dispatcher, intake)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def gateway(world: World, tmp_path: Path):
    async with running_gateway(world, tmp_path) as running:
        yield running


Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def eventually() -> Eventually:
    async def wait(is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_true():
                await asyncio.sleep(0.01)

    return wait
