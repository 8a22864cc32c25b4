"""How much of a cluster one stage of an application may use, from its spec and service level.

Promises that the quota always holds what the Deployment may become, so that a rolling update at
full scale is never refused by the application's own quota.
"""

from __future__ import annotations

from dataclasses import dataclass

from domain.onboarding.app_spec import Resources, ServiceLevel, Stage
from domain.onboarding.quantities import as_cpu, as_memory, memory_mib, millicores
from domain.onboarding.tenant import Tenant

AGENT_CPU_MILLICORES = 10
AGENT_MEMORY_MIB = 64
PODS_BESIDE = 2
"""One that a rolling update starts, and one that is still ending."""

GROWTH = {ServiceLevel.BRONZE: 1, ServiceLevel.SILVER: 2, ServiceLevel.GOLD: 3}
"""How many times the wanted replicas the autoscaler may run in production."""


@dataclass(frozen=True)
class Size:
    """Amounts of one stage."""

    replicas: int
    most_replicas: int
    cpu_millicores: int
    """Reserved by one pod, as all below."""
    memory_mib: int
    memory_limit_mib: int

    @property
    def is_scaled(self) -> bool:
        """True when an autoscaler sets the number of replicas."""
        return self.most_replicas > self.replicas

    @property
    def most_pods(self) -> int:
        """Pods that may exist at a time."""
        return self.most_replicas + PODS_BESIDE

    @property
    def quota(self) -> dict[str, str]:
        """The namespace's hard limits."""
        return {
            "limits.memory": as_memory(self.memory_limit_mib * self.most_pods),
            "persistentvolumeclaims": "0",
            "pods": str(self.most_pods),
            "requests.cpu": as_cpu(self.cpu_millicores * self.most_pods),
            "requests.memory": as_memory(self.memory_mib * self.most_pods),
            "services": "4",
            "services.loadbalancers": "0",
            "services.nodeports": "0",
        }


def resources_of(tenant: Tenant, stage: Stage) -> Resources:
    """Return what one replica gets in a stage."""
    return tenant.app.environments[stage].resources or tenant.app.resources


def container_resources(wanted: Resources) -> dict[str, dict[str, str]]:
    """Return a container's requests and limits in the form that Kubernetes gives back.

    Memory always has a limit; processor only where it is asked for, for a limit there slows an
    application down while the node idles.
    """
    limits = {"memory": as_memory(memory_mib(wanted.memory_limit or wanted.memory))}
    if wanted.cpu_limit is not None:
        limits["cpu"] = as_cpu(millicores(wanted.cpu_limit))
    requests = {
        "cpu": as_cpu(millicores(wanted.cpu)),
        "memory": as_memory(memory_mib(wanted.memory)),
    }
    return {"requests": requests, "limits": limits}


def has_agent(tenant: Tenant) -> bool:
    """True when the application's pods carry the agent that fetches secrets."""
    return bool(tenant.app.secrets or tenant.app.database)


def size_of(tenant: Tenant, stage: Stage) -> Size:
    """Return the amounts of one stage."""
    wanted = resources_of(tenant, stage)
    replicas = tenant.app.environments[stage].replicas
    growth = GROWTH[tenant.app.service_level] if stage is Stage.PRODUCTION else 1
    agent = has_agent(tenant)
    agent_memory = AGENT_MEMORY_MIB if agent else 0
    return Size(
        replicas=replicas,
        most_replicas=replicas * growth,
        cpu_millicores=millicores(wanted.cpu) + (AGENT_CPU_MILLICORES if agent else 0),
        memory_mib=memory_mib(wanted.memory) + agent_memory,
        memory_limit_mib=memory_mib(wanted.memory_limit or wanted.memory) + agent_memory,
    )
