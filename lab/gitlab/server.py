"""The HTTP side of the API: who asks, bodies, pages of lists, and GitLab's ways to answer.

Promises: an answer is sent only after the change it reports is stored. A body is never logged.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route as HttpRoute

from lab.gitlab import git_server, models_hooks, models_pushes, pages, runner, urls
from lab.gitlab.calls import Answer, Call, read_parameters
from lab.gitlab.exceptions import ApiError, BadRequest, NotSimulated, Unauthorized
from lab.gitlab.instance import GitLab
from lab.gitlab.models_access import Identity, identify
from lab.gitlab.models_projects import Moved
from lab.gitlab.repository import GitError

logger = logging.getLogger(__name__)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
API = "/api/v4"
_PER_PAGE, _MOST_PER_PAGE = 20, 100
_BODY_LIMIT_BYTES = 32 * 1024 * 1024


def _segments(request: Request) -> list[str]:
    """The decoded parts of the path: an encoded slash is part of a name."""
    raw = request.scope["raw_path"].decode("latin-1").split("?", 1)[0]
    return [unquote(part) for part in raw.removeprefix(API).strip("/").split("/")]


def _authenticate(gitlab: GitLab, request: Request) -> Identity:
    if "job-token" in request.headers:
        raise NotSimulated("Authentication by CI_JOB_TOKEN")
    value = request.headers.get("private-token")
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if value is None and scheme.lower() == "bearer":
        value = bearer
    if not value:
        raise Unauthorized
    return identify(gitlab, value)


def _flat(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Rails' way to write lists and hashes in forms and queries."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name.endswith("[]"):
            found.setdefault(name.removesuffix("[]"), []).append(value)
        elif isinstance(value, dict):
            found.update({f"{name}[{key}]": inner for key, inner in value.items()})
        else:
            found[name] = value
    return found


async def _raw_parameters(request: Request) -> Mapping[str, Any]:
    found = _flat(parse_qsl(request.url.query, keep_blank_values=True))
    body = await request.body() if request.method not in ("GET", "HEAD") else b""
    if len(body) > _BODY_LIMIT_BYTES:
        raise ApiError(413, {"error": "Request Entity Too Large"})
    kind = request.headers.get("content-type", "")
    if not body:
        return found
    if "json" in kind:
        document = json.loads(body)
        if not isinstance(document, dict):
            raise BadRequest("400 Bad request - a hash is expected")
        return {**found, **_flat(list(document.items()))}
    if "urlencoded" in kind:
        return {**found, **_flat(parse_qsl(body.decode(), keep_blank_values=True))}
    raise NotSimulated(f"A body of type {kind or 'unknown'}")


def _paged(request: Request, call: Call, rows: list[Any]) -> Response:
    page = max(1, call.params.get("page") or 1)
    size = min(max(1, call.params.get("per_page") or _PER_PAGE), _MOST_PER_PAGE)
    total, last = len(rows), max(1, -(-len(rows) // size))
    links = []
    base = f"{call.gitlab.url}{request.scope['raw_path'].decode('latin-1').split('?', 1)[0]}"
    query = [p for p in parse_qsl(request.url.query) if p[0] not in ("page", "per_page")]
    for word, number in (("prev", page - 1), ("next", page + 1), ("first", 1), ("last", last)):
        if 1 <= number <= last:
            text = urlencode([*query, ("page", number), ("per_page", size)])
            links.append(f'<{base}?{text}>; rel="{word}"')
    headers = {
        "X-Page": str(page),
        "X-Per-Page": str(size),
        "X-Total": str(total),
        "X-Total-Pages": str(last),
        "X-Next-Page": str(page + 1) if page < last else "",
        "X-Prev-Page": str(page - 1) if page > 1 else "",
        "Link": ", ".join(links),
    }
    return JSONResponse(rows[(page - 1) * size : page * size], headers=headers)


def _response(request: Request, call: Call, data: Any) -> Response:
    if isinstance(data, Answer):
        if data.content is not None:
            media = None if data.status == 204 else data.media_type
            return Response(data.content, data.status, dict(data.headers), media)
        return JSONResponse(data.data, data.status, dict(data.headers))
    if request.method == "GET" and isinstance(data, list):
        return _paged(request, call, data)
    return JSONResponse(data, 201 if request.method == "POST" else 200)


class Api:
    """One ASGI endpoint for all of /api/v4."""

    def __init__(self, gitlab: GitLab) -> None:
        self._gitlab = gitlab

    async def answer(self, request: Request) -> Response:
        """Answer a request."""
        try:
            return await self._perform(request)
        except Moved as moved:
            return self._redirect(request, moved)
        except ApiError as error:
            return JSONResponse(error.body, error.status, error.headers)
        except GitError as error:
            return JSONResponse({"message": str(error)}, 400)
        except (UnicodeDecodeError, json.JSONDecodeError):
            return JSONResponse({"error": "Problem parsing JSON"}, 400)
        except Exception:
            logger.exception(
                "Unable to answer %s %s: a mistake in the lab", request.method, request.url.path
            )
            return JSONResponse({"message": "500 Internal Server Error"}, 500)

    async def _perform(self, request: Request) -> Response:
        identity = _authenticate(self._gitlab, request)
        identity.require_scope(request.method)
        found, names = urls.find(request.method, _segments(request))
        params = read_parameters(found, await _raw_parameters(request))
        call = Call(self._gitlab, identity, names, params, request.method)
        data = found.handler(call)
        if inspect.isawaitable(data):
            data = await data
        return _response(request, call, data)

    def _redirect(self, request: Request, moved: Moved) -> Response:
        raw = request.scope["raw_path"].decode("latin-1").removeprefix(f"{API}/projects/")
        rest = raw.partition("/")[2]
        query = f"?{request.url.query}" if request.url.query else ""
        path = f"{moved.project['id']}/{rest}".rstrip("/")
        target = f"{self._gitlab.url}{API}/projects/{path}{query}"
        text = f"This resource has been moved temporarily to {target}"
        return Response(text, 302, {"Location": target}, "text/plain")


def application(gitlab: GitLab) -> Starlette:
    """The ASGI application."""
    api, site = Api(gitlab), pages.Pages(gitlab)

    async def health(_: Request) -> Response:
        return PlainTextResponse("GitLab OK")

    async def other(request: Request) -> Response:
        if git_server.is_for_git(request):
            return await git_server.answer(gitlab, request)
        try:
            return site.answer(request)
        except Moved as moved:
            return RedirectResponse(site.place_of(request, moved.project), 302)
        except ApiError as error:
            return PlainTextResponse(f"{error.body['message']}\n", error.status)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        models_pushes.install_hooks(gitlab)
        models_pushes.resume(gitlab)
        models_hooks.resume(gitlab)
        runner.resume(gitlab)
        yield
        await gitlab.close()

    return Starlette(
        routes=[
            HttpRoute("/-/health", health, methods=["GET"]),
            HttpRoute(API + "/{path:path}", api.answer, methods=METHODS),
            HttpRoute("/{path:path}", other, methods=METHODS),
        ],
        lifespan=lifespan,
    )
