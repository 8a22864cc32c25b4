#!/usr/bin/python3
"""One round trip for a role's files, the acts that follow from them, and its services.

Promises that a file is replaced whole or not at all, that it is checked before it takes effect,
that an act which a changed file calls for is done even if the run was killed in between, and that
nothing is reported as changed that was as wanted. Returns paths and names, never content.
"""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]
from ansible.module_utils.host_lock import exclusive  # type: ignore[import-untyped]
from ansible.module_utils.pending_actions import (  # type: ignore[import-untyped]
    is_owed,
    owe,
    settle,
)

DOCUMENTATION = r"""
module: host_configuration
short_description: Files, the acts that they call for, and services, in one go
options:
  files:
    description: Files in order; each has path and one of content, link_to, absent.
    type: list
    elements: dict
  actions:
    description: Acts by name; a command, or none when another module does the act.
    type: dict
  services:
    description: Units with is_enabled and is_started.
    type: list
    elements: dict
"""

FILE_OPTIONS = {
    "path": {"type": "str", "required": True},
    "content": {"type": "str", "no_log": False},
    "link_to": {"type": "str"},
    "absent": {"type": "bool", "default": False},
    "mode": {"type": "str", "default": "0644"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "check": {"type": "str"},
    "then": {"type": "list", "elements": "str", "default": []},
}
SERVICE_OPTIONS = {
    "name": {"type": "str", "required": True},
    "is_enabled": {"type": "bool", "default": True},
    "is_started": {"type": "bool", "default": True},
}


class Failed(Exception):
    """A command that was needed did not succeed."""


def run(command: list[str], timeout_seconds: float = 120) -> str:
    """Return the command's output or raise with the end of it."""
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(command)}: {error}") from error
    if ended.returncode != 0:
        output = (ended.stderr.strip() or ended.stdout.strip())[-1500:]
        raise Failed(f"{' '.join(command)} ended with {ended.returncode}: {output}")
    return ended.stdout


def is_as_wanted(file: dict[str, Any]) -> bool:
    """Return whether the file needs nothing."""
    path = Path(file["path"])
    if file["absent"]:
        return not path.exists() and not path.is_symlink()
    if file["link_to"]:
        return path.is_symlink() and str(path.readlink()) == file["link_to"]
    try:
        details = path.lstat()
    except FileNotFoundError:
        return False
    return (
        path.is_file()
        and not path.is_symlink()
        and details.st_mode & 0o7777 == int(file["mode"], 8)
        and details.st_uid == pwd.getpwnam(file["owner"]).pw_uid
        and details.st_gid == grp.getgrnam(file["group"]).gr_gid
        and path.read_bytes() == file["content"].encode()
    )


def put(file: dict[str, Any]) -> None:
    """Make the file as wanted, at once and after its check."""
    path = Path(file["path"])
    if file["absent"]:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name ends as the file's own does, for checkers that go by it.
    temporary = path.with_name(f".infraflows-new-{path.name}")
    temporary.unlink(missing_ok=True)
    try:
        if file["link_to"]:
            temporary.symlink_to(file["link_to"])
        else:
            mode = int(file["mode"], 8)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(file["content"].encode())
                os.fchown(
                    stream.fileno(),
                    pwd.getpwnam(file["owner"]).pw_uid,
                    grp.getgrnam(file["group"]).gr_gid,
                )
                os.fchmod(stream.fileno(), mode)
                stream.flush()
                os.fsync(stream.fileno())
            if file["check"]:
                run([part.replace("%s", str(temporary)) for part in file["check"].split()])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def unit_state(name: str) -> dict[str, str]:
    """Return what systemd says of a unit."""
    wanted = "LoadState,UnitFileState,ActiveState"
    lines = run(["systemctl", "show", "-p", wanted, name]).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def service_commands(service: dict[str, Any]) -> list[list[str]]:
    """Return what has to be done so that the service is as wanted."""
    name, commands = service["name"], []
    state = unit_state(name)
    if state.get("LoadState") != "loaded":
        if service["is_enabled"] or service["is_started"]:
            raise Failed(f"unit {name} is {state.get('LoadState')}: its package is not installed")
        return []
    is_enabled = state.get("UnitFileState") in ("enabled", "static", "alias", "indirect")
    if is_enabled != service["is_enabled"] and state.get("UnitFileState") != "static":
        commands.append(["systemctl", "enable" if service["is_enabled"] else "disable", name])
    is_started = state.get("ActiveState") in ("active", "activating", "reloading")
    if is_started != service["is_started"]:
        commands.append(["systemctl", "start" if service["is_started"] else "stop", name])
    return commands


def apply(module: AnsibleModule, result: dict[str, Any]) -> None:
    """Do all of it, and note in `result` what was done, as it is done."""
    actions: dict[str, str] = module.params["actions"]
    for file in module.params["files"]:
        if is_as_wanted(file):
            continue
        result["changed"] = True
        result["changed_paths"].append(file["path"])
        if module.check_mode:
            continue
        for name in file["then"]:
            if name not in actions:
                raise Failed(f"{file['path']} calls for {name}, which is no action")
            owe(name)
        put(file)
    for name, command in actions.items():
        # An action without a command is another module's to do: the debt stays for it.
        if command and is_owed(name):
            result["changed"] = True
            result["actions_done"].append(name)
            if not module.check_mode:
                run(["/bin/sh", "-c", command])
                settle(name)
    for service in module.params["services"]:
        for step in service_commands(service):
            result["changed"] = True
            result["services_changed"].append(" ".join(step[1:]))
            if not module.check_mode:
                run(step)


def main() -> None:
    """Entry point that Ansible calls on the host."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "options": FILE_OPTIONS, "default": []},
            "actions": {"type": "dict", "default": {}},
            "services": {
                "type": "list",
                "elements": "dict",
                "options": SERVICE_OPTIONS,
                "default": [],
            },
        },
        supports_check_mode=True,
    )
    result: dict[str, Any] = {
        "changed": False,
        "changed_paths": [],
        "actions_done": [],
        "services_changed": [],
    }
    try:
        with exclusive():
            apply(module, result)
    except (Failed, OSError, KeyError, ValueError) as error:
        module.fail_json(msg=f"Unable to configure the host: {error}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
