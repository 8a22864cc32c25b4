#!/usr/bin/python3
"""Reads what a report says about a host: versions, services, ports and settings in force.

Promises to change nothing and to read values in force (what sshd and the kernel say), not files.
What cannot be read is `unknown`, never a guess. Returns no secret.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]
from ansible.module_utils.control_plane_reading import (  # type: ignore[import-untyped]
    control_plane,
)

DOCUMENTATION = r"""
module: host_probe
short_description: What a report says about a host
options:
  services: {description: Units to look at, type: list, elements: str}
  sysctl: {description: Kernel settings to read, type: list, elements: str}
"""

SSHD_SETTINGS = (
    "permitrootlogin",
    "passwordauthentication",
    "kbdinteractiveauthentication",
    "x11forwarding",
    "allowtcpforwarding",
    "maxauthtries",
    "banner",
)
UNKNOWN = "unknown"


def output(*command: str) -> str | None:
    """Return a command's output, or nothing if it is absent or fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the versions of the system and of what the roles install."""
    release = Path("/etc/os-release").read_text().splitlines()
    pretty = next((line for line in release if line.startswith("PRETTY_NAME=")), "=unknown")
    rke2 = (output("/usr/local/bin/rke2", "--version") or UNKNOWN).splitlines()[0]
    return {
        "system": pretty.partition("=")[2].strip('"'),
        "kernel": os.uname().release,
        "rke2": rke2.removeprefix("rke2 version ").split(" ")[0],
    }


def services(names: list[str]) -> dict[str, str]:
    """Return each unit's state, as `active/enabled`."""
    found = {}
    for name in names:
        text = output("systemctl", "show", "-p", "ActiveState,UnitFileState,LoadState", name) or ""
        state = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        if state.get("LoadState") != "loaded":
            found[name] = "absent" if state else UNKNOWN
        else:
            found[name] = f"{state.get('ActiveState')}/{state.get('UnitFileState') or UNKNOWN}"
    return found


def listening() -> list[str]:
    """Return the sockets that listen beyond the loopback device, as `tcp/0.0.0.0:22`."""
    found = set()
    for line in (output("ss", "-H", "-l", "-n", "-t", "-u") or "").splitlines():
        fields = line.split()
        local = fields[4] if len(fields) > 4 else ""
        if local and not local.startswith(("127.", "[::1]")) and "%lo" not in local:
            found.add(f"{fields[0]}/{local}")
    return sorted(found)


def sshd_settings() -> dict[str, str]:
    """Return the settings that sshd itself says are in force."""
    text = output("sshd", "-T") or ""
    settings = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return {name: settings.get(name, UNKNOWN) for name in SSHD_SETTINGS}


def kernel_settings(names: list[str]) -> dict[str, str]:
    """Return values from /proc/sys."""
    found = {}
    for name in names:
        try:
            found[name] = Path("/proc/sys", *name.split(".")).read_text().strip()
        except OSError:
            found[name] = UNKNOWN
    return found


def firewall() -> dict[str, Any]:
    """Return whether our table is loaded, and its policy for what comes in."""
    text = output("nft", "-j", "list", "table", "inet", "infraflows")
    if text is None:
        return {"is_loaded": False, "input_policy": UNKNOWN}
    chains = [entry["chain"] for entry in json.loads(text)["nftables"] if "chain" in entry]
    policy = next((c.get("policy", UNKNOWN) for c in chains if c.get("hook") == "input"), UNKNOWN)
    return {"is_loaded": True, "input_policy": policy}


def addresses() -> list[str]:
    """Return the IPv4 addresses of all interfaces but the loopback device."""
    links = json.loads(output("ip", "-json", "-4", "address", "show") or "[]")
    return sorted(
        entry["local"]
        for link in links
        if link["ifname"] != "lo"
        for entry in link.get("addr_info", [])
    )


def main() -> None:
    """Entry point that Ansible calls on the host."""
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str", "default": []},
            "sysctl": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    disk = os.statvfs("/")
    module.exit_json(
        changed=False,
        probe={
            "versions": versions(),
            **control_plane(),
            "services": services(module.params["services"]),
            "listening": listening(),
            "sshd": sshd_settings(),
            "sysctl": kernel_settings(module.params["sysctl"]),
            "firewall": firewall(),
            "addresses": addresses(),
            "disk_free_mib": disk.f_bavail * disk.f_frsize // 2**20,
            "is_container": (output("systemd-detect-virt", "--container") or "none") != "none",
            "is_time_synchronised": (
                output("timedatectl", "show", "-p", "NTPSynchronized", "--value") or UNKNOWN
            ),
        },
    )


if __name__ == "__main__":
    main()
