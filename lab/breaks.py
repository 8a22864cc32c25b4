"""Faults that a person or a test sets on purpose, and takes away again.

The API's own faults are the hypervisor's and are passed on to it. A guest's faults are real inside
the guest. Every fault of a guest that is set is noted, so that `clear` finds it after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lab.hypervisor.faults import KINDS, UnknownFault, request
from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.guests.faults import GuestFaults
from lab.hypervisor.guests.runtime import NspawnRuntime
from lab.layout import Layout
from lab.services import openbao, proxmox
from lab.services.files import write_atomically
from lab.toolchain.paths import guest_image

_GUEST_KINDS: Mapping[str, tuple[str, str, str]] = {
    "guest-hangs": ("hang", "unhang", "a guest stops dead; the hypervisor calls it running"),
    "guest-disk-full": ("fill_disk", "empty_disk", "a guest's disk has no space left"),
    "guest-cut": ("cut", "uncut", "a guest's network cable is pulled"),
}
OPENBAO_SEALED = "openbao-sealed"


class BreakFailed(Exception):
    """The fault is unknown, lacks its parameters, or could not be set."""


def kinds() -> list[tuple[str, str, str]]:
    """(name, meaning, parameters) of everything that can be broken."""
    listed = [
        (name, meaning, ", ".join(schema.parameters)) for name, (meaning, schema) in KINDS.items()
    ]
    listed += [(name, kind[2], "vmid (required)") for name, kind in _GUEST_KINDS.items()]
    listed.append((OPENBAO_SEALED, "OpenBao is sealed and stays so", ""))
    return sorted(listed)


def current(layout: Layout) -> list[dict[str, Any]]:
    """The faults that are set now."""
    shown: list[dict[str, Any]] = []
    if proxmox.faults_socket(layout).exists():
        try:
            shown += request(proxmox.faults_socket(layout), {"action": "list"})
        except OSError as error:
            shown.append({"name": "?", "parameters": {"proxmox": f"does not answer ({error})"}})
    shown += [{"name": name, "parameters": {"vmid": vmid}} for name, vmid in sorted(_noted(layout))]
    if openbao.sealed_on_purpose_file(layout).exists():
        shown.append({"name": OPENBAO_SEALED, "parameters": {}})
    return shown


def set_fault(layout: Layout, name: str, parameters: Mapping[str, str]) -> None:
    """Break it."""
    if name in _GUEST_KINDS:
        vmid = _vmid(name, parameters)
        # Noted first: a fault that was set but not noted could never be cleared.
        _note(layout, _noted(layout) | {(name, vmid)})
        try:
            _act(layout, _GUEST_KINDS[name][0], vmid)
        except BreakFailed:
            _note(layout, _noted(layout) - {(name, vmid)})
            raise
    elif name == OPENBAO_SEALED:
        openbao.seal(layout)
    elif name in KINDS:
        _ask(layout, {"action": "set", "name": name, "parameters": dict(parameters)})
    else:
        names = ", ".join(kind[0] for kind in kinds())
        raise BreakFailed(f"Unable to break {name!r}: unknown. Known: {names}.")


def clear(layout: Layout, name: str | None = None) -> list[str]:
    """Take one kind of fault away, or all. Returns what was cleared, in words."""
    cleared: list[str] = []
    for fault, vmid in sorted(_noted(layout)):
        if name in (None, fault):
            # A guest that is gone or was started anew has lost its fault already.
            with contextlib.suppress(BreakFailed):
                _act(layout, _GUEST_KINDS[fault][1], vmid)
            _note(layout, _noted(layout) - {(fault, vmid)})
            cleared.append(f"{fault} of VM {vmid}")
    if name in (None, OPENBAO_SEALED) and openbao.clear_seal(layout):
        cleared.append(OPENBAO_SEALED)
    if (name is None or name in KINDS) and proxmox.faults_socket(layout).exists():
        standing = _ask(layout, {"action": "list"})
        _ask(layout, {"action": "clear", "name": name})
        cleared += [str(fault["name"]) for fault in standing if name in (None, fault["name"])]
    return cleared


def _ask(layout: Layout, message: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        answer: list[dict[str, Any]] = request(proxmox.faults_socket(layout), message)
    except UnknownFault as error:
        raise BreakFailed(str(error)) from error
    except OSError as error:
        raise BreakFailed(
            f"Unable to reach the hypervisor's control socket: {error}. "
            "Look at `infraflows-lab status`."
        ) from error
    return answer


def _act(layout: Layout, method: str, vmid: int) -> None:
    runtime = NspawnRuntime(
        proxmox.guests_directory(layout), guest_image(), layout.namespace, layout.instance
    )
    action: Callable[[int], Awaitable[None]] = getattr(GuestFaults(runtime), method)

    async def run() -> None:
        await action(vmid)

    try:
        asyncio.run(run())
    except (GuestRuntimeError, OSError) as error:
        raise BreakFailed(str(error)) from error


def _vmid(name: str, parameters: Mapping[str, str]) -> int:
    text = parameters.get("vmid", "")
    if not text.isdigit() or set(parameters) != {"vmid"}:
        raise BreakFailed(f"Unable to set {name}: give vmid=NUMBER, and nothing else.")
    return int(text)


def _noted(layout: Layout) -> set[tuple[str, int]]:
    try:
        pairs = json.loads((layout.run_directory / "guest-faults.json").read_text("utf-8"))
    except (OSError, ValueError):
        return set()
    return {(str(name), int(vmid)) for name, vmid in pairs if name in _GUEST_KINDS}


def _note(layout: Layout, faults: set[tuple[str, int]]) -> None:
    write_atomically(layout.run_directory / "guest-faults.json", json.dumps(sorted(faults)))
