"""Faults that tests and people inject into the simulated cluster, and the socket they use for it.

Why: the product promises to converge whatever the hypervisor does; each promise is tried with a
fault from this list. `python -m lab.hypervisor.faults --socket S list|set NAME [k=v...]|clear`;
`unlock VMID` is what an administrator does on a node by hand.

Promises: a fault survives a restart of the API until it is cleared; `fired` tells how often it
struck, so that a test can prove that it was tried. A fault with `count` strikes that many times.
Refuses: an unknown fault or parameter, by name; the control socket never listens on a network.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import socket
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.hypervisor.parameters import Schema, boolean, integer, number, string
from lab.hypervisor.store import Store

_COUNT = integer(1)
_MATCH = {"path": string(), "method": string(), "count": _COUNT, "rate": number(0, 1)}

KINDS: dict[str, tuple[str, Schema]] = {
    "clone-fails": (
        "a clone dies half-way; leaves nothing, its disk, or the locked machine behind",
        Schema(
            {
                "count": _COUNT,
                "vmid": integer(100),
                "leave": string(choices=("nothing", "disk", "machine")),
            }
        ),
    ),
    "storage-full": ("a storage has no space left", Schema({"storage": string(required=True)})),
    "task-hangs": (
        "tasks of a type stay running until the fault is cleared or the task is stopped",
        Schema({"type": string(), "vmid": integer(100), "count": _COUNT}),
    ),
    "api-error": (
        "requests are answered with an error, a silence or a cut connection",
        Schema(
            {
                **_MATCH,
                "status": string(choices=("500", "503", "595", "596", "timeout", "reset")),
                "when": string(choices=("before", "after")),
                "seconds": number(0, 600),
            }
        ),
    ),
    "machine-locked": (
        "somebody else holds a machine's configuration lock",
        Schema({"vmid": integer(100, required=True)}),
    ),
    "node-offline": (
        "a node is gone, and its guests with it unless keep_guests=1",
        Schema({"node": string(required=True), "keep_guests": boolean()}),
    ),
    "quorum-lost": ("the cluster is read-only", Schema({})),
    "token-revoked": ("a token is no longer accepted", Schema({"token": string(required=True)})),
}


class UnknownFault(ValueError):
    """There is no such fault, or it does not take such parameters."""


@dataclass
class Fault:
    """One injected fault."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    remaining: int | None = None
    fired: int = 0
    key: str = ""
    is_cleared: bool = False

    def document(self) -> dict[str, Any]:
        """What `list` shows."""
        shown = asdict(self)
        del shown["is_cleared"]
        return shown


class Faults:
    """The faults that are set now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._faults = [Fault(**document) for document in store.load("fault").values()]
        self._random = random.Random(20250101)  # noqa: S311 - a repeatable rate, not a secret

    def all(self) -> list[Fault]:
        """All faults, spent ones too."""
        return list(self._faults)

    def set(self, name: str, raw: dict[str, str]) -> Fault:
        """Inject a fault; the same name with the same parameters replaces the earlier one."""
        if name not in KINDS:
            raise UnknownFault(f"Unknown fault '{name}'. Known: {', '.join(sorted(KINDS))}.")
        try:
            parameters = KINDS[name][1].read(raw)
        except Exception as error:
            details = getattr(error, "errors", None) or str(error)
            raise UnknownFault(
                f"Fault '{name}' does not take these parameters: {details}"
            ) from None
        key = f"{name}:{json.dumps(parameters, sort_keys=True)}"
        self._drop([fault for fault in self._faults if fault.key == key])
        fault = Fault(name, parameters, parameters.get("count"), key=key)
        self._faults.append(fault)
        self._store.put("fault", key, fault.document())
        return fault

    def clear(self, name: str | None = None) -> list[Fault]:
        """Remove one kind of fault, or all."""
        gone = [fault for fault in self._faults if name in (None, fault.name)]
        self._drop(gone)
        return gone

    def _drop(self, gone: list[Fault]) -> None:
        for fault in gone:
            fault.is_cleared = True
            self._store.delete("fault", fault.key)
        self._faults = [fault for fault in self._faults if not fault.is_cleared]

    def active(self, name: str, **wanted: object) -> Fault | None:
        """A standing fault that applies (storage-full, node-offline...), without spending it."""
        for fault in self._faults:
            if fault.name == name and fault.remaining != 0 and _applies(fault, wanted):
                return fault
        return None

    def take(self, name: str, **wanted: object) -> Fault | None:
        """A fault that strikes now: it is counted, and spent when its count is used up."""
        fault = self.active(name, **wanted)
        if fault is None:
            return None
        rate = fault.parameters.get("rate")
        if rate is not None and self._random.random() >= rate:
            return None
        fault.fired += 1
        if fault.remaining is not None:
            fault.remaining -= 1
        self._store.put("fault", fault.key, fault.document())
        return fault


def _applies(fault: Fault, wanted: dict[str, object]) -> bool:
    for name, value in wanted.items():
        asked = fault.parameters.get(name)
        if asked is None:
            continue
        if name == "path":
            if not fnmatch.fnmatch(str(value), str(asked)):
                return False
        elif str(asked).lower() != str(value).lower():
            return False
    return True


def request(socket_path: Path, message: dict[str, Any], timeout_seconds: float = 30) -> Any:
    """Send one JSON line to the control socket and return the answer; UnknownFault if refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        connection.connect(str(socket_path))
        connection.sendall(json.dumps(message).encode() + b"\n")
        with connection.makefile("rb") as answers:
            answer = json.loads(answers.readline() or b"{}")
    if not answer.get("ok"):
        raise UnknownFault(answer.get("error", "The hypervisor did not answer."))
    return answer["faults"]


def _pairs(texts: list[str]) -> dict[str, str]:
    bad = [text for text in texts if "=" not in text]
    if bad:
        raise UnknownFault(f"Give parameters as name=value, not: {', '.join(bad)}")
    return dict(text.split("=", 1) for text in texts)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="lab.hypervisor.faults", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="STATE/faults.sock")
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("list", help="show the faults that are set")
    commands.add_parser("kinds", help="show what can be set")
    setter = commands.add_parser("set", help="inject a fault")
    setter.add_argument("name")
    setter.add_argument("parameters", nargs="*", metavar="name=value")
    clearer = commands.add_parser("clear", help="remove one kind of fault, or all")
    clearer.add_argument("name", nargs="?")
    unlocker = commands.add_parser("unlock", help="an administrator's `qm unlock` of a machine")
    unlocker.add_argument("vmid", type=int)
    given = parser.parse_args(arguments)
    if given.action == "kinds":
        for name, (meaning, schema) in sorted(KINDS.items()):
            print(f"{name:16} {meaning} ({', '.join(schema.parameters) or 'no parameters'})")
        return 0
    message: dict[str, Any] = {"action": given.action, "name": getattr(given, "name", None)}
    message["vmid"] = getattr(given, "vmid", None)
    try:
        message["parameters"] = _pairs(getattr(given, "parameters", []))
        faults = request(given.socket, message)
    except (UnknownFault, OSError) as error:
        print(f"Unable to {given.action} faults: {error}", file=sys.stderr)
        return 1
    print(json.dumps(faults, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
