"""Git over HTTP: who may fetch and push, and what git's own hooks must know.

Promises: a client that was told that its push went through has fired the events of it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from lab.gitlab import models_access as access
from lab.gitlab import models_pushes as pushes
from lab.gitlab.exceptions import ApiError
from lab.gitlab.instance import GitLab, stamp
from lab.gitlab.models_projects import by_old_path, by_path
from lab.hypervisor.store import Document
from lab.services.git_http import serve_git

_PATH = re.compile(r"/?(?P<project>.+?)\.git/(?P<rest>.+)")
_SERVICES = ("info/refs", "git-upload-pack", "git-receive-pack")
_DENIED = (
    "HTTP Basic: Access denied. If a password was provided for Git authentication, the password "
    "was incorrect or you're required to use a token instead of a password.\n"
)
_NOT_FOUND = (
    "The project you were looking for could not be found or you don't have permission to view it.\n"
)


@dataclass(frozen=True)
class _Client:
    """Who fetches or pushes: a user by a token, a deploy token, or nobody."""

    user: Document | None = None
    scopes: frozenset[str] = frozenset()
    project_id: int | None = None
    """Of a deploy token, which is good for one project."""


def is_for_git(request: Request) -> bool:
    """True for the addresses that git clients use."""
    return _PATH.fullmatch(request.url.path) is not None


def _client(gitlab: GitLab, request: Request) -> _Client | None:
    header = request.headers.get("authorization")
    if header is None:
        return _Client()
    login = access.basic_login(header)
    if login is None:
        return None
    name, password = login
    held = access.digest(password)
    for row in gitlab.tables.deploy_tokens:
        if hmac.compare_digest(row["digest"], held) and row["username"] == name:
            if row["revoked"] or (row["expires_at"] and row["expires_at"] <= stamp()):
                return None
            return _Client(None, frozenset(row["scopes"]), row["project_id"])
    try:
        identity = access.identify(gitlab, password)
    except ApiError:
        return None
    return _Client(identity.user, identity.scopes)


def _may_fetch(gitlab: GitLab, client: _Client, project: Document) -> bool:
    if project["visibility"] == "public":
        return True
    if client.project_id is not None:
        return client.project_id == project["id"] and "read_repository" in client.scopes
    if client.user is None or not client.scopes & access.FETCHING_SCOPES:
        return False
    level = access.project_level(gitlab, client.user, project)
    return level >= access.REPORTER or project["visibility"] == "internal"


def _refusal(
    gitlab: GitLab, client: _Client | None, project: Document | None, *, is_push: bool
) -> Response | None:
    """The answer to a client that may not, or None."""
    unauthorised = PlainTextResponse(
        _DENIED, status_code=401, headers={"WWW-Authenticate": 'Basic realm="GitLab"'}
    )
    if client is None:
        return unauthorised
    is_nobody = client.user is None and client.project_id is None
    if project is None or not _may_fetch(gitlab, client, project):
        return unauthorised if is_nobody else PlainTextResponse(_NOT_FOUND, status_code=404)
    if not is_push:
        return None
    if is_nobody:
        return unauthorised
    if client.user is None or not client.scopes & access.PUSHING_SCOPES or project["archived"]:
        return PlainTextResponse("You are not allowed to upload code.\n", status_code=403)
    if access.project_level(gitlab, client.user, project) < access.DEVELOPER:
        return PlainTextResponse(
            "You are not allowed to push code to this project.\n", status_code=403
        )
    return None


async def answer(gitlab: GitLab, request: Request) -> Response:
    """Answer a git client."""
    match = _PATH.fullmatch(request.url.path)
    if match is None or match["rest"] not in _SERVICES:
        what = f"{request.method} {request.url.path}"
        return PlainTextResponse(f"{what} is not simulated by the lab's GitLab\n", status_code=501)
    path, rest = match["project"].strip("/"), match["rest"]
    project = by_path(gitlab, path) or by_old_path(gitlab, path)
    client = _client(gitlab, request)
    is_push = "git-receive-pack" in (rest, request.query_params.get("service"))
    refused = _refusal(gitlab, client, project, is_push=is_push)
    if refused is not None or project is None or client is None:
        return refused or PlainTextResponse(_NOT_FOUND, status_code=404)
    request.scope["path_params"] = {"path": f"{project['id']}.git/{rest}"}
    name = client.user["username"] if client.user else "deploy-token"
    if rest != "git-receive-pack" or client.user is None:
        return await serve_git(request, gitlab.repositories, user=name)
    note = gitlab.note_push(project, client.user, [])
    rules = pushes.push_rules(gitlab, client.user, project)
    response = await serve_git(
        request, gitlab.repositories, user=name, for_hooks={**rules, "GITLAB_PUSH_FILE": str(note)}
    )
    if isinstance(response, StreamingResponse):
        response.body_iterator = _then_take(gitlab, response.body_iterator, note)
    return response


async def _then_take(gitlab: GitLab, body: Any, note: Path) -> AsyncIterator[bytes]:
    """The answer of git; its end is told after the consequences were drawn."""
    try:
        async for chunk in body:
            yield chunk
    finally:
        await body.aclose()  # git has ended then
        pushes.take_received(gitlab, note)
