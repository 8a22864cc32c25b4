"""One request to the simulated API, and the table row that it is answered by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lab.harbor.exceptions import BadRequest, Unauthorized, Unprocessable

if TYPE_CHECKING:
    from lab.harbor.harbor import Harbor
    from lab.harbor.models_access import Caller

MOST_PER_PAGE = 100
DEFAULT_PER_PAGE = 10


@dataclass(frozen=True)
class Call:
    """A request whose caller is known; rights are checked by the handlers' models."""

    harbor: Harbor
    caller: Caller
    method: str
    path: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any = None

    def object(self) -> dict[str, Any]:
        """The body, which must be an object."""
        if not isinstance(self.body, dict):
            raise Unprocessable("body in body is required")
        return self.body

    def page(self) -> tuple[int, int]:
        """Number and size of the wanted page."""
        return self._number("page", 1), self._number("page_size", DEFAULT_PER_PAGE)

    def _number(self, name: str, default: int) -> int:
        text = self.query.get(name, str(default))
        most = MOST_PER_PAGE if name == "page_size" else 1 << 31
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise Unprocessable(f"{name} in query should be from 1 to {most}")
        return int(text)

    def conditions(self) -> dict[str, str]:
        """The `q` parameter: `k=v,k=~v`, exact and fuzzy; a fuzzy value keeps its tilde."""
        found = {}
        for part in filter(None, self.query.get("q", "").split(",")):
            key, is_pair, value = part.partition("=")
            if not is_pair or value.startswith(("[", "{", "(")):
                raise BadRequest(f"invalid q: {part} (ranges and lists are not simulated)")
            found[key.strip().lower()] = value.strip()
        return found

    def require_login(self) -> None:
        """Refuse the anonymous."""
        if not self.caller.is_authenticated:
            raise Unauthorized


@dataclass(frozen=True)
class Reply:
    """An answer: a document, or for a list the page of it that was asked for."""

    document: Any = None
    status: int = 200
    location: str = ""
    total: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """What answers one method of one path; `{name}` in the path is one segment."""

    method: str
    path: str
    handler: Handler


def page_of(call: Call, found: list[Any]) -> Reply:
    """One page of a list, with the count of all in `X-Total-Count`."""
    number, size = call.page()
    start = (number - 1) * size
    return Reply(found[start : start + size], total=len(found))


def matches(conditions: Mapping[str, str], values: Mapping[str, Any]) -> bool:
    """True when every condition holds; one about something unknown is refused."""
    for key, wanted in conditions.items():
        if key not in values:
            raise BadRequest(f"invalid q: no condition {key} (or it is not simulated)")
        held = str(values[key])
        if wanted.startswith("~"):
            if wanted[1:] not in held:
                return False
        elif wanted != held:
            return False
    return True
