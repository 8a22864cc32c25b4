"""Answers of the QEMU guest agent, from inside the real guest.

Why: the flow reads addresses and SSH host keys through this trusted channel, so they must be the
guest's own.

Refuses: agent commands that the lab has no use for (fsfreeze, fstrim, suspend...), with 501.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from lab.hypervisor.calls import Call
from lab.hypervisor.exceptions import ApiError, NotSimulated
from lab.hypervisor.guest_runtime import GuestRuntimeError
from lab.hypervisor.hypervisor import Hypervisor

T = TypeVar("T")
READ_LIMIT_BYTES = 16 * 1024**2
ANSWER_SECONDS = 5.0
COMMAND_SECONDS = 600.0
KEPT_COMMANDS = 1000
SILENT = "QEMU guest agent is not running"


@dataclass
class AgentCommand:
    """A command that runs, or ran, inside a guest."""

    vmid: int
    task: asyncio.Task[tuple[int, bytes, bytes]]


_commands: dict[tuple[int, int], AgentCommand] = {}


async def _require_agent(call: Call) -> Hypervisor:
    vm = call.machine()
    if not vm.has_agent:
        raise ApiError("No QEMU guest agent configured")
    state = await call.hypervisor.state(vm)
    if state == "stopped":
        raise ApiError(f"VM {vm.vmid} is not running")
    if state == "paused":
        raise ApiError(SILENT)
    return call.hypervisor


async def _ask(answer: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(answer, ANSWER_SECONDS)
    except (GuestRuntimeError, TimeoutError) as error:
        raise ApiError(SILENT) from error


async def ping(call: Call) -> Any:
    """POST .../agent/ping: the guest must run a command to count as there."""
    hypervisor = await _require_agent(call)
    await _ask(hypervisor.runtime.execute(call.vmid, ["true"], b""))
    return {"result": {}}


async def interfaces(call: Call) -> Any:
    """GET .../agent/network-get-interfaces."""
    hypervisor = await _require_agent(call)
    return {"result": await _ask(hypervisor.runtime.interfaces(call.vmid))}


async def _output(call: Call, *argv: str) -> str:
    hypervisor = await _require_agent(call)
    code, out, err = await _ask(hypervisor.runtime.execute(call.vmid, list(argv), b""))
    if code:
        raise ApiError(f"Agent error: {err.decode(errors='replace').strip() or argv[0]}")
    return out.decode(errors="replace")


async def os_info(call: Call) -> Any:
    """GET .../agent/get-osinfo."""
    hypervisor = await _require_agent(call)
    text = (await _ask(hypervisor.runtime.read_file(call.vmid, "/etc/os-release"))).decode()
    pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    values = {key: value.strip('"') for key, value in pairs.items()}
    kernel = {flag: (await _output(call, "uname", flag)).strip() for flag in ("-r", "-v", "-m")}
    return {
        "result": {
            "id": values.get("ID", ""),
            "name": values.get("NAME", ""),
            "pretty-name": values.get("PRETTY_NAME", ""),
            "version": values.get("VERSION", ""),
            "version-id": values.get("VERSION_ID", ""),
            "kernel-release": kernel["-r"],
            "kernel-version": kernel["-v"],
            "machine": kernel["-m"],
        }
    }


async def host_name(call: Call) -> Any:
    """GET .../agent/get-host-name."""
    return {"result": {"host-name": (await _output(call, "hostname")).strip()}}


async def file_systems(call: Call) -> Any:
    """GET .../agent/get-fsinfo: what the guest's df says."""
    table = await _output(call, "df", "-P", "-T", "-B1", "-x", "tmpfs", "-x", "devtmpfs")
    entries = []
    for line in table.splitlines()[1:]:
        source, kind, total, used, _free, _percent, place = line.split(None, 6)
        if place.startswith("/run/host"):  # the container's window to the host, no guest has it
            continue
        entries.append(
            {
                "name": source,
                "type": kind,
                "mountpoint": place,
                "total-bytes": int(total),
                "used-bytes": int(used),
                "disk": [],
            }
        )
    return {"result": entries}


async def execute(call: Call) -> Any:
    """POST .../agent/exec: starts the command and answers its number."""
    hypervisor = await _require_agent(call)
    argv = [str(part) for part in call.params["command"]]
    data = str(call.params.get("input-data", "")).encode()
    command = hypervisor.runtime.execute(call.vmid, argv, data)
    pid = secrets.randbelow(30000) + 1000
    task = asyncio.ensure_future(asyncio.wait_for(command, COMMAND_SECONDS))
    _commands[(call.vmid, pid)] = AgentCommand(call.vmid, task)
    for old in [key for key, known in _commands.items() if known.task.done()][:-KEPT_COMMANDS]:
        del _commands[old]
    return {"pid": pid}


async def execute_status(call: Call) -> Any:
    """GET .../agent/exec-status."""
    await _require_agent(call)
    command = _commands.get((call.vmid, call.params["pid"]))
    if command is None:
        raise ApiError(f"Agent error: PID {call.params['pid']} does not exist")
    if not command.task.done():
        return {"exited": 0}
    error = command.task.exception()
    if isinstance(error, FileNotFoundError):
        return {"exited": 1, "exitcode": 127, "err-data": f"{error}\n"}
    if error is not None:
        raise ApiError(SILENT)
    code, out, err = command.task.result()
    status: dict[str, Any] = {"exited": 1, "exitcode": code}
    for name, data in (("out", out), ("err", err)):
        if data:
            status[f"{name}-data"] = data.decode(errors="replace")
            status[f"{name}-truncated"] = 0
    return status


async def file_read(call: Call) -> Any:
    """GET .../agent/file-read."""
    hypervisor, path = await _require_agent(call), call.params["file"]
    try:
        content = await _ask(hypervisor.runtime.read_file(call.vmid, path))
    except FileNotFoundError:
        raise ApiError(
            f"Agent error: failed to open file '{path}' (mode: 'r'): No such file or directory"
        ) from None
    answer: dict[str, Any] = {"content": content[:READ_LIMIT_BYTES].decode("latin-1")}
    if len(content) > READ_LIMIT_BYTES:
        answer["truncated"] = 1
    return answer


async def file_write(call: Call) -> Any:
    """POST .../agent/file-write: `encode=0` means that the content is Base64 already."""
    hypervisor = await _require_agent(call)
    text = str(call.params["content"])
    is_plain = call.params.get("encode", 1)
    content = text.encode() if is_plain else base64.b64decode(text)
    await _ask(hypervisor.runtime.write_file(call.vmid, call.params["file"], content))


async def generic(call: Call) -> Any:
    """POST .../agent with `command`: the commands above, by name."""
    name = call.params["command"]
    if name not in _BY_NAME:
        raise NotSimulated(f"Guest agent command '{name}'")
    return await _BY_NAME[name](call)


_BY_NAME = {
    "ping": ping,
    "network-get-interfaces": interfaces,
    "get-osinfo": os_info,
    "get-host-name": host_name,
    "get-fsinfo": file_systems,
}
