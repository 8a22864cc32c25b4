"""Sends signed deliveries over TLS and notes how long each answer took.

A client of its own, small enough to leave a core to the server: requests are signed before the
clock runs, connections are kept. Promises that an answer that is no 202 is an error and no figure.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.gateway_server import PROJECTS
from domain.webhooks.signatures import decoded_key, sign

FILLER_BYTES = 2048


class NotStored(Exception):
    """A delivery was not answered with 202."""


@dataclass
class Measured:
    """Latencies of one phase, and its time."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Deliveries in a second."""
        return len(self.latencies) / self.seconds


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def requests(key: str, count: int, port: int) -> list[bytes]:
    """Return so many signed deliveries of a push, ready to be written."""
    raw, now = decoded_key(key), int(time.time())
    made = []
    for number in range(count):
        project, message_id = number % PROJECTS + 1, str(uuid.uuid4())
        body = json.dumps(
            {
                "object_kind": "push",
                "ref": "refs/heads/main",
                "before": "1" * 40,
                "after": "2" * 40,
                "project_id": project,
                "project": {"id": project, "default_branch": "main"},
                "commits": [{"modified": ["app.yaml"], "message": "x" * FILLER_BYTES}],
                "total_commits_count": 1,
            }
        ).encode()
        head = (
            f"POST /gitlab HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"webhook-id: {message_id}\r\nwebhook-timestamp: {now}\r\n"
            f"webhook-signature: {sign(raw, message_id, now, body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


@dataclass
class Connection:
    """One kept connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext) -> Connection:
        """Connect with TLS."""
        pair = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        return cls(*pair)

    async def send(self, request: bytes) -> float:
        """Send a request and return the seconds until its answer was there."""
        began = time.perf_counter()
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        length = head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
        await self.reader.readexactly(int(length))
        if status != b"202":
            raise NotStored(f"A delivery was answered with {status.decode()}.")
        return time.perf_counter() - began


async def _connected(port: int, ca_file: str, count: int) -> list[Connection]:
    context = ssl.create_default_context(cafile=ca_file)
    return [await Connection.open(port, context) for _ in range(count)]


async def at_full_speed(
    port: int, ca_file: str, prepared: list[bytes], connections: int
) -> Measured:
    """Send all of it, each connection the next as soon as it has its answer."""
    opened = await _connected(port, ca_file, connections)
    waiting, measured = iter(prepared), Measured()

    async def work(connection: Connection) -> None:
        for request in waiting:
            measured.latencies.append(await connection.send(request))

    began = time.perf_counter()
    await asyncio.gather(*map(work, opened))
    measured.seconds = time.perf_counter() - began
    await _close(opened)
    return measured


async def at_a_pace(
    port: int, ca_file: str, prepared: list[bytes], connections: int, per_second: float
) -> Measured:
    """Send at fixed moments, whether earlier answers are there or not; waiting for one counts."""
    opened = await _connected(port, ca_file, connections)
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for connection in opened:
        free.put_nowait(connection)
    measured = Measured()

    async def send(request: bytes, due: float) -> None:
        connection = await free.get()
        await connection.send(request)
        measured.latencies.append(time.perf_counter() - due)
        free.put_nowait(connection)

    began, sent = time.perf_counter(), []
    for number, request in enumerate(prepared):
        due = began + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent.append(asyncio.create_task(send(request, due)))
    await asyncio.gather(*sent)
    measured.seconds = time.perf_counter() - began
    await _close(opened)
    return measured


async def _close(opened: Sequence[Connection]) -> None:
    for connection in opened:
        connection.writer.close()
    await asyncio.gather(
        *(connection.writer.wait_closed() for connection in opened), return_exceptions=True
    )
