"""What of a live Kubernetes object one manager owns, so that drift is seen in exactly that.

Exists because the API server adds defaults and controllers add status: a live object never equals
its manifest. Server-side apply records, field by field, who set what; the fields that the platform
owns, with their live values, equal the manifest for as long as nobody touches them. A field that a
person changed belongs to that person from then on and is missing here: also that is a difference.
A digest in an annotation would only tell what was once applied; a dry-run would need the wanted
manifests, and what is found must be readable without them.
Format: https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from domain.manifest_order import Manifest

_ABSENT = object()
_IDENTITY = ("apiVersion", "kind")


def owned_part(live: Manifest, manager: str) -> dict[str, Any]:
    """Return the fields of a live object that `manager` set by server-side apply."""
    for entry in live.get("metadata", {}).get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply":
            found = _owned(live, entry.get("fieldsV1") or {})
            return found if isinstance(found, dict) else {}
    return {}


def managed_part(manifest: Manifest) -> dict[str, Any]:
    """Return of a manifest what `owned_part` gives back when it is in force."""
    metadata = {
        name: value
        for name, value in manifest.get("metadata", {}).items()
        if name not in ("name", "namespace")
    }
    content = {name: value for name, value in manifest.items() if name not in _IDENTITY}
    return {**content, "metadata": metadata}


def _owned(value: Any, fields: Mapping[str, Any]) -> Any:
    """Return the part of a value that a field set names; a leaf names all of it."""
    below = {name: part for name, part in fields.items() if name != "."}
    if not below:
        return value
    if isinstance(value, list):
        return _owned_entries(value, below)
    found: dict[str, Any] = {}
    for name, part in below.items():
        prefix, _, field = name.partition(":")
        child = value.get(field, _ABSENT) if prefix == "f" and isinstance(value, Mapping) else None
        if child is not _ABSENT:
            found[field] = _owned(child, part)
    return found


def _owned_entries(values: list[Any], fields: Mapping[str, Any]) -> list[Any]:
    """Return the entries of a list that are owned: named by their keys, or by their value."""
    found = []
    for entry in values:
        for name, part in fields.items():
            prefix, _, text = name.partition(":")
            sought = json.loads(text)
            if prefix == "v" and sought == entry:
                found.append(entry)
            elif prefix == "k" and all(entry.get(key) == sought[key] for key in sought):
                found.append(_owned(entry, part))
    return found
