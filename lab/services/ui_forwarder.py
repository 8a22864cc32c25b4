"""The one door out of the lab's network: 127.0.0.1 of the machine to the Prefect server inside.

The listening socket is opened on the host, then the process steps into the namespace: what it
accepts comes from outside, what it opens goes inside. Plain bytes, so WebSockets pass as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

from lab.layout import GATEWAY, PREFECT_PORT, Layout
from lab.services.https_probe import reason_not_ok_from_host
from lab.services.namespace import enter
from lab.services.service import Launch, Service

_CHUNK_BYTES = 64 * 1024


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection(GATEWAY, PREFECT_PORT)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
    finally:
        inner_writer.close()
        writer.close()


async def _serve(listener: socket.socket) -> None:
    server = await asyncio.start_server(_forward, sock=listener)
    async with server:
        await server.serve_forever()


def main() -> int:
    layout = Layout.from_environment()
    listener = socket.create_server(("127.0.0.1", layout.ui_port), backlog=128)
    enter(layout.namespace_path)
    asyncio.run(_serve(listener))
    return 0


def is_healthy(layout: Layout) -> str | None:
    return reason_not_ok_from_host(f"{layout.ui_url}/api/health")


SERVICE = Service(
    name="ui",
    summary="Prefect UI on the machine's own 127.0.0.1",
    launch=lambda _: Launch(
        command=[sys.executable, "-m", "lab.services.ui_forwarder"], is_inside_namespace=False
    ),
    is_healthy=is_healthy,
    needs=("prefect",),
)

if __name__ == "__main__":
    sys.exit(main())
