"""The ledger: one signed, chained line per step that changed something.

Exists so that a stranger can check, offline and years later, what was done, in which order, by
which run. Promises that a line that was altered, dropped, moved or added is found and named.
A line holds names, counts and hashes; it refuses values by having no place for them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

GENESIS = "0" * 64
"""What the first line names as the hash of its predecessor."""

_NAMESPACE = uuid.UUID("5d0a0a7e-5f0e-5c43-9d0c-0d8a3b1e7f11")

VerifySignature = Callable[[int, bytes, bytes], bool]
"""(key version, signature, message) -> whether the signature is right."""


@dataclass(frozen=True)
class Step:
    """What a run did to one target."""

    run_id: str
    environment: str
    target: str
    step: str
    outcome: str
    details: Mapping[str, str | int | float | bool]

    @property
    def step_id(self) -> str:
        """Derived from the step, so that writing it again is the same act."""
        return str(uuid.uuid5(_NAMESPACE, canonical(asdict(self)).decode()))


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a ledger."""

    line: int
    text: str


def canonical(value: Any) -> bytes:
    """Serialise to the one form that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def unsigned_entry(step: Step, sequence: int, previous: str, time: str) -> dict[str, Any]:
    """Return the part of a line that is hashed and signed."""
    return {
        "sequence": sequence,
        "time": time,
        "previous": previous,
        "id": step.step_id,
        **asdict(step),
    }


def entry_hash(entry: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a line without its hash and signature, in hexadecimal."""
    body = {key: value for key, value in entry.items() if key not in ("hash", "signature")}
    return hashlib.sha256(canonical(body)).hexdigest()


def split_signature(signature: str) -> tuple[int, bytes]:
    """Split `vault:v<version>:<base64>` into key version and signature bytes.

    Raises:
        ValueError: it has another form.
    """
    prefix, version, encoded = signature.split(":", 2)
    if prefix != "vault" or not version.startswith("v"):
        raise ValueError("the signature is not of the form vault:v<version>:<base64>")
    try:
        return int(version[1:]), base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError("the signature is not base64") from error


def _line_problem(
    entry: Any, expected_sequence: int, previous: str, is_signed: VerifySignature
) -> str | None:
    """Return what is wrong with one parsed line, or None."""
    if not isinstance(entry, dict) or not {"hash", "signature", "previous"} <= entry.keys():
        return "is not a ledger line"
    if entry.get("sequence") != expected_sequence:
        found = entry.get("sequence")
        return f"has sequence {found}, expected {expected_sequence}: lines are missing or moved"
    if entry["previous"] != previous:
        return "does not follow the line before it: a line was altered, dropped or added"
    if entry["hash"] != entry_hash(entry):
        return "was altered: its hash does not match its content"
    try:
        version, signature = split_signature(str(entry["signature"]))
    except ValueError as error:
        return f"has no valid signature: {error}"
    if not is_signed(version, signature, str(entry["hash"]).encode()):
        return f"has a signature that key version {version} did not make"
    return None


def verify(lines: Iterable[str], is_signed: VerifySignature) -> tuple[int, list[Finding]]:
    """Check a whole ledger; returns the number of lines and everything that is wrong."""
    findings: list[Finding] = []
    previous, count = GENESIS, 0
    for number, line in enumerate(lines, start=1):
        count = number
        try:
            entry = json.loads(line)
        except ValueError:
            findings.append(Finding(number, "is not JSON: it was cut or altered"))
            continue
        problem = _line_problem(entry, number, previous, is_signed)
        if problem:
            findings.append(Finding(number, problem))
        if isinstance(entry, dict):
            previous = str(entry.get("hash", previous))
    return count, findings
