"""Waits until the cluster's guests are up, and learns who they are over a trusted channel.

The host keys are read through the hypervisor's guest agent and not from the network, so that the
first SSH connection is already verified.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prefect import task
from prefect.logging import get_run_logger

from blocks.openbao import openbao
from blocks.proxmox import ProxmoxApi, proxmox
from domain.errors import NotFound, PermanentError, TemporaryError
from domain.machines import Machine, machines
from domain.specs import ClusterSpec
from tasks.retry_rules import TEMPORARY

HOST_KEY_FILE = "/etc/ssh/ssh_host_ed25519_key.pub"
DEADLINE_SECONDS = 300.0
POLL_SECONDS = 0.5
PARALLEL = 10


@dataclass(frozen=True)
class Guests:
    """The guests of a cluster as they introduced themselves."""

    addresses: dict[str, str]
    """By machine's name."""
    host_keys: dict[str, str]
    """Public host key by address."""


def _introduce(api: ProxmoxApi, machine: Machine, until: float) -> tuple[str, str]:
    """Return the address and the host key of one guest once it has both."""
    seen = "its guest agent does not answer"
    while time.monotonic() < until:
        try:
            cards = api.agent_interfaces(machine.vm_id, machine.hypervisor)
            addresses = {
                address.split("/")[0]
                for card in cards
                if card.mac_address.upper() == machine.mac_address.upper()
                for address in card.addresses
            }
            if machine.address in addresses:
                key = api.agent_read_file(machine.vm_id, machine.hypervisor, HOST_KEY_FILE)
                if key.strip():
                    return machine.address, " ".join(key.split()[:2])
                seen = "it has no SSH host key yet"
            else:
                shown = ", ".join(sorted(addresses)) or "none"
                seen = f"it does not have the address {machine.address} (it has {shown})"
        except (TemporaryError, NotFound, PermanentError) as error:
            seen = str(error)
        time.sleep(POLL_SECONDS)
    raise PermanentError(
        f"Unable to reach {machine.name} (VMID {machine.vm_id}) after {DEADLINE_SECONDS:.0f} s: "
        f"{seen}. Look at its console and at cloud-init's log."
    )


@task(name="wait for the guests", tags=["system:proxmox"], **TEMPORARY)
def wait_for_guests(environment: str, spec: ClusterSpec) -> Guests:
    """Return each guest's address and host key, all waited for at once.

    Raises:
        PermanentError: a guest is not up in time; the message says what it lacks.
    """
    wanted = machines(spec)
    block = proxmox(environment)
    with openbao(environment).session() as bao:
        credential = bao.read(block.credential)
    until = time.monotonic() + DEADLINE_SECONDS

    def introduce(machine: Machine) -> tuple[str, str]:
        # A client of its own for each thread: the vendor's sessions are not shared safely.
        return _introduce(block.api(credential), machine, until)

    with ThreadPoolExecutor(min(PARALLEL, len(wanted))) as pool:
        found = list(pool.map(introduce, wanted))
    get_run_logger().info("All %d guests are up.", len(found))
    return Guests(
        addresses={m.name: address for m, (address, _) in zip(wanted, found, strict=True)},
        host_keys=dict(found),
    )
