"""What a kubelet makes of a container's description: environment, arguments, mounted files.

What it promises: values come from the very ConfigMaps and Secrets that the pod names. What it
refuses: to start a container whose references are not there yet, as a kubelet does.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from domain.errors import NotFound
from domain.manifest_order import ObjectKey
from lab.services.files import PRIVATE, write_if_changed

_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


class NotReadyToStart(Exception):
    """Something that the container names does not exist yet."""


class NamespaceReader:
    """ConfigMaps and Secrets of one namespace, each read once; made anew for each look."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._read: dict[tuple[str, str], Mapping[str, str] | None] = {}

    def config_map(self, name: str) -> Mapping[str, str] | None:
        return self._found("ConfigMap", name)

    def secret(self, name: str) -> Mapping[str, str] | None:
        return self._found("Secret", name)

    def _found(self, kind: str, name: str) -> Mapping[str, str] | None:
        if (kind, name) not in self._read:
            self._read[kind, name] = self._values(kind, name)
        return self._read[kind, name]

    def _values(self, kind: str, name: str) -> Mapping[str, str] | None:
        try:
            document = self._api.get(ObjectKey("v1", kind, self._namespace, name))
        except NotFound:
            return None
        data: dict[str, str] = document.get("data") or {}
        if kind == "ConfigMap":
            return data
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


def environment(container: Mapping[str, Any], reader: NamespaceReader) -> dict[str, str]:
    """The variables that the container's description gives."""
    found: dict[str, str] = {}
    for variable in container.get("env") or []:
        if "valueFrom" not in variable:
            found[variable["name"]] = str(variable.get("value", ""))
            continue
        value = _referenced(variable["valueFrom"], reader)
        if value is not None:
            found[variable["name"]] = value
    return found


def _referenced(source: Mapping[str, Any], reader: NamespaceReader) -> str | None:
    for kind, read in (("configMapKeyRef", reader.config_map), ("secretKeyRef", reader.secret)):
        if kind in source:
            reference = source[kind]
            values = read(reference["name"])
            if values is not None and reference["key"] in values:
                return values[reference["key"]]
            if reference.get("optional"):
                return None
            raise NotReadyToStart(f"{kind} {reference['name']}/{reference['key']} does not exist")
    raise NotReadyToStart(f"not simulated: a variable from {', '.join(source)}")


def arguments(container: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
    """The container's arguments with `$(NAME)` replaced."""
    return [
        _REFERENCE.sub(lambda match: variables.get(match[1], match[0]), str(argument))
        for argument in container.get("args") or []
    ]


def mount(directory: Path, values: Mapping[str, str] | None) -> None:
    """Make a directory hold exactly a ConfigMap's keys; unlike a kubelet, at once."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = dict(values or {})
    for path in directory.iterdir():
        if path.name not in wanted and not path.name.startswith("."):
            path.unlink()
    for key, value in wanted.items():
        write_if_changed(directory / key, value, PRIVATE)
