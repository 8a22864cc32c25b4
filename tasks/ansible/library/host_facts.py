#!/usr/bin/python3
"""Reads, in one round trip, the few things about a host that the roles decide by.

Promises to change nothing and to return no secret. Facts of Ansible's own cost three times as
much and do not know what is asked here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]

DOCUMENTATION = r"""
module: host_facts
short_description: What the roles decide by
options:
  address: {description: The host's own address, type: str, required: true}
  packages: {description: Packages that must be installed, type: list, elements: str}
"""

RKE2_CONFIG = Path("/etc/rancher/rke2/config.yaml")
CLOUD_INIT = Path("/run/cloud-init")
FIRST_BOOT_SECONDS = 300
LEAST_FREE_MIB = 64
"""With less, no package, no file of ours and no write of etcd succeeds, each failing late."""
ROOMS = ("/", "/var", "/var/lib/rancher", "/etc")
ETCD_MEMBER = Path("/var/lib/rancher/rke2/server/db/etcd/member")


def output(*command: str) -> str:
    """Return a command's output; a failing one counts for what it printed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return ended.stdout.strip()


def await_first_boot() -> str:
    """Wait until cloud-init is through with this boot; return its errors, empty if none."""
    until = time.monotonic() + FIRST_BOOT_SECONDS
    result = CLOUD_INIT / "result.json"
    if not (CLOUD_INIT / "enabled").exists():
        return ""
    while not result.exists():
        if time.monotonic() > until:
            return f"cloud-init is not through after {FIRST_BOOT_SECONDS} s"
        time.sleep(0.2)
    errors = json.loads(result.read_text()).get("v1", {}).get("errors") or []
    return f"cloud-init failed: {'; '.join(errors)[:500]}" if errors else ""


def missing_packages(wanted: list[str]) -> list[str]:
    """Return which of the wanted packages are not installed."""
    lines = output("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted)
    installed = {line.split()[0] for line in lines.splitlines() if line.endswith(" installed")}
    return [package for package in wanted if package not in installed]


def interface_of(address: str) -> str:
    """Return the network interface that carries `address`, empty if none does."""
    for link in json.loads(output("ip", "-json", "-4", "address", "show") or "[]"):
        if any(entry.get("local") == address for entry in link.get("addr_info", [])):
            return str(link["ifname"])
    return ""


def full_disks() -> list[str]:
    """Return one sentence for each file system that has no room left for what the roles write."""
    told = {}
    for room in ROOMS:
        try:
            device, free = Path(room).stat().st_dev, os.statvfs(room)
        except FileNotFoundError:
            continue
        free_mib = free.f_bavail * free.f_frsize // 2**20
        if free_mib < LEAST_FREE_MIB and device not in told:
            told[device] = (
                f"no space left on {room}: {free_mib} MiB are free, {LEAST_FREE_MIB} are needed"
            )
    return list(told.values())


def os_release() -> dict[str, str]:
    """Return /etc/os-release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def joined_server() -> str:
    """Return the address by which this host joined its cluster, empty if it joined none."""
    try:
        found = re.search(r"^server: *[\"']?([^\s\"']+)", RKE2_CONFIG.read_text(), re.MULTILINE)
    except FileNotFoundError:
        return ""
    return found.group(1) if found else ""


def main() -> None:
    """Entry point that Ansible calls on the host."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    release = os_release()
    interface = interface_of(module.params["address"])
    first_boot = await_first_boot()
    problems = [first_boot] if first_boot else []
    if release.get("ID") != "debian" or release.get("VERSION_ID") != "12":
        problems.append(f"the host runs {release.get('PRETTY_NAME')}, and the roles need Debian 12")
    if not interface:
        problems.append(f"no interface carries {module.params['address']}")
    problems += full_disks()
    if problems:
        module.fail_json(msg=f"Unable to configure the host: {'; '.join(problems)}.")
    module.exit_json(
        changed=False,
        # Where the kernel is the hypervisor's, a guest may not set what is the kernel's.
        is_container=output("systemd-detect-virt", "--container") not in ("", "none"),
        interface=interface,
        missing_packages=missing_packages(module.params["packages"]),
        rke2_is_member=ETCD_MEMBER.exists(),
        rke2_joined=joined_server(),
    )


if __name__ == "__main__":
    main()
