"""Brings the vendors' CustomResourceDefinitions into this repository: run by a maintainer.

    python -m tasks.kubernetes.vendor_definitions

Why it exists: the definitions are the vendors' work, taken from their released Go modules, whose
content the Go checksum database vouches for. Promises files that are equal to the vendors' but for
descriptions (three quarters of their size) and a `VERSIONS.md` that names each source. Refuses to
write anything when a source lacks a definition that is listed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain.errors import NotFound, PermanentError
from tasks.kubernetes.yaml_documents import load_documents

MANIFESTS = Path(__file__).parent / "manifests"


@dataclass(frozen=True)
class Source:
    """One vendor's module and the definitions taken from it."""

    part: str
    module: str
    version: str
    directory: str
    files: tuple[str, ...]
    licence: str = "Apache-2.0"
    toolchain: str = ""
    """Go release that the module asks for, when it is newer than the oldest that we build with."""


SOURCES = (
    Source(
        part="10-metallb",
        module="go.universe.tf/metallb",
        version="v0.16.2",
        directory="config/crd/bases",
        files=tuple(
            f"metallb.io_{kind}.yaml"
            for kind in (
                "bfdprofiles",
                "bgpadvertisements",
                "bgppeers",
                "communities",
                "configurationstates",
                "ipaddresspools",
                "l2advertisements",
                "servicebgpstatuses",
                "servicel2statuses",
            )
        ),
    ),
    Source(
        part="40-monitoring",
        module="github.com/prometheus-operator/prometheus-operator",
        version="v0.85.0",
        directory="example/prometheus-operator-crd",
        files=tuple(
            f"monitoring.coreos.com_{kind}.yaml"
            for kind in (
                "alertmanagerconfigs",
                "alertmanagers",
                "podmonitors",
                "probes",
                "prometheusagents",
                "prometheuses",
                "prometheusrules",
                "scrapeconfigs",
                "servicemonitors",
                "thanosrulers",
            )
        ),
    ),
    Source(
        part="50-argo-cd",
        module="github.com/argoproj/argo-cd/v3",
        version="v3.6.1",
        directory="manifests/crds",
        files=("application-crd.yaml", "applicationset-crd.yaml", "appproject-crd.yaml"),
        toolchain="go1.27.3",
    ),
)


def without_descriptions(schema: Any) -> Any:
    """Copy an OpenAPI schema without its prose; a *property* named `description` stays."""
    if isinstance(schema, list):
        return [without_descriptions(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    copied: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str):
            continue
        if key == "properties" and isinstance(value, Mapping):
            copied[key] = {name: without_descriptions(below) for name, below in value.items()}
        elif key in ("default", "enum", "example", "x-kubernetes-validations"):
            copied[key] = value
        else:
            copied[key] = without_descriptions(value)
    return copied


def stripped(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a definition without descriptions and without what only an API server writes."""
    copied = dict(definition)
    copied.pop("status", None)
    copied["metadata"] = {
        key: value for key, value in copied["metadata"].items() if key != "creationTimestamp"
    }
    spec = dict(copied["spec"])
    spec["versions"] = [
        {**version, "schema": without_descriptions(version["schema"])}
        for version in spec["versions"]
    ]
    copied["spec"] = spec
    return copied


def _module_directory(source: Source) -> Path:
    environment = dict(os.environ)
    if source.toolchain:
        environment["GOTOOLCHAIN"] = source.toolchain
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"{source.module}@{source.version}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {}
    if "Dir" not in answer:
        raise PermanentError(
            f"Unable to fetch {source.module} {source.version}: the Go module proxy did not give "
            "it. Check the version and the access to the proxy."
        )
    return Path(answer["Dir"])


def _rendered(source: Source) -> dict[Path, str]:
    directory = _module_directory(source) / source.directory
    texts: dict[Path, str] = {}
    for name in source.files:
        file = directory / name
        if not file.is_file():
            raise NotFound(
                f"Unable to read {name}: {source.module} {source.version} does not have it. "
                "Correct the list of files."
            )
        (definition,) = (stripped(d) for d in load_documents(file.read_text(), name))
        header = (
            f"# {source.module} {source.version}, {source.directory}/{name}; "
            f"{source.licence}. Descriptions removed; JSON is YAML.\n"
        )
        texts[MANIFESTS / source.part / "definitions" / name] = (
            header + json.dumps(definition, indent=1, ensure_ascii=False) + "\n"
        )
    return texts


def _versions() -> str:
    rows = "\n".join(
        f"| {source.part} | `{source.module}` | {source.version} | `{source.directory}` "
        f"({len(source.files)} files) | {source.licence} |"
        for source in SOURCES
    )
    return (
        "# Where the definitions come from\n\n"
        "Files below `*/definitions/` are the vendors' CustomResourceDefinitions, taken from their "
        "released Go modules by `python -m tasks.kubernetes.vendor_definitions`. The only change "
        "is that the schemas' descriptions are removed. Everything else here is our own.\n\n"
        "| part | module | version | taken from | licence |\n|---|---|---|---|---|\n"
        f"{rows}\n\n"
        "Longhorn's definitions are not among them: Longhorn publishes no Go module that holds "
        "them, and its chart installs them itself. Its namespace, policies and storage classes "
        "are ours.\n"
    )


def main() -> int:
    """Fetch everything first, then write, so that a failure leaves the old files whole."""
    texts: dict[Path, str] = {}
    for source in SOURCES:
        texts |= _rendered(source)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (MANIFESTS / "VERSIONS.md").write_text(_versions())
    sys.stdout.write(f"{len(texts)} definitions, {sum(map(len, texts.values())) // 1024} KiB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
