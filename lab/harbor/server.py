"""The HTTP side: routing, logins, error bodies, paging headers and Harbor's guard against CSRF.

Promises: an answer is sent only after the change that it reports is stored. No body is logged.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as HttpRoute

from lab.harbor import urls
from lab.harbor.calls import Call, Reply
from lab.harbor.exceptions import ApiError, BadGateway, Forbidden, NotSimulated, Unauthorized
from lab.harbor.exceptions import BadRequest as BadRequestError
from lab.harbor.harbor import Harbor
from lab.harbor.registry_api import RegistryApi
from lab.harbor.responses_projects import API

logger = logging.getLogger(__name__)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
SAFE = ("GET", "HEAD", "OPTIONS")
CSRF_HEADER = "X-Harbor-CSRF-Token"
BODY_LIMIT_BYTES = 1024 * 1024

Endpoint = Callable[[Request], Awaitable[Response]]


def _error_response(error: ApiError) -> Response:
    response = JSONResponse(error.document(), status_code=error.status)
    if isinstance(error, Unauthorized) and error.challenge:
        response.headers["Www-Authenticate"] = error.challenge
    return response


def _explained(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ApiError as error:
            return _error_response(error)
        except Exception as error:
            logger.exception("Unable to answer %s %s", request.method, request.url.path)
            return _error_response(ApiError(f"the lab's Harbor failed: {type(error).__name__}"))

    return answer


async def _body(request: Request) -> Any:
    if request.method in SAFE:
        return None
    raw = await request.body()
    if len(raw) > BODY_LIMIT_BYTES:
        raise BadRequestError("the body is too large")
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        raise BadRequestError("unable to parse the body: it is not JSON") from None


def _refuse_forged(request: Request) -> None:
    """A browser's session changes nothing without a token; a program with a login needs none."""
    if request.method not in SAFE and "sid" in request.cookies:
        # Sessions are not simulated, so no token can be right.
        raise Forbidden("CSRF token invalid")


def _answered(call: Call, reply: Reply) -> Response:
    headers = dict(reply.headers)
    if reply.location:
        headers["Location"] = reply.location
    if reply.total is not None:
        headers["X-Total-Count"] = str(reply.total)
        number, size = call.page()
        if number * size < reply.total:
            headers["Link"] = f'<{call.path}?page={number + 1}&page_size={size}>; rel="next"'
    if call.method in SAFE:
        headers[CSRF_HEADER] = secrets.token_urlsafe(32)
    if reply.document is None:
        return Response(status_code=reply.status, headers=headers)
    return JSONResponse(reply.document, reply.status, headers)


def _api(harbor: Harbor) -> Endpoint:
    async def answer(request: Request) -> Response:
        _refuse_forged(request)
        raw = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        route, names = urls.find(request.method, raw.removeprefix(API))
        header = request.headers.get("authorization", "")
        caller = harbor.logins.login(header, harbor.robots.all())
        if caller.scopes is not None:
            raise Unauthorized
        call = Call(
            harbor=harbor,
            caller=caller,
            method=request.method,
            path=raw,
            names=names,
            query=dict(request.query_params),
            headers={key.lower(): value for key, value in request.headers.items()},
            body=await _body(request),
        )
        return _answered(call, await route.handler(call))

    return answer


async def _elsewhere(request: Request) -> Response:
    raise NotSimulated(f"{request.method} {request.url.path}")


def application(harbor: Harbor) -> Starlette:
    """The ASGI application."""
    registry = RegistryApi(harbor)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            await harbor.settle_pushes()
        except BadGateway:
            logger.warning("The registry does not answer yet; interrupted pushes are settled later")
        yield
        await harbor.close()

    endpoints = {
        f"{API}/{{path:path}}": _api(harbor),
        "/v2": registry.answer,
        "/v2/{path:path}": registry.answer,
        "/service/token": registry.token,
        "/{path:path}": _elsewhere,
    }
    return Starlette(
        routes=[HttpRoute(p, _explained(e), methods=METHODS) for p, e in endpoints.items()],
        lifespan=lifespan,
    )
