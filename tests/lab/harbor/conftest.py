"""A running Harbor, and a small client of the OCI distribution protocol that pushes and pulls."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.bare_harbor import BareHarbor, bare_harbor

IMAGE = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
API = "/api/v2.0"


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass
class OciClient:
    """Pushes and pulls as docker and podman do: challenged, it fetches a bearer token."""

    http: httpx.Client
    login: tuple[str, str]
    tokens: dict[str, str] = field(default_factory=dict)

    def request(self, method: str, path: str, **named: Any) -> httpx.Response:
        headers = dict(named.pop("headers", {}))
        scope = path.split("/manifests/")[0].split("/blobs/")[0]
        if scope in self.tokens:
            headers["Authorization"] = f"Bearer {self.tokens[scope]}"
        answer = self.http.request(method, path, headers=headers, auth=None, **named)
        asked = answer.headers.get("www-authenticate", "")
        if answer.status_code != 401 or not asked.startswith("Bearer") or scope in self.tokens:
            return answer
        asked_for = dict(CHALLENGE.findall(asked))
        wanted = {"service": asked_for["service"]}
        if "scope" in asked_for:
            wanted["scope"] = asked_for["scope"].replace(":pull", ":pull,push", 1)
        given = self.http.get(asked_for["realm"], params=wanted, auth=self.login)
        if given.status_code != 200:
            return given
        self.tokens[scope] = given.json()["token"]
        return self.request(method, path, headers=headers, **named)

    def push_blob(self, repository: str, content: bytes) -> httpx.Response:
        name = digest(content)
        if self.request("HEAD", f"/v2/{repository}/blobs/{name}").status_code == 200:
            return httpx.Response(201)
        begun = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        if begun.status_code != 202:
            return begun
        half = len(content) // 2
        sent = self.request(
            "PATCH",
            begun.headers["location"],
            content=content[:half],
            headers={"Content-Type": "application/octet-stream"},
        )
        assert sent.status_code == 202, sent.text
        there = httpx.URL(sent.headers["location"]).copy_merge_params({"digest": name})
        return self.request("PUT", str(there), content=content[half:])

    def push(self, repository: str, tag: str, layer: bytes) -> httpx.Response:
        """Push an image of one layer; returns the first answer that is no success."""
        config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
        for blob in (config, layer):
            answer = self.push_blob(repository, blob)
            if answer.status_code != 201:
                return answer
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": IMAGE,
                "config": {"mediaType": CONFIG, "digest": digest(config), "size": len(config)},
                "layers": [{"mediaType": LAYER, "digest": digest(layer), "size": len(layer)}],
            }
        ).encode()
        path = f"/v2/{repository}/manifests/{tag}"
        return self.request("PUT", path, content=manifest, headers={"Content-Type": IMAGE})

    def pull(self, repository: str, reference: str) -> bytes | httpx.Response:
        """Return the layer of an image, or the answer that is no success."""
        answer = self.request(
            "GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": IMAGE}
        )
        if answer.status_code != 200:
            return answer
        assert digest(answer.content) == answer.headers["docker-content-digest"]
        layer = self.request(
            "GET", f"/v2/{repository}/blobs/{answer.json()['layers'][0]['digest']}"
        )
        return layer.content if layer.status_code == 200 else layer


@dataclass
class Trial:
    """A Harbor with shortcuts for what most tests need."""

    harbor: BareHarbor
    admin: httpx.Client

    def oci(self, username: str = "", password: str = "") -> OciClient:
        held = self.harbor.administrator
        login = (username, password) if username else (held["username"], held["password"])
        return OciClient(self.harbor.client(*login), login)

    def project(self, **fields: Any) -> str:
        """Make a project of a new name."""
        name = f"shop-{secrets.token_hex(4)}"
        answer = self.admin.post(f"{API}/projects", json={"project_name": name, **fields})
        assert answer.status_code == 201, answer.text
        return name

    def robot(self, project: str, *actions: str, **fields: Any) -> dict[str, Any]:
        """Make a robot of a project that may do these to its repositories."""
        wish = {
            "name": f"r{secrets.token_hex(3)}",
            "level": "project",
            "duration": -1,
            "permissions": [
                {
                    "kind": "project",
                    "namespace": project,
                    "access": [{"resource": "repository", "action": each} for each in actions],
                }
            ],
        }
        answer = self.admin.post(f"{API}/robots", json=wish | fields)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def used(self, project: str) -> int:
        summary = self.admin.get(f"{API}/projects/{project}/summary").json()
        return int(summary["quota"]["used"]["storage"])


@pytest.fixture(scope="session")
def running_harbor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareHarbor]:
    with bare_harbor(tmp_path_factory.mktemp("harbor")) as harbor:
        yield harbor


@pytest.fixture
def trial(running_harbor: BareHarbor) -> Iterator[Trial]:
    with running_harbor.client() as admin:
        yield Trial(running_harbor, admin)


@pytest.fixture
def own_trial(tmp_path: Path) -> Iterator[Trial]:
    """A Harbor of the test's own, that it may kill."""
    with bare_harbor(tmp_path) as harbor, harbor.client() as admin:
        yield Trial(harbor, admin)


@pytest.fixture
def error_of() -> Callable[[httpx.Response], tuple[int, str, str]]:
    """Return status, code and message of an answer."""

    def read(answer: httpx.Response) -> tuple[int, str, str]:
        error = answer.json()["errors"][0]
        return answer.status_code, error["code"], error["message"]

    return read
