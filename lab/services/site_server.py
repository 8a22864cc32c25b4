"""The lab's HTTPS site server: Git, OpenTofu states and the RKE2 artefact mirror.

In moto's shape, small: this module holds the routes, `git_http`, `state_store` and `artifacts` the
behaviour. Git is git's own `http-backend`. What is not simulated answers 501 with its name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from lab.layout import GATEWAY, SITE_PORT, Layout
from lab.services.artifacts import artifact
from lab.services.credentials import Credential, credential
from lab.services.git_http import serve_git
from lab.services.state_store import StateLocked, StateStore
from lab.toolchain.paths import rke2_artifacts

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "LOCK", "UNLOCK"]
_STATE_LIMIT_BYTES = 64 * 1024 * 1024

Handler = Callable[[Request], Awaitable[Response]]


def application(
    *,
    git_directory: Path,
    git_login: Credential,
    state_directory: Path,
    state_login: Credential,
    artifacts_directory: Path,
) -> Starlette:
    states = StateStore(state_directory)

    async def git(request: Request) -> Response:
        return await serve_git(request, git_directory, user=git_login["username"])

    async def state(request: Request) -> Response:
        return await _state(request, states)

    async def mirror(request: Request) -> Response:
        return artifact(request, artifacts_directory)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/healthz", health, methods=["GET"]),
            Route("/git/{path:path}", _guarded(git, git_login, "git"), methods=_METHODS),
            Route("/state/{name}", _guarded(state, state_login, "state"), methods=_METHODS),
            Route("/rke2/{path:path}", mirror, methods=_METHODS),
            Route("/{path:path}", _not_simulated, methods=_METHODS),
        ]
    )


async def _not_simulated(request: Request) -> Response:
    what = f"{request.method} {request.url.path}"
    return PlainTextResponse(f"Not simulated by the lab's site server: {what}\n", status_code=501)


def _guarded(handler: Handler, login: Credential, realm: str) -> Handler:
    """The handler behind basic authentication."""

    async def guard(request: Request) -> Response:
        if not _is_authorised(request.headers.get("authorization", ""), login):
            return PlainTextResponse(
                "Unauthorized\n",
                status_code=401,
                headers={"WWW-Authenticate": f'Basic realm="{realm}"'},
            )
        return await handler(request)

    return guard


def _is_authorised(header: str, login: Credential) -> bool:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(given, f"{login['username']}:{login['password']}".encode())


async def _state(request: Request, states: StateStore) -> Response:
    name = request.path_params["name"]
    if not states.is_valid_name(name):
        return PlainTextResponse(f"Not a state's name: {name!r}\n", status_code=400)
    body = await request.body()
    if len(body) > _STATE_LIMIT_BYTES:
        return PlainTextResponse("The state is larger than 64 MiB.\n", status_code=413)
    lock_id = request.query_params.get("ID")
    try:
        match request.method:
            case "GET" | "HEAD":
                return _read_state(states, name)
            case "POST" | "PUT":
                return _write_state(request, states, name, body, lock_id)
            case "DELETE":
                states.delete(name, lock_id)
            case "LOCK":
                states.lock(name, _lock_info(body))
            case "UNLOCK":
                states.unlock(name, _lock_info(body)["ID"] if body else None)
            case _:
                return await _not_simulated(request)
    except StateLocked as locked:
        return JSONResponse(locked.holder, status_code=423)
    except ValueError as error:
        return PlainTextResponse(f"{error}\n", status_code=400)
    return Response(status_code=200)


def _read_state(states: StateStore, name: str) -> Response:
    content = states.read(name)
    if content is None:
        return PlainTextResponse(f"No state {name!r}.\n", status_code=404)
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest())
    return Response(
        content, media_type="application/json", headers={"Content-MD5": digest.decode("ascii")}
    )


def _write_state(
    request: Request, states: StateStore, name: str, body: bytes, lock_id: str | None
) -> Response:
    expected = request.headers.get("content-md5")
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode("ascii")
    if expected is not None and expected != digest:
        raise ValueError("The body does not match its Content-MD5: it was cut on its way.")
    json.loads(body)  # an encrypted state is JSON, too; anything else is not a state
    version = states.write(name, body, lock_id)
    return Response(status_code=200, headers={"X-State-Version": str(version)})


def _lock_info(body: bytes) -> dict[str, str]:
    info = json.loads(body or b"{}")
    if not isinstance(info, dict) or not isinstance(info.get("ID"), str):
        raise ValueError("The lock information has no ID.")
    return info


def main() -> int:
    layout = Layout.from_environment()
    app = application(
        git_directory=layout.git_directory,
        git_login=credential(layout, "git"),
        state_directory=layout.state_directory,
        state_login=credential(layout, "state"),
        artifacts_directory=rke2_artifacts(),
    )
    uvicorn.run(
        app,
        host=GATEWAY,
        port=SITE_PORT,
        ssl_certfile=str(layout.server_certificate_file),
        ssl_keyfile=str(layout.server_key_file),
        log_level="info",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
