"""The ASGI application: routes, the size limit, the time limit, the answers.

Promises that a body is cut off at its limit while it comes in and before anything reads it, and
that every request is answered before its sender gives up, whatever hangs behind it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from blocks.delivery_store import DeliveryStore
from deployments.gateway.dispatcher import Dispatcher
from deployments.gateway.intake import MALFORMED, TOO_LARGE, UNAVAILABLE, Answer, Intake
from deployments.gateway.metrics import CONTENT_TYPE
from domain.errors import LifecycleError
from domain.webhooks.delivery import ALERTMANAGER, GITLAB
from domain.webhooks.signatures import Headers

log = logging.getLogger("infraflows.gateway")

WRONG_TYPE = Answer(415, "wrong_type", "send application/json")
TOO_SLOW = Answer(408, "too_slow", "the body did not come in time")
LOOK_SECONDS = 3.0

Take = Callable[[str, Headers, bytes], Awaitable[Answer]]


def gateway_app(
    intake: Intake, store: DeliveryStore, dispatcher: Dispatcher | None = None
) -> Starlette:
    """Return the application; the dispatcher, if there is one, works while it serves."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(dispatcher.run()) if dispatcher is not None else None
        try:
            yield
        finally:
            if work is not None:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            intake.close()
            await asyncio.to_thread(store.close)

    async def gitlab(request: Request) -> Response:
        return await _answered(request, intake, GITLAB, intake.gitlab)

    async def alertmanager(request: Request) -> Response:
        return await _answered(request, intake, ALERTMANAGER, intake.alertmanager)

    async def health(_: Request) -> Response:
        return await _health(store, dispatcher)

    async def metrics(_: Request) -> Response:
        return await _metrics(intake, store, dispatcher)

    return Starlette(
        routes=[
            Route("/gitlab", gitlab, methods=["POST"]),
            Route("/alertmanager", alertmanager, methods=["POST"]),
            Route("/healthz", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        lifespan=lifespan,
    )


async def _answered(request: Request, intake: Intake, source: str, take: Take) -> Response:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(intake.limits.answer_seconds):
            answer = await _taken(request, intake, take)
    except TimeoutError:
        answer = UNAVAILABLE
    except ClientDisconnect:
        answer = TOO_SLOW
    except Exception:
        # The traceback goes to the log; frames are not printed with their values.
        log.exception("a delivery of %s could not be taken", source)
        answer = UNAVAILABLE
    intake.metrics.deliveries.labels(source, answer.outcome).inc()
    intake.metrics.seconds.labels(source).observe(time.perf_counter() - began)
    return _response(answer)


async def _taken(request: Request, intake: Intake, take: Take) -> Answer:
    address = request.client.host if request.client else ""
    refusal = intake.admit(address)
    if refusal is not None:
        return refusal
    headers = [
        (name.decode("latin-1").lower(), value.decode("latin-1"))
        for name, value in request.scope["headers"]
    ]
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return WRONG_TYPE
    limit = intake.limits.body_bytes
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        return MALFORMED
    if len(length) > 15 or int(length) > limit:
        return TOO_LARGE
    try:
        async with asyncio.timeout(intake.limits.body_seconds):
            body = await _body(request, limit)
    except TimeoutError:
        return TOO_SLOW
    return TOO_LARGE if body is None else await take(address, headers, body)


async def _body(request: Request, limit: int) -> bytes | None:
    """Return the body; nothing as soon as it is larger than the limit."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _response(answer: Answer) -> Response:
    headers = {"cache-control": "no-store"}
    if answer.retry_after_seconds:
        headers["retry-after"] = str(answer.retry_after_seconds)
    if answer.status in (408, 413):
        # The rest of the body is still on its way: it is not waited for.
        headers["connection"] = "close"
    content = json.dumps({"status": answer.outcome, "detail": answer.text})
    return Response(content, answer.status, headers, "application/json")


async def _health(store: DeliveryStore, dispatcher: Dispatcher | None) -> Response:
    """Healthy when the store answers and, if it should, the dispatcher works."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await store.pending()
    except (LifecycleError, TimeoutError):
        return _response(Answer(503, "unhealthy", "the store of deliveries does not answer"))
    if dispatcher is not None and not dispatcher.is_working:
        return _response(Answer(503, "unhealthy", "the dispatcher does not work"))
    return _response(Answer(200, "ok", "takes deliveries"))


async def _metrics(intake: Intake, store: DeliveryStore, dispatcher: Dispatcher | None) -> Response:
    metrics = intake.metrics
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            metrics.pending.set(await store.pending())
            oldest = await store.oldest_pending(GITLAB)
    except (LifecycleError, TimeoutError):
        return _response(Answer(503, "unhealthy", "the store of deliveries does not answer"))
    metrics.oldest.set(0.0 if oldest is None else max(0.0, intake.clock() - oldest))
    metrics.is_dispatching.set(1 if dispatcher is not None and dispatcher.is_working else 0)
    return Response(metrics.text(), media_type=CONTENT_TYPE)
