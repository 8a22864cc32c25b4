"""From a cluster's spec to the files that its platform consists of.

Why it exists: the manifests lie here as plain YAML that a person can read and a linter can check;
the spec only chooses parts and fills in a few names. Promises the same files for the same input,
keyed by their path in the infrastructure repository. Refuses an `@{name}` that it does not know.

A file that begins with `# requires: <part>` is left out when that part of the platform is off.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from domain.errors import InvalidSpec
from domain.machines import machines
from domain.repository_layout import RepositoryLocation, platform_directory
from domain.specs import ClusterSpec
from tasks.kubernetes.yaml_documents import load_documents

MANIFESTS = Path(__file__).parent / "manifests"
DEFINITIONS = "definitions"
_REQUIRES = re.compile(r"\A# requires: ([a-z_]+)$", re.MULTILINE)
_DEFAULT_PORTS = {"https": 443, "http": 80, "ssh": 22}
COPIES_OF_A_VOLUME = 3
IMAGES = {
    "argocd_image": ("quay.io", "argoproj/argocd:v3.6.1"),
    # The last series under a BSD licence.
    "redis_image": ("docker.io", "library/redis:7.2.11-alpine"),
}
"""The platform's own images by the value that names them: registry, and path with its tag."""


class _Template(string.Template):
    """`@{name}`: `$` belongs to Prometheus' own templates."""

    delimiter = "@"


def enabled_parts(spec: ClusterSpec) -> tuple[str, ...]:
    """Return the directories of the parts that the spec wants, in their order."""
    platform = spec.platform
    wanted = {
        "00-base": True,
        "10-metallb": platform.metallb is not None,
        "20-ingress-nginx": platform.ingress_nginx,
        "30-longhorn": platform.longhorn,
        "40-monitoring": platform.monitoring,
        "50-argo-cd": platform.argo_cd,
    }
    return tuple(part for part, is_wanted in wanted.items() if is_wanted)


def _values(spec: ClusterSpec, repository: RepositoryLocation) -> dict[str, str]:
    count = len(machines(spec))
    is_replicated = count >= COPIES_OF_A_VOLUME
    address = urlsplit(repository.url)
    if address.username or address.password:
        raise InvalidSpec(
            "the Git repository's address", ["url: holds a credential. Remove it from the address"]
        )
    values = {
        "cluster": spec.name,
        "machine_network": spec.network.cidr,
        "pod_network": spec.network.pod_cidr,
        "server_count": str(spec.control_plane.count),
        "machine_count": str(count),
        "is_replicated_default": str(is_replicated).lower(),
        "is_single_default": str(not is_replicated).lower(),
        "repository_url": repository.url,
        "repository_branch": repository.branch,
        "repository_port": str(address.port or _DEFAULT_PORTS.get(address.scheme, 443)),
        "platform_directory": platform_directory(spec.name),
    }
    for name, (registry, image) in IMAGES.items():
        values[name] = f"{spec.platform.image_registry or registry}/{image}"
    if spec.platform.metallb is not None:
        values["metallb_first"] = spec.platform.metallb.first_address
        values["metallb_last"] = spec.platform.metallb.last_address
    return values


def _filled(text: str, values: Mapping[str, str], name: str) -> str:
    try:
        return _Template(text).substitute(values)
    except (KeyError, ValueError) as error:
        raise InvalidSpec(
            f"the manifest {name}", [f"{error}: is no value that a spec gives. Correct the file"]
        ) from error


def platform_files(spec: ClusterSpec, repository: RepositoryLocation) -> dict[str, str]:
    """Return the text of every file of the platform by its path in the repository."""
    values = _values(spec, repository)
    parts = enabled_parts(spec)
    names = {part.partition("-")[2].replace("-", "_") for part in parts}
    files: dict[str, str] = {}
    for part in parts:
        for path in sorted((MANIFESTS / part).rglob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            inside = path.relative_to(MANIFESTS).as_posix()
            required = _REQUIRES.match(text)
            if required and required[1] not in names:
                continue
            # The vendors' definitions are copied as they are: an @ in them is their own.
            if DEFINITIONS not in path.relative_to(MANIFESTS).parts:
                text = _filled(text, values, inside)
            files[f"{platform_directory(spec.name)}/{inside}"] = text
    return files


def objects_of(files: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return every object in the files, file by file."""
    return [
        document
        for path in sorted(files)
        if path.endswith((".yaml", ".yml"))
        for document in load_documents(files[path], path)
    ]
