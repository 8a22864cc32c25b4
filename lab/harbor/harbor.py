"""All that the simulated Harbor holds, and the rights that every act is checked against."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lab.harbor.calls import Call
from lab.harbor.exceptions import BadGateway, Forbidden, NotFound
from lab.harbor.models_access import Caller, Logins
from lab.harbor.models_artifacts import Artifacts, Manifest
from lab.harbor.models_projects import Labels, Projects, Sequence
from lab.harbor.models_robots import Robots
from lab.hypervisor.store import Store

VERSION = "v2.13.2-lab"
REGISTRY_SECONDS = 60.0
MANIFEST_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)


@dataclass(frozen=True)
class Settings:
    """Where it keeps its state, and what is around it."""

    state_directory: Path
    administrator: Mapping[str, str]
    registry_url: str
    external_url: str


class Harbor:
    """One Harbor."""

    def __init__(self, settings: Settings) -> None:
        """Take up the state that an earlier process left."""
        self.settings = settings
        self._store = Store(settings.state_directory / "harbor.db")
        sequence = Sequence(self._store)
        self.projects = Projects(self._store, sequence)
        self.labels = Labels(self._store, sequence)
        self.robots = Robots(self._store, sequence)
        self.artifacts = Artifacts(self._store, sequence)
        self.logins = Logins(self._store, settings.administrator)
        self.registry = httpx.AsyncClient(
            base_url=settings.registry_url,
            timeout=REGISTRY_SECONDS,
            trust_env=False,
            verify=ssl.create_default_context() if "https" in settings.registry_url else False,
        )
        self.pushes: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One manifest at a time per project: a quota is looked at and used in one act."""

    async def close(self) -> None:
        """Close what is open; nothing is pending."""
        await self.registry.aclose()
        self._store.close()

    # --- rights ------------------------------------------------------------------------------

    def require(self, call: Call, place: str, resource: str, action: str) -> None:
        """Refuse who may not do this to a project (`/` is the system).

        Raises:
            Unauthorized, Forbidden.
        """
        if call.caller.may(place, resource, action):
            return
        project = self.projects.named(place)
        is_public = project is not None and project["metadata"].get("public") == "true"
        if is_public and action in ("read", "list"):
            return
        call.require_login()
        raise Forbidden

    def project_of(self, call: Call, resource: str, action: str) -> dict[str, Any]:
        """The project that a path names, once the caller may do this to it."""
        header = call.headers.get("x-is-resource-name", "")
        try:
            project = self.projects.get(call.names["project"], header)
        except NotFound:
            # The anonymous learn nothing, not even that there is no such project.
            call.require_login()
            raise
        self.require(call, project["name"], resource, action)
        return project

    def may_in_registry(self, caller: Caller, repository: str, action: str) -> bool:
        """Whether a caller may do this in a repository; anybody may pull from a public project."""
        if caller.may_in_registry(repository, action):
            return True
        project = self.projects.named(repository.partition("/")[0])
        return (
            action == "pull" and project is not None and project["metadata"].get("public") == "true"
        )

    # --- acts on several models --------------------------------------------------------------

    def delete_project(self, project: dict[str, Any]) -> None:
        """Remove a project with its robots and labels, itself last: a kill leaves it in sight."""
        for robot in self.robots.of(project["project_id"]):
            self.robots.delete(robot)
        for label in self.labels.of(project["project_id"]):
            self.labels.delete(label)
        self.projects.delete(project)

    async def delete_artifact(self, artifact: Mapping[str, Any]) -> None:
        """Remove an artifact, and its manifest from the registry behind."""
        path = f"/v2/{artifact['repository']}/manifests/{artifact['digest']}"
        answer = await self.behind("DELETE", path)
        if answer.status_code not in (202, 404):
            raise BadGateway
        self.artifacts.delete(artifact)

    async def behind(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Ask the registry behind, for something small.

        Raises:
            BadGateway: it does not answer.
        """
        try:
            return await self.registry.request(method, path, headers=dict(headers or {}))
        except httpx.HTTPError:
            raise BadGateway from None

    async def settle_pushes(self) -> None:
        """Find out whether the pushes were done that a killed process had begun."""
        for key, push in list(self.artifacts.unanswered.items()):
            name, reference = push["repository"], push["reference"]
            headers = {"Accept": ", ".join(MANIFEST_TYPES)}
            answer = await self.behind("GET", f"/v2/{name}/manifests/{reference}", headers)
            project = self.projects.named(name.partition("/")[0])
            if answer.status_code == 200 and project is not None:
                manifest = Manifest.parse(answer.content, push["media_type"])
                self.artifacts.record(project["project_id"], name, reference, manifest)
            elif answer.status_code not in (200, 404):
                raise BadGateway
            self.artifacts.end(key)
