"""`/v2/` and the token service: Harbor's rights and quotas in front of the real registry.

Why: an image is pushed and pulled by programs that speak the OCI distribution protocol, and what
they are answered must come from a real registry, after Harbor has said yes. Promises that a
manifest is recorded before its push is answered, and that blobs are handed on as they come.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lab.harbor.exceptions import (
    BadGateway,
    BadRequest,
    Denied,
    NotFound,
    NotSimulated,
    Unauthorized,
)
from lab.harbor.harbor import Harbor
from lab.harbor.models_access import SERVICE, Caller
from lab.harbor.models_artifacts import DIGEST_PREFIX, Manifest, in_words

MANIFEST_LIMIT_BYTES = 4 * 1024 * 1024
NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
PATH = re.compile(
    rf"/v2/(?P<name>{NAME})/(?P<kind>manifests|blobs/uploads|blobs|tags/list|referrers)"
    r"(?:/(?P<reference>[^/]*))?"
)
_HANDED_ON = (
    "accept",
    "content-length",
    "content-range",
    "content-type",
    "if-none-match",
    "range",
    "transfer-encoding",
)
_ANSWERED = (
    "accept-ranges",
    "content-length",
    "content-range",
    "content-type",
    "docker-content-digest",
    "docker-distribution-api-version",
    "docker-upload-uuid",
    "etag",
    "link",
    "location",
    "range",
)


@dataclass(frozen=True)
class Wish:
    """What a request of the distribution protocol is about."""

    method: str
    name: str
    kind: str
    reference: str
    query: str

    @property
    def action(self) -> str:
        """The right that it needs."""
        if self.method in ("GET", "HEAD") and self.kind != "blobs/uploads":
            return "pull"
        return "delete" if self.method == "DELETE" and self.kind == "manifests" else "push"

    @property
    def path(self) -> str:
        """The path at the registry behind."""
        tail = f"/{self.reference}" if self.reference or self.kind == "blobs/uploads" else ""
        query = f"?{self.query}" if self.query else ""
        return f"/v2/{self.name}/{self.kind}{tail}{query}"


class RegistryApi:
    """One ASGI endpoint for all of /v2/."""

    def __init__(self, harbor: Harbor) -> None:
        """Speak for `harbor`."""
        self._harbor = harbor

    # --- token service -----------------------------------------------------------------------

    async def token(self, request: Request) -> Response:
        """GET /service/token: a bearer token for the scopes that were asked for."""
        if request.query_params.get("service") != SERVICE:
            raise BadRequest(f"unable to handle service: {request.query_params.get('service')}")
        header = request.headers.get("authorization", "")
        harbor = self._harbor
        caller = harbor.logins.login(header, harbor.robots.all())
        texts = request.query_params.getlist("scope")
        scopes = [scope for text in texts for scope in text.split()]
        return JSONResponse(harbor.logins.issue(caller, scopes, harbor.may_in_registry))

    # --- rights ------------------------------------------------------------------------------

    def _challenge(self, request: Request, scopes: list[str]) -> str:
        if request.headers.get("authorization"):
            return 'Basic realm="harbor"'
        realm = f"{self._harbor.settings.external_url}/service/token"
        text = f'Bearer realm="{realm}",service="{SERVICE}"'
        return f'{text},scope="{" ".join(scopes)}"' if scopes else text

    def _caller(self, request: Request, scopes: list[str]) -> Caller:
        header = request.headers.get("authorization", "")
        try:
            caller = self._harbor.logins.login(header, self._harbor.robots.all())
        except Unauthorized as error:
            raise Unauthorized(error.message, self._challenge(request, scopes)) from None
        if not caller.is_authenticated:
            raise Unauthorized("unauthorized", self._challenge(request, scopes))
        return caller

    def _require(self, request: Request, wish: Wish) -> Caller:
        wanted = [(wish.name, wish.action)]
        source = parse_qs(wish.query).get("from", [""])[0]
        if wish.kind == "blobs/uploads" and source:
            wanted.append((source, "pull"))
        scopes = [
            f"repository:{name}:{'pull,push' if action == 'push' else action}"
            for name, action in wanted
        ]
        caller = self._caller(request, scopes)
        for name, action in wanted:
            project = name.partition("/")[0]
            if self._harbor.projects.named(project) is None:
                # Harbor tells it as a refusal, and once more as its own cause.
                text = f"project {project} not found"
                raise Unauthorized(f"{text}: {text}")
            if not self._harbor.may_in_registry(caller, name, action):
                text = f"unauthorized to access repository: {name}, action: {action}"
                raise Unauthorized(f"{text}: {text}", self._challenge(request, scopes))
        return caller

    # --- requests ----------------------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        """Answer a request below /v2/."""
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        if path in ("/v2/", "/v2"):
            self._caller(request, [])
            return JSONResponse({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})
        if path == "/v2/_catalog":
            return self._catalog(request)
        found = PATH.fullmatch(unquote(path))
        if found is None or "/" not in found["name"]:
            raise NotSimulated(f"{request.method} {path}")
        wish = Wish(
            request.method,
            found["name"],
            found["kind"],
            found["reference"] or "",
            request.url.query,
        )
        self._require(request, wish)
        await self._harbor.settle_pushes()
        match wish.kind:
            case "tags/list":
                return self._tags(request, wish)
            case "manifests":
                return await self._manifest(request, wish)
            case "blobs" if wish.method in ("GET", "HEAD"):
                return await self._hand_on(request, wish)
            case "blobs/uploads" if wish.method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
                return await self._hand_on(request, wish)
        raise NotSimulated(f"{request.method} {path}")

    def _catalog(self, request: Request) -> Response:
        if not self._caller(request, []).is_administrator:
            raise Unauthorized("unauthorized to list catalog", 'Basic realm="harbor"')
        return JSONResponse({"repositories": self._harbor.artifacts.all_names()})

    def _tags(self, request: Request, wish: Wish) -> Response:
        artifacts = self._harbor.artifacts
        artifacts.repository(wish.name)
        names = sorted(name for each in artifacts.of(wish.name) for name in each["tags"])
        last, most = request.query_params.get("last", ""), request.query_params.get("n", "")
        names = [name for name in names if name > last]
        if most.isdigit():
            names = names[: int(most)]
        return JSONResponse({"name": wish.name, "tags": names})

    async def _manifest(self, request: Request, wish: Wish) -> Response:
        artifacts = self._harbor.artifacts
        if wish.method == "PUT":
            return await self._push(request, wish)
        if wish.method not in ("GET", "HEAD", "DELETE"):
            raise NotSimulated(f"{wish.method} of a manifest")
        artifact = artifacts.get(wish.name, wish.reference)
        if wish.method == "DELETE":
            if not wish.reference.startswith(DIGEST_PREFIX):
                raise BadRequest("a manifest is deleted by its digest")
            await self._harbor.delete_artifact(artifact)
            return Response(status_code=202)
        by_digest = Wish(wish.method, wish.name, wish.kind, artifact["digest"], "")
        answer = await self._hand_on(request, by_digest)
        if wish.method == "GET" and answer.status_code == 200:
            artifacts.pulled(artifact)
        return answer

    async def _push(self, request: Request, wish: Wish) -> Response:
        body = await request.body()
        if len(body) > MANIFEST_LIMIT_BYTES:
            raise BadRequest("manifest invalid: it is larger than 4 MiB")
        media_type = request.headers.get("content-type", "")
        manifest = Manifest.parse(body, media_type)
        project = self._harbor.projects.named(wish.name.partition("/")[0])
        if project is None:
            raise NotFound(f"project {wish.name.partition('/')[0]} not found")
        number, artifacts = project["project_id"], self._harbor.artifacts
        async with self._harbor.pushes[number]:
            self._check_quota(self._harbor.projects.get(str(number), "false"), manifest)
            note = artifacts.begin(wish.name, wish.reference, media_type)
            try:
                answer = await self._harbor.registry.put(
                    wish.path, content=body, headers={"Content-Type": media_type}
                )
            except httpx.HTTPError:
                raise BadGateway from None
            if answer.status_code == 201:
                artifacts.record(number, wish.name, wish.reference, manifest)
            artifacts.end(note)
        return Response(answer.content, answer.status_code, _answered(answer))

    def _check_quota(self, project: dict[str, object], manifest: Manifest) -> None:
        limit, number = int(str(project["storage_limit"])), int(str(project["project_id"]))
        added = self._harbor.artifacts.added_bytes(number, manifest)
        used = self._harbor.artifacts.used_bytes(number)
        if limit != -1 and added > 0 and used + added > limit:
            raise Denied(
                f"adding {in_words(added)} of storage resource, which when updated to current "
                f"usage of {in_words(used)} will exceed the configured upper limit of "
                f"{in_words(limit)}."
            )

    async def _hand_on(self, request: Request, wish: Wish) -> Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() in _HANDED_ON}
        has_body = wish.method in ("POST", "PATCH", "PUT")
        sent = self._harbor.registry.build_request(
            wish.method,
            wish.path,
            headers=headers,
            content=request.stream() if has_body else None,
        )
        try:
            answer = await self._harbor.registry.send(sent, stream=True)
        except httpx.HTTPError:
            raise BadGateway from None
        if wish.method == "HEAD":
            await answer.aclose()
            return Response(status_code=answer.status_code, headers=_answered(answer))
        return StreamingResponse(_body(answer), answer.status_code, _answered(answer))


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def _answered(answer: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.lower() in _ANSWERED}
