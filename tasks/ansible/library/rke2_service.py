#!/usr/bin/python3
"""Starts RKE2's service, or restarts it where that is owed, and waits until it serves.

Promises to return only when the node does its work: a server answers `readyz`, an agent's unit is
active. Refuses to wait for a unit that has failed: its last journal lines are the error.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]
from ansible.module_utils.pending_actions import (  # type: ignore[import-untyped]
    is_owed,
    settle,
)

DOCUMENTATION = r"""
module: rke2_service
short_description: Starts or restarts RKE2 and waits until it serves
options:
  type: {description: server or agent, type: str, required: true}
  restart_action: {description: The owed action that means a restart, type: str}
  wait_for: {description: host:port that must answer before a start that joins, type: str}
  timeout_seconds: {description: How long to wait, type: int}
"""

TLS = Path("/var/lib/rancher/rke2/server/tls")
POLL_SECONDS = 0.5
FAILURES_AT_MOST = 3
"""The unit restarts itself (a join may be refused while another member joins), but not for ever."""


def systemctl(*arguments: str) -> str:
    """Return systemctl's output."""
    ended = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return ended.stdout.strip()


def unit_state(unit: str) -> dict[str, str]:
    """Return what systemd says of the unit."""
    lines = systemctl("show", "-p", "ActiveState,UnitFileState,NRestarts", unit).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def readiness(kind: str) -> str:
    """Return an empty text when the node serves, else what is missing."""
    if kind == "agent":
        return ""
    certificate, key = TLS / "client-admin.crt", TLS / "client-admin.key"
    if not certificate.exists() or not key.exists():
        return "the server's certificates are not made yet"
    context = ssl.create_default_context(cafile=str(TLS / "server-ca.crt"))
    context.load_cert_chain(certificate, key)
    try:
        with urllib.request.urlopen(
            "https://127.0.0.1:6443/readyz", timeout=5, context=context
        ) as reply:
            return "" if reply.status == 200 else f"readyz answers {reply.status}"
    except urllib.error.HTTPError as error:
        failing = [line for line in error.read().decode().splitlines() if line.startswith("[-]")]
        return f"readyz answers {error.code}: {'; '.join(failing)[:300]}"
    except OSError as error:
        return f"the API does not answer: {error}"


def journal(unit: str) -> str:
    """Return the unit's last lines."""
    ended = subprocess.run(
        ["journalctl", "-u", unit, "-n", "25", "--no-pager", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    lines = []
    for line in ended.stdout.splitlines():
        message = json.loads(line).get("MESSAGE", "")
        lines.append(message if isinstance(message, str) else "(binary)")
    return "\n".join(lines)[-1500:]


def await_supervisor(module: AnsibleModule) -> None:
    """Return when the cluster's supervisor takes connections: a join before that only fails."""
    address, _, port = module.params["wait_for"].rpartition(":")
    limit = module.params["timeout_seconds"]
    until = time.monotonic() + limit
    while True:
        try:
            socket.create_connection((address, int(port)), timeout=3).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                module.fail_json(
                    msg=f"Unable to join the cluster: {address}:{port} did not answer within "
                    f"{limit} s: {error}. Look at keepalived and rke2-server on the servers."
                )
        time.sleep(POLL_SECONDS)


def wait(module: AnsibleModule, unit: str, restarts_before: int) -> None:
    """Return when the node serves; fail with the unit's own words otherwise."""
    kind, limit = module.params["type"], module.params["timeout_seconds"]
    until = time.monotonic() + limit
    while True:
        state = unit_state(unit)
        missing = f"the unit is {state.get('ActiveState')}"
        if state.get("ActiveState") == "active":
            missing = readiness(kind)
            if not missing:
                return
        failures = int(state.get("NRestarts", "0")) - restarts_before
        if state.get("ActiveState") == "failed" or failures > FAILURES_AT_MOST:
            module.fail_json(msg=f"Unable to start {unit}: it fails.\n{journal(unit)}")
        if time.monotonic() > until:
            module.fail_json(
                msg=f"Unable to start {unit} within {limit} s: {missing}.\n{journal(unit)}"
            )
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Entry point that Ansible calls on the host."""
    module = AnsibleModule(
        argument_spec={
            "type": {"type": "str", "required": True, "choices": ["server", "agent"]},
            "restart_action": {"type": "str", "default": "restart-rke2"},
            "wait_for": {"type": "str", "default": ""},
            "timeout_seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    unit, action = f"rke2-{module.params['type']}.service", module.params["restart_action"]
    state = unit_state(unit)
    done: list[str] = []
    is_running = state.get("ActiveState") in ("active", "activating", "reloading")
    if state.get("UnitFileState") != "enabled":
        done.append("enable")
    if is_owed(action) and is_running:
        done.append("restart")
    elif not is_running:
        done.append("start")
    result: dict[str, Any] = {"changed": bool(done), "done": done}
    if module.check_mode:
        module.exit_json(**result)
    started = time.monotonic()
    if "start" in done:
        if module.params["wait_for"]:
            await_supervisor(module)
        systemctl("reset-failed", unit)
    restarts_before = int(unit_state(unit).get("NRestarts", "0"))
    for step in done:
        systemctl(*(["enable", unit] if step == "enable" else [step, "--no-block", unit]))
    if "start" in done or "restart" in done:
        # systemd answers before the job has begun; the old state must not be read as the new one.
        time.sleep(POLL_SECONDS)
    wait(module, unit, restarts_before)
    settle(action)
    result["seconds"] = round(time.monotonic() - started, 1)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
