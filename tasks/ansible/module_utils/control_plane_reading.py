"""Reads on a server what only the server can tell: etcd's members, what is in etcd, the audit log.

Why it exists: RKE2 installs no etcdctl, and whether Secrets are encrypted can be told by nobody but
etcd. Promises to ask etcd itself, in its own protocol (gRPC, carried by curl), and to return plain
answers only: no key, no value. What cannot be read is `unknown`, never a guess.
etcd's messages: https://etcd.io/docs/v3.6/dev-guide/api_reference_v3/
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
DATA = Path("/var/lib/rancher/rke2/server")
ENDPOINT = "https://127.0.0.1:2379"
TIMEOUT_SECONDS = 10
ENCRYPTED_PREFIX = b"k8s:enc:"
SECRETS_FROM, SECRETS_TO = b"/registry/secrets/", b"/registry/secrets0"
SECRETS_AT_MOST = 500
# One event holds a whole request and answer, and those of a definition have hundreds of kilobytes.
TAIL_BYTES = 8 << 20

Field = tuple[int, "int | bytes"]


class EtcdSilent(Exception):
    """etcd gave no answer that can be used."""


def varint(number: int) -> bytes:
    """Encode a number as protobuf does."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def message(fields: dict[int, int | bytes]) -> bytes:
    """Encode a protobuf message of numbers and byte strings."""
    out = b""
    for number, value in fields.items():
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7


def fields(data: bytes) -> Iterator[Field]:
    """Return the fields of a protobuf message, in their order."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _read_varint(data, position)
        else:
            size = {1: 8, 5: 4}[kind]
        yield tag >> 3, data[position : position + size]
        position += size


def _curl(url: str, data: Path) -> list[str]:
    tls = data / "tls" / "etcd"
    secure = ["--http2", "--cacert", str(tls / "server-ca.crt")]
    secure += ["--cert", str(tls / "client.crt"), "--key", str(tls / "client.key")]
    version = secure if url.startswith("https:") else ["--http2-prior-knowledge"]
    limits = ["--max-time", str(TIMEOUT_SECONDS), "--noproxy", "*"]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    return ["curl", "-q", "-sS", "-f", *limits, *version, *headers, "--data-binary", "@-", url]


def ask(method: str, request: bytes, endpoint: str, data: Path) -> bytes:
    """Return etcd's answer to one gRPC call.

    Raises:
        EtcdSilent: there is none.
    """
    frame = b"\x00" + len(request).to_bytes(4, "big") + request
    command = _curl(f"{endpoint}/etcdserverpb.{method}", data)
    try:
        ended = subprocess.run(
            command, input=frame, capture_output=True, timeout=TIMEOUT_SECONDS * 2, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EtcdSilent(str(error)) from error
    answer = ended.stdout
    size = int.from_bytes(answer[1:5], "big") if len(answer) >= 5 else -1
    # A refusal comes in the trailers, without a message.
    if ended.returncode != 0 or size < 0 or answer[0] != 0 or len(answer) < 5 + size:
        raise EtcdSilent(ended.stderr.decode(errors="replace").strip() or "refused")
    return answer[5 : 5 + size]


def is_healthy(client_urls: list[str], data: Path) -> bool:
    """Tell whether a member answers, knows a leader and has no error."""
    for url in client_urls:
        try:
            status = list(fields(ask("Maintenance/Status", b"", url, data)))
        except EtcdSilent:
            continue
        has_leader = any(number == 4 and value for number, value in status)
        return has_leader and not any(number == 8 for number, _ in status)
    return False


def members(endpoint: str = ENDPOINT, data: Path = DATA) -> list[dict[str, Any]] | str:
    """Return etcd's own list of its members, each asked for its health."""
    try:
        answer = ask("Cluster/MemberList", message({1: 1}), endpoint, data)
    except EtcdSilent:
        return UNKNOWN
    found = []
    for number, value in fields(answer):
        if number != 2 or not isinstance(value, bytes):
            continue
        parts = list(fields(value))

        def texts(wanted: int, parts: list[Field] = parts) -> list[str]:
            return [v.decode() for n, v in parts if n == wanted and isinstance(v, bytes)]

        found.append(
            {
                "name": "".join(texts(2)),
                "peer_urls": texts(3),
                "is_learner": any(n == 5 and v for n, v in parts),
                "is_healthy": is_healthy(texts(4), data),
            }
        )
    return sorted(found, key=lambda member: str(member["peer_urls"]))


def has_encrypted_secrets(endpoint: str = ENDPOINT, data: Path = DATA) -> bool | str:
    """Tell whether every Secret in etcd is stored encrypted; unknown when there is none."""
    request = message({1: SECRETS_FROM, 2: SECRETS_TO, 3: SECRETS_AT_MOST})
    try:
        answer = ask("KV/Range", request, endpoint, data)
    except EtcdSilent:
        return UNKNOWN
    pairs = [value for number, value in fields(answer) if number == 2 and isinstance(value, bytes)]
    stored = [value for pair in pairs for number, value in fields(pair) if number == 5]
    if not stored:
        return UNKNOWN
    return all(isinstance(v, bytes) and v.startswith(ENCRYPTED_PREFIX) for v in stored)


def audit_log_path(processes: Path = Path("/proc")) -> str | None:
    """Return where the running API server writes its audit log; nothing if it writes none."""
    for file in processes.glob("[0-9]*/cmdline"):
        try:
            arguments = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "kube-apiserver" not in " ".join(arguments[:2]):
            continue
        for argument in arguments:
            name, _, value = argument.lstrip("-").partition("=")
            if name == "audit-log-path" and value:
                return value
    return None


def has_audit_log(processes: Path = Path("/proc")) -> bool:
    """Tell whether the running API server writes events to its audit log."""
    path = audit_log_path(processes)
    if path is None:
        return False
    try:
        with Path(path).open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - TAIL_BYTES))
            lines = log.read().split(b"\n")[:-1]
    except OSError:
        return False
    # The first one may be cut by the seek.
    for line in reversed(lines):
        try:
            return bool(json.loads(line).get("kind") == "Event")
        except ValueError:
            continue
    return False


def control_plane(data: Path = DATA) -> dict[str, Any]:
    """Return a server's facts; nothing on a machine that is none."""
    if not (data / "tls" / "etcd").is_dir():
        return {}
    return {
        "etcd_members": members(data=data),
        "has_encrypted_secrets": has_encrypted_secrets(data=data),
        "has_audit_log": has_audit_log(),
    }
