"""What of a cluster is left in each system: the proof of a removal, the inventory of a failure."""

from __future__ import annotations

from domain.specs import ClusterSpec
from tasks.dns.tasks import names_left
from tasks.git.tasks import cluster_files_left
from tasks.proxmox.tasks import machines_left
from tasks.terraform.tasks import state_resources_left
from tasks.vault.secrets import secrets_left


def cluster_leftovers(spec: ClusterSpec) -> dict[str, str]:
    """Return by system what is left of the cluster; an empty text means nothing."""
    environment = spec.environment
    found = {
        "Proxmox": machines_left(environment, spec),
        "OpenTofu state": state_resources_left(environment, spec),
        "DNS": names_left(environment, spec),
        "Git": cluster_files_left(environment, spec),
        "OpenBao": secrets_left(environment, spec),
    }
    return {system: ", ".join(names) for system, names in found.items()}
