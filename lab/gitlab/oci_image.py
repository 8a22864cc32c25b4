"""Builds a tiny image of one layer and pushes it by the OCI distribution API.

Why: what the pipeline delivers must be a real artefact that a registry has checked. Promises: equal
content gives equal digests; what is there is not sent again. Refuses to print what it logs in with.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

import httpx

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT_SECONDS = 30.0


class RegistryRefused(Exception):
    """The registry did not take the image; the text says why."""


@dataclass(frozen=True)
class _Part:
    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content)}


def build(content: bytes, labels: Mapping[str, str]) -> tuple[list[_Part], bytes]:
    """The parts of an image with one layer, and its manifest."""
    layer = _Part(_LAYER, gzip.compress(content, mtime=0))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": labels.get("org.opencontainers.image.created", "1970-01-01T00:00:00Z"),
        "config": {"Labels": dict(labels), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
        "history": [{"created_by": "the lab's stand-in runner"}],
    }
    head = _Part(_CONFIG, json.dumps(config, sort_keys=True).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": head.descriptor,
        "layers": [layer.descriptor],
    }
    return [head, layer], json.dumps(manifest, sort_keys=True).encode()


class _Registry:
    """One repository of a registry, with the login that it asks for."""

    def __init__(
        self, client: httpx.AsyncClient, base: str, name: str, login: tuple[str, str]
    ) -> None:
        self._client = client
        self._base = base
        self.name = name
        self._login = login
        self._header = ""

    async def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        address = urljoin(self._base, url)
        for _ in range(2):
            if self._header:
                headers["Authorization"] = self._header
            answer = await self._client.request(method, address, headers=headers, **options)
            if answer.status_code != 401:
                return answer
            await self._log_in(answer.headers.get("www-authenticate", ""))
        raise RegistryRefused(
            f"Unable to push the image: the registry refused the login (401) for {self.name}."
        )

    async def _log_in(self, challenge: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            self._header = "Basic " + base64.b64encode(":".join(self._login).encode()).decode()
            return
        asked = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or "realm" not in asked:
            raise RegistryRefused(
                "Unable to push the image: the registry asks for no login that is known."
            )
        realm = asked.pop("realm")
        asked.setdefault("scope", f"repository:{self.name}:pull,push")
        answer = await self._client.get(realm, params=asked, auth=self._login)
        if answer.status_code != 200:
            raise RegistryRefused(
                f"Unable to push the image: the registry refused the login ({answer.status_code})."
            )
        told = answer.json()
        self._header = f"Bearer {told.get('token') or told['access_token']}"

    async def upload(self, part: _Part) -> None:
        """Send a part unless it is there."""
        if (await self.request("HEAD", f"/v2/{self.name}/blobs/{part.digest}")).status_code == 200:
            return
        begun = await self.request("POST", f"/v2/{self.name}/blobs/uploads/")
        _require(begun, 202, f"begin an upload to {self.name}")
        where = httpx.URL(urljoin(self._base, begun.headers["location"]))
        done = await self.request(
            "PUT",
            str(where.copy_merge_params({"digest": part.digest})),
            content=part.content,
            headers={"Content-Type": "application/octet-stream"},
        )
        _require(done, 201, f"upload a layer to {self.name}")


def _require(answer: httpx.Response, expected: int, act: str) -> None:
    if answer.status_code != expected:
        try:
            told = "; ".join(str(each.get("message", "")) for each in answer.json()["errors"])
        except (ValueError, KeyError, TypeError, AttributeError):
            told = answer.text[:200]
        raise RegistryRefused(
            f"Unable to {act}: the registry answers {answer.status_code}. {told}".strip()
        )


@dataclass(frozen=True)
class Login:
    """How to log in at a registry, and the CA that its certificate is checked against."""

    username: str
    password: str = field(repr=False)
    ca_file: str = ""


@contextlib.asynccontextmanager
async def _registry(image: str, login: Login) -> AsyncIterator[tuple[_Registry, str]]:
    """The repository of an image named `host/project/name:tag`, and the tag."""
    host, _, rest = image.partition("/")
    name, _, tag = rest.rpartition(":")
    # A registry on the loopback address speaks plain HTTP, as container tools take it to do.
    is_plain = host.split(":")[0] in ("127.0.0.1", "localhost") and not login.ca_file
    verify = False if is_plain else ssl.create_default_context(cafile=login.ca_file or None)
    try:
        async with httpx.AsyncClient(
            verify=verify, trust_env=False, timeout=_TIMEOUT_SECONDS
        ) as client:
            base = f"{'http' if is_plain else 'https'}://{host}"
            yield _Registry(client, base, name, (login.username, login.password)), tag
    except (httpx.HTTPError, OSError) as error:
        text = f"Unable to reach the registry {host}: {type(error).__name__}."
        raise RegistryRefused(text) from error


async def _put_manifest(registry: _Registry, tag: str, manifest: bytes) -> str:
    done = await registry.request(
        "PUT",
        f"/v2/{registry.name}/manifests/{tag}",
        content=manifest,
        headers={"Content-Type": _MANIFEST},
    )
    _require(done, 201, f"push {registry.name}:{tag}")
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


async def push_image(image: str, login: Login, *, content: bytes, labels: Mapping[str, str]) -> str:
    """Push an image with these files and labels; returns its digest."""
    parts, manifest = build(content, labels)
    async with _registry(image, login) as (registry, tag):
        for part in parts:
            await registry.upload(part)
        return await _put_manifest(registry, tag, manifest)


async def copy_image(source: str, target: str, login: Login) -> str:
    """Give an image of a repository a second tag there; returns its digest."""
    if source.rpartition(":")[0] != target.rpartition(":")[0]:
        raise RegistryRefused("Copies between repositories are not simulated by the lab's GitLab.")
    new_tag = target.rpartition(":")[2]
    async with _registry(source, login) as (registry, tag):
        found = await registry.request(
            "GET", f"/v2/{registry.name}/manifests/{tag}", headers={"Accept": _MANIFEST}
        )
        _require(found, 200, f"read {registry.name}:{tag}")
        return await _put_manifest(registry, new_tag, found.content)
