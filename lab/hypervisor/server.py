"""The HTTP side: envelopes, forms, status lines, injected API faults, and the control socket.

Why: clients of Proxmox VE read error texts from the HTTP status line, which ASGI has no place for,
and send forms, repeated fields and trailing slashes; all that is dealt with here, once.

Promises: an answer is sent only after the change it reports is stored. A body is never logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import h11
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as HttpRoute
from uvicorn.protocols.http.h11_impl import H11Protocol

from lab.hypervisor import models_power, urls
from lab.hypervisor.calls import Call, Reply, Route
from lab.hypervisor.exceptions import ApiError, AuthenticationError, ParameterError
from lab.hypervisor.faults import Fault, UnknownFault
from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.models_access import Token
from lab.hypervisor.models_tasks import TaskLog

logger = logging.getLogger(__name__)
REASON_HEADER = b"x-lab-reason"
DROP_HEADER = b"x-lab-drop"
METHODS = ["GET", "POST", "PUT", "DELETE"]


class _ReasonConnection(h11.Connection):
    """Moves our private headers out of the answer: into its status line, or into its death."""

    transport: asyncio.Transport | None = None

    def send(self, event: Any) -> Any:
        if not isinstance(event, h11.Response):
            return super().send(event)
        headers = event.headers.raw_items()
        reasons = [value for name, value in headers if name.lower() == REASON_HEADER]
        kept = [(name, value) for name, value in headers if name.lower() != REASON_HEADER]
        reason = reasons[0] if reasons else event.reason
        data = super().send(
            h11.Response(status_code=event.status_code, headers=kept, reason=reason)
        )
        if self.transport is not None and any(n.lower() == DROP_HEADER for n, _ in headers):
            self.transport.abort()
            return b""
        return data


class ReasonProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with status lines of our own, and with answers that never come."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        limit = self.config.h11_max_incomplete_event_size or 64 * 1024
        self.conn = _ReasonConnection(h11.SERVER, limit)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the connection know what to cut."""
        super().connection_made(transport)
        self.conn.transport = transport  # type: ignore[attr-defined]


def _error_response(error: ApiError) -> Response:
    body: dict[str, Any] = {"data": None, "message": f"{error.message}\n"}
    if error.errors is not None:
        body["errors"] = error.errors
    line = " ".join(error.message.split()).encode("latin-1", "replace")
    response = JSONResponse(body, status_code=error.status)
    response.raw_headers.append((REASON_HEADER, line))
    return response


def _dropped() -> Response:
    return Response(headers={DROP_HEADER.decode(): "1"})


async def _raw_parameters(request: Request) -> Mapping[str, str | list[str]]:
    pairs = parse_qsl(request.url.query, keep_blank_values=True)
    body = await request.body() if request.method in ("POST", "PUT") else b""
    if body and "json" in request.headers.get("content-type", ""):
        document = json.loads(body)
        values = {key: value for key, value in document.items() if value is not None}
        return {key: _as_text(value) for key, value in values.items()}
    if body:
        pairs += parse_qsl(body.decode(), keep_blank_values=True)
    found: dict[str, str | list[str]] = {}
    for key, value in pairs:
        earlier = found.get(key)
        if earlier is None:
            found[key] = value
        else:
            found[key] = [*([earlier] if isinstance(earlier, str) else earlier), value]
    return found


def _as_text(value: Any) -> str | list[str]:
    if isinstance(value, bool):
        return str(int(value))
    return [str(part) for part in value] if isinstance(value, list) else str(value)


class Api:
    """One ASGI endpoint for all of /api2/json."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor

    async def answer(self, request: Request) -> Response:
        """Answer a request, unless an injected fault answers first."""
        if self._hypervisor.is_refusing(request.scope["server"][0]):
            return _dropped()
        path = "/" + request.path_params["path"].strip("/")
        fault = self._hypervisor.faults.take("api-error", path=path, method=request.method)
        if fault is not None and fault.parameters.get("when", "before") == "before":
            return await _injected(fault)
        response = await self._perform(request, path)
        return response if fault is None else await _injected(fault)

    async def _perform(self, request: Request, path: str) -> Response:
        try:
            token = self._authenticate(request)
            route, names = urls.find(request.method, path)
            params = route.schema.read(await _raw_parameters(request))
            call = Call(self._hypervisor, token, names, params)
            self._check(call, route)
            data = await route.handler(call)
        except ApiError as error:
            return _error_response(error)
        except (UnicodeDecodeError, json.JSONDecodeError):
            return _error_response(ParameterError({"body": "unable to decode the request's body"}))
        except GuestRuntimeError as error:
            return _error_response(ApiError(str(error)))
        except Exception as error:
            logger.exception("Unable to answer %s %s: a mistake in the lab", request.method, path)
            text = f"the lab's hypervisor failed: {type(error).__name__}"
            return _error_response(ApiError(text))
        if isinstance(data, Reply):
            return JSONResponse({"data": data.data, "total": data.total})
        return JSONResponse({"data": data})

    def _authenticate(self, request: Request) -> Token:
        token = self._hypervisor.access.authenticate(request.headers.get("authorization"))
        if self._hypervisor.faults.take("token-revoked", token=token.identifier):
            raise AuthenticationError(f"no such token '{token.name}' for user '{token.user}'")
        return token

    def _check(self, call: Call, route: Route) -> None:
        if "node" in call.path:
            self._hypervisor.require_node(call.node)
        if route.needs is not None:
            template, privileges = route.needs
            call.require(template.format(**call.path), privileges)
        if route.method != "GET" and route.needs_quorum:
            self._hypervisor.require_quorum()


async def _injected(fault: Fault) -> Response:
    status = str(fault.parameters.get("status", "500"))
    await asyncio.sleep(fault.parameters.get("seconds", 30 if status == "timeout" else 0))
    if status in ("timeout", "reset"):
        return _dropped()
    texts = {"595": "Connection refused", "596": "Connection timed out"}
    text = texts.get(status, "got timeout" if status == "500" else "Service Unavailable")
    return _error_response(ApiError(text, status=int(status)))


async def _elsewhere(request: Request) -> Response:
    text = f"{request.url.path} (the web interface) is not simulated by the lab's hypervisor"
    return PlainTextResponse(text, status_code=501)


def application(hypervisor: Hypervisor) -> Starlette:
    """The ASGI application."""
    api = Api(hypervisor)
    return Starlette(
        routes=[
            HttpRoute("/api2/json/{path:path}", api.answer, methods=METHODS),
            HttpRoute("/{path:path}", _elsewhere, methods=METHODS),
        ]
    )


async def serve_faults(hypervisor: Hypervisor) -> asyncio.Server:
    """The control socket: one JSON line in, one out."""
    path = hypervisor.settings.state_directory / "faults.sock"
    path.unlink(missing_ok=True)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(await _control(hypervisor, line)).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(talk, path)
    path.chmod(0o600)
    return server


async def _control(hypervisor: Hypervisor, line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
        action = message["action"]
        if action == "set":
            parameters = {key: str(value) for key, value in message.get("parameters", {}).items()}
            fault = hypervisor.faults.set(message["name"], parameters)
            await hypervisor.apply_fault(fault)
        elif action == "clear":
            _heal(hypervisor, hypervisor.faults.clear(message.get("name")))
        elif action == "unlock":
            _unlock(hypervisor, int(message["vmid"]))
        elif action != "list":
            raise UnknownFault(f"Unknown action '{action}'. Known: clear, list, set, unlock.")
    except (UnknownFault, KeyError, TypeError, ValueError) as error:
        return {"ok": False, "error": str(error)}
    return {"ok": True, "faults": [fault.document() for fault in hypervisor.faults.all()]}


def _heal(hypervisor: Hypervisor, cleared: list[Fault]) -> None:
    """A node that comes back boots its machines, as its `onboot` settings say."""
    for fault in cleared:
        if fault.name == "node-offline" and not fault.parameters.get("keep_guests"):
            _start_all(hypervisor, str(fault.parameters["node"]))


def _start_all(hypervisor: Hypervisor, node: str) -> None:
    async def work(log: TaskLog) -> None:
        await models_power.start_all(hypervisor, node, log)

    hypervisor.tasks.start(node, "startall", "", "root@pam", work)


def _unlock(hypervisor: Hypervisor, vmid: int) -> None:
    """What an administrator's `qm unlock` does; the API itself has no such act."""
    vm = hypervisor.find(vmid)
    if vm is None:
        raise UnknownFault(f"Unable to unlock VM {vmid}: there is no such machine.")
    hypervisor.unlock_config(vm)
