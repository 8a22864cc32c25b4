"""The simulated Proxmox VE API as a service. Its guests are real and outlive its process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lab.layout import NODE_ADDRESSES, PROXMOX_PORT, Layout
from lab.services.credentials import credential
from lab.services.files import PRIVATE, private_directory, write_if_changed
from lab.services.https_probe import reason_not_ok
from lab.services.service import Launch, Service
from lab.toolchain.paths import guest_image

# What a site's administrator grants to the worker, and no more: its pools, the template, space on
# the storages, the bridges, and a look at the rest.
WORKER_RIGHTS = {
    "/": ["PVEAuditor"],
    "/pool": ["PVEPoolAdmin", "PVEVMAdmin"],
    "/sdn": ["PVESDNUser"],
    "/storage": ["PVEDatastoreUser"],
    "/vms/9000": ["PVETemplateUser"],
}
# For tests and people that play the site's administrator.
ADMIN_RIGHTS = {"/": ["Administrator"]}


def state_directory(layout: Layout) -> Path:
    return layout.hypervisor_directory


def guests_directory(layout: Layout) -> Path:
    return state_directory(layout) / "guests"


def faults_socket(layout: Layout) -> Path:
    return state_directory(layout) / "faults.sock"


def _tokens_file(layout: Layout) -> Path:
    return layout.secrets_directory / "proxmox-tokens.json"


def prepare(layout: Layout) -> None:
    private_directory(state_directory(layout))
    private_directory(guests_directory(layout))
    tokens = {
        token["token_id"]: {"secret": token["token_secret"], "acl": acl}
        for name, acl in (("proxmox", WORKER_RIGHTS), ("proxmox-admin", ADMIN_RIGHTS))
        for token in [credential(layout, name)]
    }
    write_if_changed(_tokens_file(layout), json.dumps(tokens), mode=PRIVATE)


def launch(layout: Layout) -> Launch:
    nodes = ",".join(f"{name}={address}" for name, address in NODE_ADDRESSES.items())
    return Launch(
        command=[
            sys.executable,
            "-m",
            "lab.hypervisor",
            f"--state={state_directory(layout)}",
            f"--guests={guests_directory(layout)}",
            f"--image={guest_image()}",
            f"--instance={layout.instance}",
            f"--netns={layout.namespace}",
            f"--port={PROXMOX_PORT}",
            f"--cert={layout.server_certificate_file}",
            f"--key={layout.server_key_file}",
            f"--nodes={nodes}",
            f"--tokens={_tokens_file(layout)}",
        ],
        # It opens its listening socket inside by itself; what it starts must not stand in there.
        is_inside_namespace=False,
    )


def is_healthy(layout: Layout) -> str | None:
    # Without a ticket the real API answers 401 to everything: that it asks shows that it lives.
    return reason_not_ok(layout, f"{layout.proxmox_url}/api2/json/version", expected=(200, 401))


SERVICE = Service(
    name="proxmox",
    summary="Proxmox VE API (simulated), real guests behind it",
    launch=launch,
    prepare=prepare,
    is_healthy=is_healthy,
    programs=("systemd-nspawn", "mkfs.xfs", "losetup", "ip"),
    start_timeout_seconds=60,
    owns_descendants=False,
)
