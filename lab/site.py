"""The description of the lab as a site: what `infraflows setup --site` reads.

It holds addresses, names and the paths of files, never a secret. A real site writes the same file.
"""

from __future__ import annotations

from typing import Any

import yaml

from lab.layout import (
    DEMO_CLUSTER,
    DNS_PORT,
    EDGE_ADDRESS,
    ENVIRONMENT,
    GATEWAY,
    GIT_BRANCH,
    HARBOR_PORT,
    NODE_ADDRESSES,
    POSTGRESQL_PORT,
    PROXMOX_PORT,
    WEBHOOK_PORT,
    ZONE,
    Layout,
)
from lab.services.files import write_if_changed
from lab.services.openbao import audit_log
from lab.services.openbao_setup import (
    KV_MOUNT,
    LEDGER_KEY,
    ROTATION_KEY,
    SSH_MOUNT,
    SSH_ROLE,
    STATE_KEY,
    TRANSIT_MOUNT,
)
from lab.toolchain.paths import bin_dir, provider_mirror


def site_document(layout: Layout) -> dict[str, Any]:
    ca_file = str(layout.ca_file)
    secrets = f"infraflows/{ENVIRONMENT}"
    return {
        "environment": ENVIRONMENT,
        "openbao": {
            "address": layout.openbao_url,
            "ca_file": ca_file,
            "role_id_file": str(layout.role_id_file),
            "secret_id_file": str(layout.secret_id_file),
            "kv_mount": KV_MOUNT,
            "transit_mount": TRANSIT_MOUNT,
            "ssh_mount": SSH_MOUNT,
            "ssh_role": SSH_ROLE,
            "ledger_key": LEDGER_KEY,
            "state_key": STATE_KEY,
            "rotation_key": ROTATION_KEY,
            "audit_file": str(audit_log(layout)),
        },
        "proxmox": {
            "url": layout.proxmox_url,
            "alternate_urls": [
                f"https://{address}:{PROXMOX_PORT}"
                for address in NODE_ADDRESSES.values()
                if f"https://{address}:{PROXMOX_PORT}" != layout.proxmox_url
            ],
            "ca_file": ca_file,
            "credential": f"{secrets}/proxmox",
        },
        "git": {
            "url": layout.git_url,
            "branch": GIT_BRANCH,
            "ca_file": ca_file,
            "credential": f"{secrets}/git",
        },
        "dns": {
            "server": GATEWAY,
            "port": DNS_PORT,
            "zone": ZONE,
            "credential": f"{secrets}/dns",
        },
        "state": {
            "url": layout.state_url,
            "ca_file": ca_file,
            "credential": f"{secrets}/state",
        },
        "toolchain": {
            "tofu": str(bin_dir() / "tofu"),
            "provider_mirror": str(provider_mirror()),
        },
        "artifacts": {"url": layout.artifacts_url, "ca_file": ca_file},
        "ledger": {"directory": str(layout.ledger_directory)},
        "prefect": {"api_url": layout.prefect_api_url, "ui_url": layout.ui_url},
        "onboarding": onboarding_document(layout),
        "gateway": {
            "host": GATEWAY,
            "port": WEBHOOK_PORT,
            "certificate_file": str(layout.server_certificate_file),
            "key_file": str(layout.server_key_file),
            "directory": str(layout.webhook_directory),
            "is_reconcile_scheduled": False,
        },
        # In the lab a person starts it; a site of its own leaves this out.
        "rotation": {"is_scheduled": False},
    }


def onboarding_document(layout: Layout) -> dict[str, Any]:
    """Where applications land: all three stages in the demo's cluster."""
    ca_file = str(layout.ca_file)
    secrets = f"infraflows/{ENVIRONMENT}"
    return {
        "gitlab": {
            "url": layout.gitlab_url,
            "ca_file": ca_file,
            "credential": f"{secrets}/gitlab",
        },
        "harbor": {
            "url": layout.harbor_url,
            "registry": f"{GATEWAY}:{HARBOR_PORT}",
            "ca_file": ca_file,
            "credential": f"{secrets}/harbor",
        },
        "gitops": {
            "url": layout.gitops_url,
            "branch": GIT_BRANCH,
            "ca_file": ca_file,
            "credential": f"{secrets}/git",
        },
        "gateway_url": layout.webhook_url,
        "gateway_ca_file": ca_file,
        "is_converge_scheduled": False,
        "platform": {
            "clusters": dict.fromkeys(("development", "staging", "production"), DEMO_CLUSTER),
            "domain": f"apps.{ZONE}",
            "ingress_address": EDGE_ADDRESS,
            "database_credential": f"{secrets}/database",
            "database_address": f"{GATEWAY}:{POSTGRESQL_PORT}",
        },
    }


def write_site(layout: Layout) -> bool:
    """Write the description if it changed. Says whether it wrote."""
    text = yaml.safe_dump(site_document(layout), sort_keys=False)
    return write_if_changed(layout.site_file, text)
