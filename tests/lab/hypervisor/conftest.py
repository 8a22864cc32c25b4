"""A simulated cluster on a free port, with guests that live in memory only."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab.hypervisor.__main__ import tls_server
from lab.hypervisor.faults import request as control
from lab.hypervisor.guest_runtime import GuestConfig, GuestNotRunning, GuestState, GuestUsage
from lab.hypervisor.hypervisor import Hypervisor, Settings
from lab.hypervisor.server import ReasonProtocol, application, serve_faults

SECRET = "8f6f3f5e-0b43-4f0c-9a39-5d5a1f2b7a11"
WORKER = "infraflows@pve!worker"
AUDITOR = "audit@pve!reader"
ADMINISTRATOR = "admin@pve!operator"
ACL = {
    "/": ["PVEAuditor"],
    "/vms": ["PVEVMAdmin"],
    "/storage": ["PVEDatastoreAdmin"],
    "/pool": ["PVEPoolAdmin", "PVEVMAdmin"],
    "/sdn": ["PVESDNUser"],
}


@dataclass
class MemoryRuntime:
    """Keeps every promise of GuestRuntime but the one that a guest is a real machine."""

    disks: dict[str, dict[str, Any]] = field(default_factory=dict)
    guests: dict[int, GuestConfig] = field(default_factory=dict)
    files: dict[tuple[int, str], bytes] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)
    deaf: set[int] = field(default_factory=set)  # guests that ignore the power button

    async def create_disk(self, disk_id: str, size_bytes: int, source: str | None) -> None:
        content = self.disks[source]["content"] if source else "base"
        self.disks.setdefault(disk_id, {"size": size_bytes, "content": content, "snapshots": {}})

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        self.disks[disk_id]["size"] = size_bytes

    async def delete_disk(self, disk_id: str) -> None:
        self.disks.pop(disk_id, None)

    async def snapshot_disk(self, disk_id: str, name: str) -> None:
        self.disks[disk_id]["snapshots"][name] = self.disks[disk_id]["content"]

    async def rollback_disk(self, disk_id: str, name: str) -> None:
        self.disks[disk_id]["content"] = self.disks[disk_id]["snapshots"][name]

    async def delete_snapshot(self, disk_id: str, name: str) -> None:
        self.disks[disk_id]["snapshots"].pop(name, None)

    async def export_disk(self, disk_id: str, target: Path) -> None:
        target.write_text(self.disks[disk_id]["content"])

    async def import_disk(self, disk_id: str, source: Path) -> None:
        self.disks[disk_id]["content"] = source.read_text()

    async def start(self, guest: GuestConfig) -> None:
        assert guest.disk_id in self.disks
        self.guests[guest.vmid] = guest

    async def stop(self, vmid: int, *, graceful_timeout_seconds: float | None) -> None:
        if graceful_timeout_seconds is not None and vmid in self.deaf and vmid in self.guests:
            raise TimeoutError
        self.guests.pop(vmid, None)
        self.paused.discard(vmid)

    async def reset(self, vmid: int) -> None:
        self.paused.discard(vmid)

    async def suspend(self, vmid: int) -> None:
        self.paused.add(vmid)

    async def resume(self, vmid: int) -> None:
        self.paused.discard(vmid)

    async def is_running(self, vmid: int) -> bool:
        return vmid in self.guests

    async def state(self, vmid: int) -> GuestState:
        if vmid not in self.guests:
            return "stopped"
        return "paused" if vmid in self.paused else "running"

    async def interfaces(self, vmid: int) -> list[dict[str, object]]:
        guest = self.guests[vmid]
        entries = [text.split("/") for text in guest.addresses]
        return [
            {
                "name": "eth0",
                "hardware-address": guest.mac.lower(),
                "ip-addresses": [
                    {"ip-address": address, "ip-address-type": "ipv4", "prefix": int(prefix)}
                    for address, prefix in entries
                ],
            }
        ]

    async def execute(
        self, vmid: int, argv: list[str], input_data: bytes
    ) -> tuple[int, bytes, bytes]:
        if vmid not in self.guests:
            raise GuestNotRunning(str(vmid))
        answers = {"hostname": self.guests[vmid].name.encode(), "cat": input_data}
        if argv[0] == "false":
            return 1, b"", b"no\n"
        return 0, answers.get(argv[0], b""), b""

    async def read_file(self, vmid: int, path: str) -> bytes:
        if (vmid, path) not in self.files:
            raise FileNotFoundError(path)
        return self.files[(vmid, path)]

    async def write_file(self, vmid: int, path: str, content: bytes) -> None:
        self.files[(vmid, path)] = content

    async def usage(self, vmid: int) -> GuestUsage:
        return GuestUsage(1.0, 32 * 1024**2, 10.0)

    async def recover(self) -> None:
        return None


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pve1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "cert.pem", directory / "key.pem"
    certificate_file.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


class Cluster:
    """A running API, and the short ways that tests use to talk to it."""

    def __init__(self, directory: Path, runtime: MemoryRuntime, **settings: Any) -> None:
        self.directory = directory
        self.runtime = runtime
        self.certificate, self._key = certificate(directory)
        self._settings = Settings(
            state_directory=directory / "state",
            **{
                "node_addresses": {"pve1": "10.0.0.1", "pve2": "10.0.0.2", "pve3": "10.0.0.3"},
                "time_scale": 0.0,
                "lock_timeout_seconds": 0.4,
                **settings,
            },
        )
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.http: httpx.Client

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.http = httpx.Client(verify=str(self.certificate), timeout=20)
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        assert ready.wait(10)
        deadline = time.monotonic() + 10
        while not (self._server and self._server.started):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    async def _serve(self, ready: threading.Event) -> None:
        hypervisor = Hypervisor(self._settings, self.runtime)
        hypervisor.access.define(WORKER, SECRET, ACL)
        hypervisor.access.define(AUDITOR, SECRET, {"/": ["PVEAuditor"]})
        hypervisor.access.define(ADMINISTRATOR, SECRET, {"/": ["Administrator"]})
        await hypervisor.open()
        control_socket = await serve_faults(hypervisor)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", self.port))
            listener.listen(64)
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self._server = tls_server(
                uvicorn.Config(
                    application(hypervisor),
                    http=ReasonProtocol,
                    ws="none",
                    lifespan="off",
                    log_level="warning",
                    access_log=False,
                    ssl_certfile=str(self.certificate),
                    ssl_keyfile=str(self._key),
                    timeout_graceful_shutdown=1,
                )
            )
            ready.set()
            await self._server.serve(sockets=[listener])
        control_socket.close()
        await hypervisor.close()

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self.http.close()  # an open connection would hold the server up
        self._server.should_exit = True
        self._thread.join(10)
        self._server = None

    def send(
        self,
        method: str,
        path: str,
        /,
        token: str = WORKER,
        secret: str = SECRET,
        **parameters: Any,
    ) -> httpx.Response:
        headers = {"Authorization": f"PVEAPIToken={token}={secret}"}
        place = "params" if method in ("GET", "DELETE") else "data"
        named = {key.replace("__", "-"): value for key, value in parameters.items()}
        return self.http.request(
            method, f"{self.url}/api2/json{path}", headers=headers, **{place: named or None}
        )

    def get(self, path: str, /, **parameters: Any) -> Any:
        answer = self.send("GET", path, **parameters)
        assert answer.status_code == 200, (answer.reason_phrase, answer.text)
        return answer.json()["data"]

    def do(self, method: str, path: str, /, **parameters: Any) -> Any:
        answer = self.send(method, path, **parameters)
        assert answer.status_code == 200, (answer.reason_phrase, answer.text)
        return answer.json()["data"]

    def refused(self, method: str, path: str, /, **parameters: Any) -> tuple[int, str]:
        answer = self.send(method, path, **parameters)
        return answer.status_code, answer.reason_phrase

    def wait(self, upid: str) -> str:
        node = upid.split(":")[1]
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            status = self.get(f"/nodes/{node}/tasks/{upid}/status")
            if status["status"] == "stopped":
                return str(status["exitstatus"])
            time.sleep(0.01)
        raise AssertionError(f"{upid} is still running")

    def run(self, method: str, path: str, /, **parameters: Any) -> str:
        return self.wait(self.do(method, path, **parameters))

    def clone(self, vmid: int, **parameters: Any) -> str:
        options = {"newid": vmid, "full": 1, "name": f"vm{vmid}", **parameters}
        return self.run("POST", "/nodes/pve1/qemu/9000/clone", **options)

    def running(self, vmid: int) -> None:
        assert self.clone(vmid) == "OK"
        self.do("PUT", f"/nodes/pve1/qemu/{vmid}/config", ipconfig0=f"ip=10.1.0.{vmid % 250}/24")
        assert self.run("POST", f"/nodes/pve1/qemu/{vmid}/status/start") == "OK"

    def fault(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        message = {"action": "set", "name": name, "parameters": parameters}
        return list(control(self.directory / "state" / "faults.sock", message))

    def faults(self) -> list[dict[str, Any]]:
        return list(control(self.directory / "state" / "faults.sock", {"action": "list"}))

    def clear_faults(self, name: str | None = None) -> None:
        control(self.directory / "state" / "faults.sock", {"action": "clear", "name": name})


@contextlib.contextmanager
def running_cluster(directory: Path, **settings: Any) -> Iterator[Cluster]:
    cluster = Cluster(directory, MemoryRuntime(), **settings)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def furnish() -> Any:
    """The way to run a cluster, for tests that share one."""
    return running_cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A fresh cluster whose simulated work takes no time."""
    with running_cluster(tmp_path) as running:
        yield running


@pytest.fixture
def slow_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A fresh cluster whose clones take 1.2 seconds, as in the lab."""
    with running_cluster(tmp_path, time_scale=1.0, clone_slots=1) as running:
        yield running
