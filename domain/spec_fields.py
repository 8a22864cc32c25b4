"""The fields of a cluster's spec, group by group, each with what makes it right by itself.

Promises that a value that exists has the form that DNS, Proxmox VE, Kubernetes and OpenBao accept.
Refuses unknown fields. What must agree between fields is in `domain.spec_problems`.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
"""An RFC 1123 label that leaves room for `-server-10` and is a legal Proxmox pool and VM name."""

KUBERNETES_VERSION = re.compile(r"v1\.(\d{1,2})\.(\d{1,2})\+rke2r(\d+)")
PATH_PATTERN = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
REGISTRY_PATTERN = re.compile(
    r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
)
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
    if not PATH_PATTERN.fullmatch(value) or {".", ".."} & set(value.split("/")):
        raise PydanticCustomError(
            "secret_path",
            "is not an OpenBao path. Write names separated by single slashes, as clusters/demo",
        )
    return value


Name = Annotated[str, AfterValidator(_name)]
SecretPath = Annotated[str, AfterValidator(_secret_path)]
Address = Annotated[str, AfterValidator(lambda value: str(_as_ipv4(value)))]
Network = Annotated[str, AfterValidator(lambda value: str(_as_network(value)))]


class SpecModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class ProxmoxPlacement(SpecModel):
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


class NetworkSpec(SpecModel):
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


class MachineSize(SpecModel):
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
                "is even, so the last server adds no failure tolerance to etcd. "
                "Use {less} or {more}",
                {"less": value - 1, "more": value + 1},
            )
        return value


class WorkersSpec(MachineSize):
    """The RKE2 agents, which run the workloads."""

    count: int = Field(ge=0, le=WORKERS_AT_MOST, description="Number of workers.")
    first_address: Address | None = Field(
        default=None, description="Address of the first worker; the others follow."
    )


class KubernetesSpec(SpecModel):
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


class MetalLBSpec(SpecModel):
    """Addresses for Services of type LoadBalancer."""

    first_address: Address = Field(description="First address of the pool.")
    last_address: Address = Field(description="Last address of the pool.")


def _registry(value: str) -> str:
    if value and not REGISTRY_PATTERN.fullmatch(value):
        raise PydanticCustomError(
            "registry",
            "is not the address of a registry. Write host, port and path without a scheme, as "
            "registry.example.org:5000/mirror",
        )
    return value


class PlatformSpec(SpecModel):
    """Parts that are installed on the cluster once it answers."""

    metallb: MetalLBSpec | None = Field(default=None, description="MetalLB's address pool.")
    ingress_nginx: bool = Field(default=True, description="NGINX ingress class and namespace.")
    longhorn: bool = Field(default=True, description="Longhorn storage classes and namespace.")
    argo_cd: bool = Field(default=True, description="Argo CD and its root Application.")
    monitoring: bool = Field(default=True, description="Prometheus operator definitions and rules.")
    image_registry: Annotated[str, AfterValidator(_registry)] = Field(
        default="",
        description="Registry that mirrors the platform's images; their own registries if empty.",
    )
