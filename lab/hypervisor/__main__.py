"""Runs the simulated Proxmox VE cluster: `python -m lab.hypervisor --state DIR ...`.

Why: one process stands for the API of all nodes; guests are processes of their own and outlive it.

Promises: state and guests survive a restart or SIGKILL of this process.
Refuses: TLS below 1.3, as the OpenTofu provider does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from lab.hypervisor.guests.runtime import NspawnRuntime
from lab.hypervisor.hypervisor import Hypervisor, Settings
from lab.hypervisor.server import ReasonProtocol, application, serve_faults

NODES = "pve1=10.90.0.11,pve2=10.90.0.12,pve3=10.90.0.13"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab.hypervisor", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="where the cluster's state is")
    parser.add_argument("--guests", type=Path, required=True, help="where disks and guests are")
    parser.add_argument("--image", type=Path, required=True, help="the template's root file system")
    parser.add_argument("--instance", default="lab", help="name of the lab, in cgroups and links")
    parser.add_argument("--netns", help="network namespace to listen in and to attach guests to")
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on")  # noqa: S104
    parser.add_argument("--port", type=int, default=8006)
    parser.add_argument("--cert", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--nodes", default=NODES, help="name=address, separated by commas")
    parser.add_argument(
        "--tokens",
        type=Path,
        help='JSON file: {"user@realm!name": {"secret": "...", "acl": {"/path": ["Role", ...]}}}',
    )
    parser.add_argument(
        "--time-scale", type=float, default=1.0, help="0 = simulated work is instant"
    )
    parser.add_argument("--lock-timeout-seconds", type=float, default=10.0)
    parser.add_argument("--clone-slots", type=int, default=4, help="clones of one source at once")
    return parser.parse_args()


@contextlib.contextmanager
def _inside_namespace(name: str | None) -> Iterator[None]:
    """Be in a network namespace for a moment: sockets made there stay there."""
    if name is None:
        yield
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, 0x40000000):  # CLONE_NEWNET
            code = ctypes.get_errno()
            raise OSError(code, f"Unable to enter network namespace {name}: {os.strerror(code)}")

    with Path("/proc/self/ns/net").open("rb") as home:
        with Path("/run/netns", name).open("rb") as target:
            enter(target.fileno())
        try:
            yield
        finally:
            enter(home.fileno())


def _listen(given: argparse.Namespace) -> socket.socket:
    with _inside_namespace(given.netns):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((given.address, given.port))
    listener.listen(256)
    listener.setblocking(False)
    return listener


def tls_server(config: uvicorn.Config) -> uvicorn.Server:
    """A uvicorn server that speaks TLS 1.3 only."""
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return uvicorn.Server(config)


async def _run(given: argparse.Namespace) -> None:
    addresses = dict(pair.split("=", 1) for pair in given.nodes.split(","))
    settings = Settings(
        state_directory=given.state,
        node_addresses=addresses,
        time_scale=given.time_scale,
        lock_timeout_seconds=given.lock_timeout_seconds,
        clone_slots=given.clone_slots,
    )
    runtime = NspawnRuntime(given.guests, given.image, given.netns or "", given.instance)
    hypervisor = Hypervisor(settings, runtime)
    if given.tokens is not None:
        for identifier, token in json.loads(given.tokens.read_text()).items():
            hypervisor.access.define(identifier, token["secret"], token["acl"])
    await hypervisor.open()
    server = tls_server(
        uvicorn.Config(
            application(hypervisor),
            http=ReasonProtocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            ssl_certfile=str(given.cert),
            ssl_keyfile=str(given.key),
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
    )
    control = await serve_faults(hypervisor)
    try:
        await server.serve(sockets=[_listen(given)])
    finally:
        control.close()
        await hypervisor.close()


def main() -> int:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    given = _arguments()
    given.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    asyncio.run(_run(given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
