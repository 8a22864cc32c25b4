"""The description of a cluster as an operator writes it, and everything that can be wrong in it.

Promises that a `ClusterSpec` that exists is consistent in itself: names are valid in DNS, Proxmox
and Kubernetes, every address lies where it must, nothing overlaps, and etcd can have a majority.
What depends on the live site (free addresses, storage, rights) is the preflight's business.
Refuses unknown fields, so that a typing error is never a silent default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from domain.errors import InvalidSpec

NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
"""An RFC 1123 label that leaves room for `-server-10` and is a legal Proxmox pool and VM name."""

KUBERNETES_VERSION = re.compile(r"v1\.(\d{1,2})\.(\d{1,2})\+rke2r(\d+)")
PATH_PATTERN = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
SERVERS_AT_MOST = 7
WORKERS_AT_MOST = 90
FIRST_WORKER_OFFSET = 10
"""Workers' VMIDs start here after the first VMID, so that servers can be added without moving."""


def _as_ipv4(value: Any) -> IPv4Address:
    try:
        return IPv4Address(str(value))
    except ValueError:
        raise PydanticCustomError(
            "ipv4_address", "is not an IPv4 address. Write four numbers, as 10.0.0.10"
        ) from None


def _as_network(value: Any) -> IPv4Network:
    try:
        return IPv4Network(str(value), strict=True)
    except ValueError as error:
        fix = "Write a network with its prefix length, as 10.0.0.0/24"
        if "host bits set" in str(error):
            right = IPv4Network(str(value), strict=False)
            raise PydanticCustomError(
                "ipv4_network",
                "has bits set after its prefix. Write {right}",
                {"right": str(right)},
            ) from None
        raise PydanticCustomError("ipv4_network", f"is not an IPv4 network. {fix}") from None


def _name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise PydanticCustomError(
            "name",
            "is not a valid name. Use 1 to 32 lower-case letters, digits and hyphens, "
            "starting with a letter and ending with a letter or digit",
        )
    return value


def _secret_path(value: str) -> str:
    if not PATH_PATTERN.fullmatch(value):
        raise PydanticCustomError(
            "secret_path",
            "is not an OpenBao path. Write names separated by single slashes, as clusters/demo",
        )
    return value


Name = Annotated[str, AfterValidator(_name)]
SecretPath = Annotated[str, AfterValidator(_secret_path)]
Address = Annotated[str, AfterValidator(lambda value: str(_as_ipv4(value)))]
Network = Annotated[str, AfterValidator(lambda value: str(_as_network(value)))]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class ProxmoxPlacement(_Model):
    """Where the machines live in Proxmox VE."""

    pool: Name = Field(description="Resource pool that owns the machines; created if absent.")
    nodes: list[str] = Field(
        description="Hypervisors to spread over; servers never share one while another is free."
    )
    storage: str = Field(min_length=1, description="Storage for the machines' disks.")
    template: str = Field(min_length=1, description="Name of the cloud-init template to clone.")
    first_vm_id: int = Field(
        ge=100, le=999_999_899, description="VMID of the first server; the others follow."
    )
    bridge: str = Field(default="vmbr0", min_length=1, description="Bridge of the network card.")
    vlan: int | None = Field(default=None, ge=1, le=4094, description="VLAN tag; none if empty.")
    parallel_clones: int = Field(
        default=2, ge=1, le=16, description="Clones that may run at once on one storage."
    )

    @field_validator("nodes")
    @classmethod
    def _nodes(cls, value: list[str]) -> list[str]:
        if not value:
            raise PydanticCustomError("nodes", "is empty. Name at least one hypervisor")
        twice = sorted({node for node in value if value.count(node) > 1})
        if twice:
            raise PydanticCustomError(
                "nodes",
                "names {twice} more than once. Name each hypervisor once",
                {"twice": ", ".join(twice)},
            )
        return value


class NetworkSpec(_Model):
    """The network of the machines and the two inside the cluster."""

    cidr: Network = Field(description="Network of the machines, as 10.0.0.0/24.")
    gateway: Address = Field(description="Default gateway of the machines.")
    dns_servers: list[Address] = Field(min_length=1, description="Resolvers of the machines.")
    domain: str = Field(min_length=1, description="DNS domain of the machines.")
    admin_networks: list[Network] = Field(
        default_factory=list,
        description="Networks that may reach SSH and the API; the machines' own always may.",
    )
    pod_cidr: Network = Field(default="10.42.0.0/16", description="Addresses of pods.")
    service_cidr: Network = Field(default="10.43.0.0/16", description="Addresses of services.")

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        if not re.fullmatch(rf"{label}(\.{label})+", value):
            raise PydanticCustomError(
                "domain",
                "is not a DNS domain. Write lower-case labels and dots, as lab.example.org",
            )
        return value


class MachineSize(_Model):
    """Processors, memory and disk of one machine."""

    cores: int = Field(default=2, ge=1, le=128, description="Processor cores.")
    memory_mib: int = Field(default=4096, ge=1024, le=1_048_576, description="Memory in MiB.")
    disk_gib: int = Field(default=40, ge=8, le=10_240, description="System disk in GiB.")


class ControlPlaneSpec(MachineSize):
    """The RKE2 servers: API, scheduler, controllers and etcd."""

    count: int = Field(description="Number of servers: 1, 3, 5 or 7.")
    first_address: Address = Field(description="Address of the first server; the others follow.")
    virtual_ip: Address = Field(description="Address of the API that moves between servers.")

    @field_validator("count")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value < 1 or value > SERVERS_AT_MOST:
            raise PydanticCustomError("servers", "is out of range. Use 1, 3, 5 or 7 servers")
        if value % 2 == 0:
            raise PydanticCustomError(
                "servers",
                "is even, so the last server adds no failure tolerance to etcd. Use {less} or {more}",
                {"less": value - 1, "more": value + 1},
            )
        return value


class WorkersSpec(MachineSize):
    """The RKE2 agents, which run the workloads."""

    count: int = Field(ge=0, le=WORKERS_AT_MOST, description="Number of workers.")
    first_address: Address | None = Field(
        default=None, description="Address of the first worker; the others follow."
    )


class KubernetesSpec(_Model):
    """What is installed on the machines."""

    version: str = Field(description="RKE2 version, as v1.36.3+rke2r1.")
    secrets_encryption: bool = Field(default=True, description="Encrypt Secrets in etcd.")
    audit_log: bool = Field(default=True, description="Write the API server's audit log.")

    @field_validator("version")
    @classmethod
    def _version(cls, value: str) -> str:
        if not KUBERNETES_VERSION.fullmatch(value):
            raise PydanticCustomError(
                "version", "is not an RKE2 version. Write it as v1.36.3+rke2r1"
            )
        return value


class MetalLBSpec(_Model):
    """Addresses for Services of type LoadBalancer."""

    first_address: Address = Field(description="First address of the pool.")
    last_address: Address = Field(description="Last address of the pool.")


class PlatformSpec(_Model):
    """Parts that are installed on the cluster once it answers."""

    metallb: MetalLBSpec | None = Field(default=None, description="MetalLB's address pool.")
    ingress_nginx: bool = Field(default=True, description="NGINX ingress class and namespace.")
    longhorn: bool = Field(default=True, description="Longhorn storage classes and namespace.")
    argo_cd: bool = Field(default=True, description="Argo CD's definitions and root Application.")
    monitoring: bool = Field(default=True, description="Prometheus operator definitions and rules.")


class ClusterSpec(_Model):
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
        if isinstance(data, Mapping) and not data.get("secrets_path") and data.get("name"):
            return {**data, "secrets_path": f"clusters/{data['name']}"}
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


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the fields that take part, and the sentence about it."""

    fields: tuple[str, ...]
    text: str


def consecutive(first: str, count: int) -> list[IPv4Address]:
    """Return `count` addresses from `first` on (may leave any network: the caller checks)."""
    start = int(IPv4Address(first))
    return [IPv4Address(min(start + i, 2**32 - 1)) for i in range(count)]


def _span(spec: ClusterSpec) -> dict[str, list[IPv4Address]]:
    """Every address that the spec claims in the machines' network, by the field that claims it."""
    spans = {
        "control_plane.first_address": consecutive(
            spec.control_plane.first_address, spec.control_plane.count
        ),
        "control_plane.virtual_ip": [IPv4Address(spec.control_plane.virtual_ip)],
        "network.gateway": [IPv4Address(spec.network.gateway)],
    }
    if spec.workers.count and spec.workers.first_address:
        spans["workers.first_address"] = consecutive(spec.workers.first_address, spec.workers.count)
    pool = spec.platform.metallb
    if pool is not None:
        first, last = int(IPv4Address(pool.first_address)), int(IPv4Address(pool.last_address))
        if 0 <= last - first < 2**16:
            spans["platform.metallb"] = [IPv4Address(n) for n in range(first, last + 1)]
    return spans


def _outside(spec: ClusterSpec, spans: Mapping[str, list[IPv4Address]]) -> Iterable[Problem]:
    network = IPv4Network(spec.network.cidr)
    usable = f"{network[1]} to {network[-2]}" if network.num_addresses > 2 else str(network)
    for field, addresses in spans.items():
        bad = [a for a in addresses if a not in network]
        edge = [a for a in addresses if a in (network[0], network[-1])]
        if bad:
            yield Problem(
                (field, "network.cidr"),
                f"{field}: {bad[0]} is outside the network {network}. Use addresses from {usable}",
            )
        elif edge:
            yield Problem(
                (field, "network.cidr"),
                f"{field}: {edge[0]} is the network's own first or last address. "
                f"Use addresses from {usable}",
            )


def _overlapping(spans: Mapping[str, list[IPv4Address]]) -> Iterable[Problem]:
    fields = list(spans)
    for i, left in enumerate(fields):
        for right in fields[i + 1 :]:
            both = sorted(set(spans[left]) & set(spans[right]))
            if both:
                yield Problem(
                    (left, right),
                    f"{left} and {right}: both claim {both[0]}"
                    + (f" and {len(both) - 1} more" if len(both) > 1 else "")
                    + ". Move one of them",
                )


def _networks_apart(spec: ClusterSpec) -> Iterable[Problem]:
    named = {
        "network.cidr": IPv4Network(spec.network.cidr),
        "network.pod_cidr": IPv4Network(spec.network.pod_cidr),
        "network.service_cidr": IPv4Network(spec.network.service_cidr),
    }
    fields = list(named)
    for i, left in enumerate(fields):
        for right in fields[i + 1 :]:
            if named[left].overlaps(named[right]):
                yield Problem(
                    (left, right),
                    f"{left} and {right}: {named[left]} overlaps {named[right]}. "
                    "Choose networks that share no address",
                )
    pods = named["network.pod_cidr"]
    machines = spec.control_plane.count + spec.workers.count
    if pods.prefixlen > 24 or 2 ** (24 - pods.prefixlen) < machines:
        yield Problem(
            ("network.pod_cidr", "control_plane.count", "workers.count"),
            f"network.pod_cidr: {pods} holds fewer /24 networks than the {machines} machines need. "
            "Choose a larger network",
        )


def _workers_and_pool(spec: ClusterSpec) -> Iterable[Problem]:
    if spec.workers.count and not spec.workers.first_address:
        yield Problem(
            ("workers.first_address", "workers.count"),
            f"workers.first_address: missing, and workers.count is {spec.workers.count}. "
            "Give the address of the first worker, or set workers.count to 0",
        )
    pool = spec.platform.metallb
    if pool and IPv4Address(pool.first_address) > IPv4Address(pool.last_address):
        yield Problem(
            ("platform.metallb.first_address", "platform.metallb.last_address"),
            f"platform.metallb: {pool.first_address} comes after {pool.last_address}. "
            "Swap the first and the last address",
        )
    longest = f"{spec.name}-worker-{WORKERS_AT_MOST}.{spec.network.domain}"
    if len(longest) > 253:
        yield Problem(
            ("name", "network.domain"),
            f"network.domain: with the cluster's name a host name has {len(longest)} characters, "
            "and DNS allows 253. Choose shorter names",
        )


def cross_problems(spec: ClusterSpec) -> list[Problem]:
    """Return what is wrong between fields that are each right by themselves."""
    spans = _span(spec)
    return [
        *_outside(spec, spans),
        *_overlapping(spans),
        *_networks_apart(spec),
        *_workers_and_pool(spec),
    ]


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
