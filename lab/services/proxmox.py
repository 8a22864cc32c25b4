"""The simulated Proxmox VE API as a service. Its guests are real and outlive its process."""

from __future__ import annotations

import sys
from pathlib import Path

from lab.layout import GATEWAY, NODE_ADDRESSES, Layout
from lab.services.credentials import credential_file
from lab.services.files import private_directory
from lab.services.https_probe import reason_not_ok
from lab.services.service import Launch, Service


def state_directory(layout: Layout) -> Path:
    return layout.hypervisor_directory


def guests_directory(layout: Layout) -> Path:
    return state_directory(layout) / "guests"


def faults_socket(layout: Layout) -> Path:
    return state_directory(layout) / "faults.sock"


def prepare(layout: Layout) -> None:
    private_directory(state_directory(layout))
    faults_socket(layout).unlink(missing_ok=True)


def launch(layout: Layout) -> Launch:
    addresses = [GATEWAY, *NODE_ADDRESSES.values()]
    return Launch(
        command=[
            sys.executable,
            "-m",
            "lab.hypervisor",
            f"--state={state_directory(layout)}",
            f"--certificate={layout.server_certificate_file}",
            f"--key={layout.server_key_file}",
            f"--token-file={credential_file(layout, 'proxmox')}",
            f"--addresses={','.join(addresses)}",
        ]
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
