"""YAML as Kubernetes reads it, which is not quite YAML as PyYAML reads it.

Why it exists: vendors' definitions hold bare `=` and `on`, which YAML 1.1 turns into a special
value and a truth. Promises that scalars are resolved as in YAML 1.2's core schema. Refuses
documents that are not mappings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from domain.errors import InvalidSpec

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DROPPED_TAGS = frozenset(
    {
        "tag:yaml.org,2002:value",
        "tag:yaml.org,2002:bool",
        "tag:yaml.org,2002:timestamp",
        "tag:yaml.org,2002:merge",
    }
)
_LEADING_COMMENTS = re.compile(r"\A(?:#[^\n]*\n)*")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


def _resolvers(source: Any) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    kept = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in _DROPPED_TAGS]
        for first, rules in source.yaml_implicit_resolvers.items()
    }
    for first in "tTfF":
        kept.setdefault(first, []).append(("tag:yaml.org,2002:bool", _BOOL))
    return kept


class KubernetesLoader(_SafeLoader):  # type: ignore[misc]  # the C loader has no types
    """Loads scalars by YAML 1.2's core schema."""

    yaml_implicit_resolvers = _resolvers(_SafeLoader)


def _as_json(text: str) -> dict[str, Any] | None:
    """Return the object of a text that is JSON below its comments: read a hundred times faster."""
    body = _LEADING_COMMENTS.sub("", text, count=1)
    if not body.startswith("{"):
        return None
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def load_documents(text: str, source: str) -> list[dict[str, Any]]:
    """Return the mappings in `text`; empty documents are skipped."""
    found_json = _as_json(text)
    if found_json is not None:
        return [found_json]
    try:
        documents = list(yaml.load_all(text, Loader=KubernetesLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise InvalidSpec(source, [f"the document: is not YAML{place}. Correct it"]) from error
    found = [document for document in documents if document is not None]
    wrong = [document for document in found if not isinstance(document, Mapping)]
    if wrong:
        raise InvalidSpec(
            source, ["the document: holds something that is no object. Write mappings only"]
        )
    return [dict(document) for document in found]
