"""One request after routing: who asks, where, with which typed parameters.

Why: handlers in `responses_*` deal with GitLab's meaning only; headers, bodies and pages end here
and in `server`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.gitlab import models_access as access
from lab.gitlab.exceptions import Missing, NotSimulated, ParameterErrors
from lab.gitlab.instance import GitLab
from lab.gitlab.models_projects import find_group, find_project
from lab.hypervisor.store import Document

PAGING = "page:int per_page:int"


@dataclass(frozen=True)
class Answer:
    """An answer that is not the usual one."""

    data: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    media_type: str = "application/json"


NO_CONTENT = Answer(status=204, content=b"")


@dataclass(frozen=True)
class Parameter:
    """What a route takes under one name."""

    kind: str
    is_required: bool


def parameters(text: str) -> dict[str, Parameter]:
    """Read `name! count:int tags:list`; `!` marks what must be given."""
    found = {}
    for word in text.split():
        name, _, kind = word.partition(":")
        found[name.rstrip("!")] = Parameter(kind or "text", name.endswith("!"))
    return found


@dataclass(frozen=True)
class Call:
    """A routed, authenticated, typed request."""

    gitlab: GitLab
    identity: access.Identity
    path: dict[str, str]
    params: dict[str, Any]
    method: str = "GET"

    @property
    def user(self) -> Document:
        """Who asks."""
        return self.identity.user

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named parameters that were given."""
        return {name: self.params[name] for name in names if name in self.params}

    def project(self, level: int = access.GUEST) -> Document:
        """The project in the path, for a user of at least this role."""
        project = find_project(self.gitlab, self.path["project"], self.method)
        if project is None or not access.can_read(self.gitlab, self.user, project):
            raise Missing("Project")
        if level > access.GUEST and not (
            level <= access.REPORTER and project["visibility"] != "private"
        ):
            access.require_level(access.project_level(self.gitlab, self.user, project), level)
        return project

    def group(self, level: int = access.GUEST) -> Document:
        """The group in the path, for a user of at least this role."""
        group = find_group(self.gitlab, self.path["group"])
        held = access.group_level(self.gitlab, self.user, group) if group else access.NONE
        if group is None or (held < access.GUEST and group["visibility"] == "private"):
            raise Missing("Group")
        access.require_level(max(held, access.GUEST), level)
        return group

    def require_administrator(self) -> None:
        """403 for everybody else."""
        access.require_level(access.ADMINISTRATOR if self.identity.is_administrator else 0, 60)

    def number(self, name: str, what: str = "") -> int:
        """A number in the path, or 404."""
        text = self.path[name]
        if not text.isdigit():
            raise Missing(what)
        return int(text)


Handler = Callable[[Call], Any]


@dataclass(frozen=True)
class Route:
    """A path of the API and what it takes. Segments in braces are names of the path."""

    method: str
    path: str
    handler: Handler
    takes: dict[str, Parameter]


def route(method: str, path: str, handler: Handler, takes: str = "") -> Route:
    """A route; lists take the parameters of pages by themselves."""
    paging = f" {PAGING}" if method == "GET" else ""
    return Route(method, path, handler, parameters(takes + paging))


def read_parameters(found: Route, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Typed values; all misfits at once. What is not simulated is named with 501."""
    values, problems = {}, []
    for name, value in raw.items():
        parameter = found.takes.get(name)
        if parameter is None:
            raise NotSimulated(f"Parameter {name!r} of {found.method} {found.path}")
        try:
            values[name] = _typed(parameter.kind, value)
        except (ValueError, TypeError):
            problems.append(f"{name} is invalid")
    for name, parameter in found.takes.items():
        if parameter.is_required and values.get(name) is None:
            problems.append(f"{name} is missing")
    if problems:
        raise ParameterErrors(problems)
    return values


def _typed(kind: str, value: Any) -> Any:
    if value is None:
        return None
    match kind:
        case "int":
            if isinstance(value, bool):
                raise ValueError
            return int(value)
        case "bool":
            return _boolean(value)
        case "list":
            if isinstance(value, str):
                return [part.strip() for part in value.split(",") if part.strip()]
            return list(value)
        case "any":
            return value
        case _:
            if isinstance(value, (dict, list)):
                raise ValueError
            return str(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("true", "1", "t", "on"):
        return True
    if text in ("false", "0", "f", "off", ""):
        return False
    raise ValueError
