"""The description of a cluster as an operator writes it, and everything that can be wrong in it.

Promises that a `ClusterSpec` that exists is consistent in itself: names are valid in DNS, Proxmox
and Kubernetes, every address lies where it must, nothing overlaps, and etcd can have a majority.
What depends on the live site (free addresses, storage, rights) is the preflight's business.
Refuses unknown fields, so that a typing error is never a silent default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from domain.errors import InvalidSpec
from domain.spec_fields import (
    FIRST_WORKER_OFFSET,
    KUBERNETES_VERSION,
    NAME_PATTERN,
    SERVERS_AT_MOST,
    WORKERS_AT_MOST,
    ControlPlaneSpec,
    KubernetesSpec,
    MachineSize,
    MetalLBSpec,
    Name,
    NetworkSpec,
    PlatformSpec,
    ProxmoxPlacement,
    SecretPath,
    SpecModel,
    WorkersSpec,
)
from domain.spec_problems import Problem, consecutive, cross_problems

__all__ = [
    "EXAMPLE",
    "FIRST_WORKER_OFFSET",
    "KUBERNETES_VERSION",
    "NAME_PATTERN",
    "SERVERS_AT_MOST",
    "WORKERS_AT_MOST",
    "ClusterSpec",
    "ControlPlaneSpec",
    "KubernetesSpec",
    "MachineSize",
    "MetalLBSpec",
    "NetworkSpec",
    "PlatformSpec",
    "Problem",
    "ProxmoxPlacement",
    "WorkersSpec",
    "consecutive",
    "cross_problems",
    "parse_spec",
]


class ClusterSpec(SpecModel):
    """One Kubernetes cluster, from its virtual machines to its platform."""

    name: Name = Field(description="Name of the cluster; prefixes its machines.")
    environment: Name = Field(
        description="Site that it is built in; names the blocks: lab, staging, production."
    )
    proxmox: ProxmoxPlacement
    network: NetworkSpec
    control_plane: ControlPlaneSpec
    workers: WorkersSpec
    kubernetes: KubernetesSpec
    platform: PlatformSpec = Field(default_factory=PlatformSpec)
    secrets_path: SecretPath = Field(
        default="",
        validate_default=False,
        description="OpenBao path for the cluster's own secrets; clusters/<name> if empty.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_path(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and not data.get("secrets_path"):
            # From a name that is wrong no path is made: it would be told as a second problem.
            name = data.get("name")
            usable = name.strip() if isinstance(name, str) else ""
            if not NAME_PATTERN.fullmatch(usable):
                usable = "unnamed"
            return {**data, "secrets_path": f"clusters/{usable}"}
        return data

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> ClusterSpec:
        found = cross_problems(self)
        if isinstance(info.context, list):
            info.context.extend(found)
        elif found:
            raise PydanticCustomError(
                "inconsistent", "{lines}", {"lines": "; ".join(p.text for p in found)}
            )
        return self

    @property
    def is_single_server(self) -> bool:
        """True when the loss of the only server is the loss of the API."""
        return self.control_plane.count == 1


EXAMPLE: dict[str, Any] = {
    "name": "demo",
    "environment": "lab",
    "proxmox": {
        "pool": "demo",
        "nodes": ["pve1", "pve2", "pve3"],
        "storage": "vmstore",
        "template": "debian-12-cloud",
        "first_vm_id": 200,
        "bridge": "vmbr0",
    },
    "network": {
        "cidr": "10.90.0.0/24",
        "gateway": "10.90.0.1",
        "dns_servers": ["10.90.0.1"],
        "domain": "lab.infraflows.internal",
        "pod_cidr": "10.42.0.0/16",
        "service_cidr": "10.43.0.0/16",
    },
    "control_plane": {"count": 3, "first_address": "10.90.0.51", "virtual_ip": "10.90.0.50"},
    "workers": {"count": 2, "first_address": "10.90.0.61"},
    "kubernetes": {"version": "v1.36.3+rke2r1"},
    "platform": {
        "metallb": {"first_address": "10.90.0.200", "last_address": "10.90.0.219"},
    },
}
"""A complete, right spec: the documentation's example and the donor for repaired fields."""


def _dotted(location: Iterable[int | str]) -> str:
    return ".".join(str(part) for part in location)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _field_text(error: Mapping[str, Any]) -> str:
    """One sentence for one of pydantic's errors: field, value, what is wrong, the fix."""
    field = _dotted(error["loc"]) or "the document"
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{field}: missing. Add it"
    if kind == "extra_forbidden":
        return f"{field}: is no field of a cluster's spec. Remove it or correct its name"
    limits = {
        "greater_than_equal": ("is too small. Use {ge} or more", "ge"),
        "less_than_equal": ("is too large. Use {le} or less", "le"),
        "too_short": ("has too few entries. Give at least {min_length}", "min_length"),
        "string_too_short": ("is empty. Fill it in", "min_length"),
    }
    shown = _shown(error["input"])
    if kind in limits:
        template, key = limits[kind]
        return f"{field}: {shown} " + template.format(**{key: context[key]})
    types = {"int": "a whole number", "string": "text", "list": "a list", "bool": "true or false"}
    for prefix, what in types.items():
        if kind.startswith(prefix + "_"):
            return f"{field}: {shown} is not {what}. Write {what}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{field}: {shown} is not a group of fields. Write its fields below it"
    return f"{field}: {shown} {error['msg']}"


def _repaired(data: Any, locations: Iterable[tuple[int | str, ...]]) -> Any:
    """Copy `data` with each wrong place taken from the example (or dropped where it has none)."""

    def donor(path: tuple[int | str, ...]) -> tuple[bool, Any]:
        place: Any = EXAMPLE
        for part in path:
            if not isinstance(place, Mapping) or part not in place:
                return False, None
            place = place[part]
        return True, place

    def fix(place: Any, path: tuple[int | str, ...], wrong: set[tuple[int | str, ...]]) -> Any:
        if not isinstance(place, Mapping):
            return place
        fixed: dict[str, Any] = {}
        named = {p[len(path)] for p in wrong if p[: len(path)] == path and len(p) > len(path)}
        for key in dict.fromkeys([*place, *sorted(map(str, named))]):
            here = (*path, key)
            below = {p for p in wrong if p[: len(here)] == here}
            if here in below or (below and not isinstance(place.get(key), Mapping)):
                has, value = donor(here)
                if has:
                    fixed[key] = value
            else:
                fixed[key] = fix(place.get(key), here, below)
        return fixed

    return fix(data, (), set(locations))


def parse_spec(data: Any, source: str = "the cluster's spec") -> ClusterSpec:
    """Return the spec that `data` (a parsed YAML document) describes.

    Raises:
        InvalidSpec: with every problem of every field and between fields, none left for later.
    """
    if not isinstance(data, Mapping):
        raise InvalidSpec(source, ["the document: is not a group of fields. See docs/bootstrap.md"])
    problems: list[str] = []
    wrong: list[tuple[int | str, ...]] = []
    between: list[Problem] = []
    spec: ClusterSpec | None = None
    try:
        spec = ClusterSpec.model_validate(data, context=between)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [_field_text(dict(detail)) for detail in details]
        wrong = [tuple(detail["loc"]) for detail in details]
        try:
            between = []
            ClusterSpec.model_validate(_repaired(data, wrong), context=between)
        except ValidationError:
            between = []
    bad = {_dotted(location) for location in wrong}
    problems += [p.text for p in between if not _touches(p.fields, bad)]
    if problems or spec is None:
        raise InvalidSpec(source, problems)
    return spec


def _touches(fields: Iterable[str], bad: set[str]) -> bool:
    """True when a problem between fields rests on a field that was wrong by itself."""
    return any(
        f == b or f.startswith(b + ".") or b.startswith(f + ".") for f in fields for b in bad
    )
