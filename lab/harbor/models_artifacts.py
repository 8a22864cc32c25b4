"""Repositories, artifacts and tags, and how much space of a project they take.

Why: Harbor answers for tags and quotas from its own records and asks the registry behind for bytes
only. Promises that space counts each blob of a project once, and that a push whose answer was never
sent is found again after a kill. Refuses nothing: rights are checked before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.harbor.exceptions import BadRequest, Conflict, NotFound
from lab.harbor.models_projects import Sequence, now
from lab.hypervisor.store import Store

DIGEST_PREFIX = "sha256:"
IMAGE_CONFIGS = (
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.config.v1+json",
)


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was pushed."""

    digest: str
    size: int
    media_type: str
    config_type: str
    blobs: Mapping[str, int]
    """Digest -> size of what it names, its configuration among it."""
    children: tuple[str, ...]
    """Digests of the manifests that an index names."""

    @classmethod
    def parse(cls, body: bytes, media_type: str) -> Manifest:
        """Read a manifest or an index.

        Raises:
            BadRequest: it is neither.
        """
        try:
            document = json.loads(body)
            config = document.get("config") or {}
            named = [config, *document.get("layers", [])] if config else document.get("layers", [])
            blobs = {str(each["digest"]): int(each["size"]) for each in named}
            children = tuple(str(each["digest"]) for each in document.get("manifests", []))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadRequest("manifest invalid") from None
        return cls(
            digest=DIGEST_PREFIX + hashlib.sha256(body).hexdigest(),
            size=len(body),
            media_type=media_type or str(document.get("mediaType", "")),
            config_type=str(config.get("mediaType", "")),
            blobs=blobs,
            children=children,
        )


class Artifacts:
    """All repositories with their artifacts."""

    def __init__(self, store: Store, sequence: Sequence) -> None:
        """Take up what is stored."""
        self._store = store
        self._sequence = sequence
        self._repositories = store.load("repository")
        self._artifacts = store.load("artifact")
        self.unanswered = dict(store.load("push"))
        """Pushes of an earlier process that had begun; whether they were done is not known."""

    # --- repositories ------------------------------------------------------------------------

    def repositories(self, project_id: int) -> list[dict[str, Any]]:
        """The repositories of a project, by name."""
        found = [each for each in self._repositories.values() if each["project_id"] == project_id]
        return sorted(found, key=lambda each: str(each["name"]))

    def all_names(self) -> list[str]:
        """The names of all repositories."""
        return sorted(self._repositories)

    def repository(self, name: str) -> dict[str, Any]:
        """One repository by its full name.

        Raises:
            NotFound: in Harbor's words.
        """
        if name not in self._repositories:
            raise NotFound(f"repository {name} not found")
        return self._repositories[name]

    def delete_repository(self, name: str) -> None:
        """Remove a repository with all its artifacts."""
        for artifact in self.of(name):
            self.delete(artifact)
        self._store.delete("repository", name)
        self._repositories.pop(name, None)

    # --- artifacts ---------------------------------------------------------------------------

    def of(self, repository: str) -> list[dict[str, Any]]:
        """The artifacts of a repository, newest first."""
        found = [each for each in self._artifacts.values() if each["repository"] == repository]
        return sorted(found, key=lambda each: -int(each["id"]))

    def get(self, repository: str, reference: str) -> dict[str, Any]:
        """An artifact by tag or digest.

        Raises:
            NotFound: in Harbor's words.
        """
        if reference.startswith(DIGEST_PREFIX):
            found = self._artifacts.get(f"{repository}@{reference}")
        else:
            found = next((each for each in self.of(repository) if reference in each["tags"]), None)
        if found is None:
            separator = "@" if reference.startswith(DIGEST_PREFIX) else ":"
            raise NotFound(f"artifact {repository}{separator}{reference} not found")
        return found

    def begin(self, repository: str, reference: str, media_type: str) -> str:
        """Note that a push begins, before the registry is asked; returns the note's key."""
        key = f"{repository} {reference}"
        body = {"repository": repository, "reference": reference, "media_type": media_type}
        self._store.put("push", key, body)
        return key

    def end(self, key: str) -> None:
        """Take the note of a push away."""
        self._store.delete("push", key)
        self.unanswered.pop(key, None)

    def record(self, project_id: int, repository: str, reference: str, manifest: Manifest) -> None:
        """Record what the registry has taken."""
        if repository not in self._repositories:
            time = now()
            body = {
                "id": self._sequence.next("repository"),
                "name": repository,
                "project_id": project_id,
                "creation_time": time,
                "update_time": time,
                "pull_count": 0,
            }
            self._store.put("repository", repository, body)
            self._repositories[repository] = body
        key = f"{repository}@{manifest.digest}"
        if key not in self._artifacts:
            self._put(self._made(project_id, repository, manifest))
        if not reference.startswith(DIGEST_PREFIX):
            self.tag(self._artifacts[key], reference, is_moved=True)

    def _made(self, project_id: int, repository: str, manifest: Manifest) -> dict[str, Any]:
        children = [self._artifacts.get(f"{repository}@{digest}") for digest in manifest.children]
        is_image = manifest.config_type in IMAGE_CONFIGS or bool(manifest.children)
        size = manifest.size + sum(manifest.blobs.values())
        return {
            "id": self._sequence.next("artifact"),
            "repository": repository,
            "project_id": project_id,
            "digest": manifest.digest,
            "manifest_media_type": manifest.media_type,
            "media_type": manifest.config_type or manifest.media_type,
            "type": "IMAGE" if is_image else "UNKNOWN",
            "own_size": manifest.size,
            "size": size + sum(int(each["size"]) for each in children if each),
            "blobs": dict(manifest.blobs),
            "children": list(manifest.children),
            "tags": {},
            "push_time": now(),
            "pull_time": "0001-01-01T00:00:00.000Z",
        }

    def _put(self, artifact: dict[str, Any]) -> None:
        key = f"{artifact['repository']}@{artifact['digest']}"
        self._store.put("artifact", key, artifact)
        self._artifacts[key] = artifact

    def delete(self, artifact: Mapping[str, Any]) -> None:
        """Remove an artifact and its tags."""
        key = f"{artifact['repository']}@{artifact['digest']}"
        self._store.delete("artifact", key)
        self._artifacts.pop(key, None)

    def pulled(self, artifact: dict[str, Any]) -> None:
        """Record that an artifact was pulled."""
        self._put(artifact | {"pull_time": now()})
        name = artifact["repository"]
        held = self._repositories[name]
        self._repositories[name] = held | {"pull_count": held["pull_count"] + 1}
        self._store.put("repository", name, self._repositories[name])

    # --- tags --------------------------------------------------------------------------------

    def tag(self, artifact: dict[str, Any], name: str, *, is_moved: bool = False) -> None:
        """Give an artifact a tag.

        Raises:
            Conflict: another artifact has it, unless it `is_moved`.
        """
        for other in self.of(artifact["repository"]):
            if name in other["tags"]:
                if other["digest"] == artifact["digest"] and is_moved:
                    return
                if not is_moved:
                    raise Conflict(f"tag {name} already exists")
                self.untag(other, name)
        entry = {"id": self._sequence.next("tag"), "push_time": now()}
        self._put(artifact | {"tags": artifact["tags"] | {name: entry}})

    def untag(self, artifact: dict[str, Any], name: str) -> None:
        """Take a tag away.

        Raises:
            NotFound.
        """
        if name not in artifact["tags"]:
            raise NotFound(f"tag {name} attached to artifact {artifact['id']} not found")
        self._put(artifact | {"tags": {k: v for k, v in artifact["tags"].items() if k != name}})

    # --- space -------------------------------------------------------------------------------

    def used_bytes(self, project_id: int) -> int:
        """The space that a project takes."""
        return sum(self._blobs(project_id).values())

    def added_bytes(self, project_id: int, manifest: Manifest) -> int:
        """The space that a manifest and its blobs would add."""
        held = self._blobs(project_id)
        wanted = dict(manifest.blobs) | {manifest.digest: manifest.size}
        return sum(size for digest, size in wanted.items() if digest not in held)

    def _blobs(self, project_id: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for each in self._artifacts.values():
            if each["project_id"] == project_id:
                found |= each["blobs"]
                found[each["digest"]] = each["own_size"]
        return found


def in_words(size_bytes: int) -> str:
    """A size as Harbor writes it in its refusals."""
    value, units = float(size_bytes), ["Byte", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{size_bytes} Byte" if units[0] == "Byte" else f"{value:.1f} {units[0]}"
