"""The command `python -m benchmarks.gateway`: deliveries a second and how long an answer takes.

The product's gateway against an application that only answers, in the same run, on the same server
software with the same TLS, round by round in turns. Every delivery of the gateway is verified and
on disk when its answer is counted. The page is written by a complete measurement only.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.__main__ import PAGE, PARTIAL, ROOT
from benchmarks.gateway_figures import (
    GatewayResults,
    LoadFigures,
    RoundFigures,
    gateway_section,
    read_gateway,
    with_gateway_section,
)
from benchmarks.gateway_load import (
    Measured,
    at_a_pace,
    at_full_speed,
    quantile,
    requests,
)
from benchmarks.machine import this_machine
from domain.webhooks.signatures import encoded_key
from lab.bare_control_plane import Authority, free_ports

FIGURES = ROOT / "benchmarks" / "results_gateway.json"
CONNECTIONS = 32
PACE_PER_SECOND = 100.0
COMPLETE_ROUNDS, COMPLETE_DELIVERIES = 3, 4000
WARM_DELIVERIES = 200
START_SECONDS = 60.0
PACKAGES = ("starlette", "uvicorn", "uvloop", "httptools")


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[int]:
    """Run one of the servers; yields its port."""
    (port,) = free_ports(1)
    command = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable]
    command += ["-m", "benchmarks.gateway_server", "--kind", kind]
    command += ["--port", str(port), "--directory", str(directory)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Unable to start the server {kind}: it does not answer.")
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _figures(measured: Measured) -> LoadFigures:
    return LoadFigures(
        per_second=round(measured.rate, 1),
        p50_milliseconds=round(quantile(measured.latencies, 0.5) * 1000, 2),
        p99_milliseconds=round(quantile(measured.latencies, 0.99) * 1000, 2),
        longest_milliseconds=round(max(measured.latencies) * 1000, 2),
    )


def _loads(kind: str, directory: Path, key: str, count: int) -> tuple[LoadFigures, LoadFigures]:
    ca_file = str(directory / "ca.crt")
    with serving(kind, directory) as port:
        paced = max(WARM_DELIVERIES, count // 4)
        warm, full, slow = (requests(key, n, port) for n in (WARM_DELIVERIES, count, paced))
        asyncio.run(at_full_speed(port, ca_file, warm, CONNECTIONS))
        at_speed = asyncio.run(at_full_speed(port, ca_file, full, CONNECTIONS))
        at_pace = asyncio.run(at_a_pace(port, ca_file, slow, CONNECTIONS, PACE_PER_SECOND))
    return _figures(at_speed), _figures(at_pace)


def _fsync_milliseconds(directory: Path) -> float:
    times = []
    with (directory / "page").open("wb") as file:
        for _ in range(60):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1000, 2)


def measured(rounds: int, deliveries: int) -> GatewayResults:
    """Measure so many rounds."""
    machine = this_machine()
    versions = {"Python": machine.versions["Python"], **{n: version(n) for n in PACKAGES}}
    found = []
    # Not in memory: the time to write for good is what is measured.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        Authority(directory).issue("server", "gateway", "infraflows")
        key = encoded_key(secrets.token_bytes(32))
        (directory / "signing_key").touch(mode=0o600)
        (directory / "signing_key").write_text(key, encoding="ascii")
        fsync = _fsync_milliseconds(directory)
        for number in range(rounds):
            load = round(os.getloadavg()[0], 2)
            bare = _loads("bare", directory, key, deliveries)
            gateway = _loads("gateway", directory, key, deliveries)
            found.append(
                RoundFigures(
                    load_average=load,
                    bare_full=bare[0],
                    bare_paced=bare[1],
                    gateway_full=gateway[0],
                    gateway_paced=gateway[1],
                )
            )
            print(f"round {number + 1}: {found[-1]!r}", flush=True)
    return GatewayResults(
        machine=machine.model_copy(update={"versions": versions}),
        deliveries=deliveries,
        connections=CONNECTIONS,
        pace_per_second=PACE_PER_SECOND,
        fsync_milliseconds=fsync,
        rounds=found,
    )


def write_page(results: GatewayResults | None) -> None:
    """Write the gateway's section of the committed page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_gateway_section(page, results), encoding="utf-8")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Comparisons.")] = COMPLETE_ROUNDS,
    deliveries: Annotated[int, typer.Option(min=100, help="Of each.")] = COMPLETE_DELIVERIES,
    render: Annotated[
        bool, typer.Option("--render", help="Measure nothing; write the page anew.")
    ] = False,
) -> None:
    """Measure the gateway against a bare ASGI application."""
    if render:
        write_page(read_gateway(FIGURES))
        return
    results = measured(rounds, deliveries)
    print(f"\n{gateway_section(results)}")
    if rounds >= COMPLETE_ROUNDS and deliveries >= COMPLETE_DELIVERIES:
        results.store(FIGURES)
        write_page(results)
        print(f"\nWritten: {FIGURES}, {PAGE}")
    else:
        PARTIAL.mkdir(parents=True, exist_ok=True)
        results.store(PARTIAL / FIGURES.name)
        print(f"\nNot complete: the figures are in {PARTIAL} only.")


if __name__ == "__main__":
    typer.run(main)
