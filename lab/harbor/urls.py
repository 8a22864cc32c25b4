"""Every path of the API that the lab simulates; whatever is not in it is answered with 501."""

from __future__ import annotations

import re
from functools import cache
from urllib.parse import unquote

from lab.harbor import responses_artifacts as artifacts
from lab.harbor import responses_projects as projects
from lab.harbor import responses_robots as robots
from lab.harbor import responses_system as system
from lab.harbor.calls import Route
from lab.harbor.exceptions import NotSimulated

_PROJECT = "/projects/{project}"
_REPOSITORY = f"{_PROJECT}/repositories/{{repository}}"
_ARTIFACT = f"{_REPOSITORY}/artifacts/{{reference}}"

ROUTES = (
    Route("GET", "/health", system.health),
    Route("GET", "/ping", system.ping),
    Route("GET", "/systeminfo", system.system_info),
    Route("GET", "/users/current", system.current_user),
    Route("GET", "/projects", projects.listed),
    Route("HEAD", "/projects", projects.exists),
    Route("POST", "/projects", projects.create),
    Route("GET", _PROJECT, projects.read),
    Route("PUT", _PROJECT, projects.update),
    Route("DELETE", _PROJECT, projects.delete),
    Route("GET", f"{_PROJECT}/_deletable", projects.deletable),
    Route("GET", f"{_PROJECT}/summary", projects.summary),
    Route("GET", f"{_PROJECT}/metadatas", projects.metadata),
    Route("POST", f"{_PROJECT}/metadatas", projects.metadata_add),
    Route("GET", f"{_PROJECT}/metadatas/{{key}}", projects.metadata_read),
    Route("PUT", f"{_PROJECT}/metadatas/{{key}}", projects.metadata_update),
    Route("DELETE", f"{_PROJECT}/metadatas/{{key}}", projects.metadata_delete),
    Route("GET", "/quotas", projects.quotas),
    Route("GET", "/quotas/{quota}", projects.quota_read),
    Route("PUT", "/quotas/{quota}", projects.quota_update),
    Route("GET", "/labels", projects.labels),
    Route("POST", "/labels", projects.label_create),
    Route("GET", "/labels/{label}", projects.label_read),
    Route("DELETE", "/labels/{label}", projects.label_delete),
    Route("GET", "/robots", robots.listed),
    Route("POST", "/robots", robots.create),
    Route("GET", "/robots/{robot}", robots.read),
    Route("PUT", "/robots/{robot}", robots.update),
    Route("PATCH", "/robots/{robot}", robots.refresh),
    Route("DELETE", "/robots/{robot}", robots.delete),
    Route("GET", f"{_PROJECT}/repositories", artifacts.repositories),
    Route("GET", _REPOSITORY, artifacts.repository),
    Route("DELETE", _REPOSITORY, artifacts.repository_delete),
    Route("GET", f"{_REPOSITORY}/artifacts", artifacts.artifacts),
    Route("GET", _ARTIFACT, artifacts.artifact),
    Route("DELETE", _ARTIFACT, artifacts.artifact_delete),
    Route("GET", f"{_ARTIFACT}/tags", artifacts.tags),
    Route("POST", f"{_ARTIFACT}/tags", artifacts.tag_create),
    Route("DELETE", f"{_ARTIFACT}/tags/{{tag}}", artifacts.tag_delete),
)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Route], ...]:
    return tuple(
        (re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)), route) for route in ROUTES
    )


def find(method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
    """The route of a path that is still encoded, and what its placeholders stand for.

    A repository's name is decoded twice: a slash in it is sent as `%252F`.

    Raises:
        NotSimulated: naming method and path.
    """
    for pattern, route in _patterns():
        found = pattern.fullmatch(raw_path)
        if found and route.method == method:
            names = {key: unquote(value) for key, value in found.groupdict().items()}
            if "repository" in names:
                names["repository"] = unquote(names["repository"])
            return route, names
    raise NotSimulated(f"{method} {raw_path}")
