"""From a document to an `AppSpec`, or to every problem with it in words for its author.

Promises that problems of fields and problems between fields come together, that an unknown field
is answered with the nearest known one, and that values below `secrets` are never repeated: a
secret may have been written there by mistake.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from domain.onboarding.app_problems import AppProblem, InvalidAppFile, Location
from domain.onboarding.app_spec import EXAMPLE_APP, AppSpec

SHOWN_LENGTH = 60
_QUOTED = re.compile(r"'([^']*)'")

_GROUPS = ("model_type", "model_attributes_type", "dict_type")
_RANGES = {
    "greater_than_equal": "{shown} is too small. Use at least {ge}",
    "less_than_equal": "{shown} is too large. Use at most {le}",
}
_WHOLE = "{shown} is not a whole number. Write digits without quotes"
_FIXED = {
    "missing": "missing. Add it",
    "too_short": "is empty. Name at least one",
    "list_type": "{shown} is not a list. Write each entry on a line of its own, after a hyphen",
    "string_type": "{shown} is not text. Put it in quotes",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    **dict.fromkeys(_GROUPS, "{shown} is not a group of fields. Write its fields below it"),
}


def parse_app(data: Any, source: str = "the application") -> AppSpec:
    """Return the application that a document describes.

    Raises:
        InvalidAppFile: with every problem of every field and between fields.
    """
    app, problems = examine(data)
    if problems or app is None:
        raise InvalidAppFile(source, problems)
    return app


def examine(data: Any) -> tuple[AppSpec | None, list[AppProblem]]:
    """Return the application, or every problem that the document has."""
    if not isinstance(data, Mapping):
        return None, [AppProblem((), "is not a group of fields. Begin with name: and the name")]
    between: list[AppProblem] = []
    app: AppSpec | None = None
    problems: list[AppProblem] = []
    try:
        app = AppSpec.model_validate(data, context=between)
    except ValidationError as error:
        details = [dict(detail) for detail in error.errors(include_url=False)]
        problems = [_problem(detail) for detail in details]
        between = _between_the_right_ones(data, [problem.location for problem in problems])
    bad = [problem.location for problem in problems]
    problems += [found for found in between if not _touches(found.location, bad)]
    return (app if not problems else None), problems


def _between_the_right_ones(data: Any, wrong: Sequence[Location]) -> list[AppProblem]:
    """Return the problems between fields that would be left if the wrong ones were right."""
    found: list[AppProblem] = []
    try:
        AppSpec.model_validate(_repaired(data, wrong), context=found)
    except ValidationError:
        return []
    about = {str(location[0]) for location in wrong if location}
    # Without a right kind and image nothing can be said of which of the two is meant.
    return [p for p in found if not (p.field in ("kind", "image") and about & {"kind", "image"})]


def _repaired(data: Mapping[str, Any], wrong: Iterable[Location]) -> dict[str, Any]:
    """Return the document with wrong places left out, or taken from the example if required."""
    tree: dict[str | int, Any] = {}
    for location in wrong:
        branch = tree
        # A list is left out as a whole: positions stay what they are in the document.
        in_list = next((n for n, part in enumerate(location) if isinstance(part, int)), None)
        for part in location[:in_list]:
            branch = branch.setdefault(part, {})
    fixed = _without(data, tree)
    for name, field in AppSpec.model_fields.items():
        if field.is_required() and not fixed.get(name):
            fixed[name] = EXAMPLE_APP[name]
    return typing.cast(dict[str, Any], fixed)


def _without(value: Any, wrong: Mapping[str | int, Any]) -> Any:
    if isinstance(value, Mapping):
        items = {k: v for k, v in value.items() if k not in wrong or wrong[k]}
        return {k: _without(v, wrong.get(k, {})) for k, v in items.items()}
    return value


def _touches(location: Location, bad: Iterable[Location]) -> bool:
    return any(
        location[: len(other)] == other or other[: len(location)] == location for other in bad
    )


# --- words -----------------------------------------------------------------------------------


def _problem(detail: Mapping[str, Any]) -> AppProblem:
    location = tuple(part for part in detail["loc"] if part != "[key]")
    return AppProblem(location, _text(location, detail))


def _text(location: Location, detail: Mapping[str, Any]) -> str:
    kind = str(detail["type"])
    if kind == "extra_forbidden":
        return _unknown_field(location)
    if kind == "enum":
        return _unknown_word(location, detail)
    shown = _shown(location, detail.get("input"))
    context = detail.get("ctx") or {}
    if kind == "string_pattern_mismatch":
        return f"{shown} is not a path. Begin with a slash; use letters, digits and /_.-".strip()
    text = _FIXED.get(kind) or _RANGES.get(kind)
    if text is None:
        return f"{shown} {detail['msg']}".strip()
    return text.format(shown=shown, **{key: context.get(key) for key in ("ge", "le")}).strip()


def _shown(location: Location, value: Any) -> str:
    if location and location[0] == "secrets":
        return ""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"


def _unknown_field(location: Location) -> str:
    fields = _model_at(location[:-1]).model_fields
    known = [field.alias or name for name, field in fields.items()]
    near = _nearest(str(location[-1]), known)
    if near:
        return f"is not known here. Write {near}, or remove it"
    return f"is not known here. Remove it; known are {', '.join(known)}"


def _unknown_word(location: Location, detail: Mapping[str, Any]) -> str:
    words = _QUOTED.findall(str((detail.get("ctx") or {}).get("expected", "")))
    is_key = "[key]" in detail["loc"]
    shown = "is no environment" if is_key else f"{_shown(location, detail.get('input'))} is unknown"
    near = _nearest(str(detail.get("input")), words)
    if near:
        return f"{shown}. Write {near}"
    return f"{shown}. Use one of {', '.join(words)}"


def _nearest(word: str, known: Sequence[str]) -> str:
    lowered = word.lower()
    for candidate in known:
        if len(lowered) >= 3 and candidate.startswith(lowered):
            return candidate
    close = difflib.get_close_matches(lowered, known, 1, 0.6)
    return close[0] if close else ""


def _arguments(annotation: Any) -> list[Any]:
    """Return what an annotation such as `list[X] | None` is made of, in depth."""
    below = typing.get_args(annotation)
    return [annotation, *(found for part in below for found in _arguments(part))]


def _model_at(location: Location) -> type[BaseModel]:
    """Return the group of fields at a location; a key of a mapping and a position lead nowhere."""
    model: type[BaseModel] = AppSpec
    for part in location:
        field = model.model_fields.get(str(part))
        below = _arguments(field.annotation) if field else []
        groups = [f for f in below if isinstance(f, type) and issubclass(f, BaseModel)]
        model = groups[0] if groups else model
    return model
