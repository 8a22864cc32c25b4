"""A real object store with IAM without the lab: SeaweedFS, for tests of access keys.

Why it exists: whether a key is dead can only be told by the store that refuses it. Promises a store
of its own on loop-back ports with TLS, in one directory, that ends with the process that started
it and reports to nobody. Refuses to be a service of the lab: nothing here survives the test run.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from lab.bare_control_plane import Authority, free_ports
from lab.bare_services import start_server, wait_for_server
from lab.toolchain.paths import tool

REGION = "us-east-1"
_LOADER = botocore.session.Session().get_component("data_loader")
"""The descriptions of the services, which are large: read once."""


@dataclass(frozen=True)
class BareObjectStore:
    """A real SeaweedFS and its administrator's key."""

    directory: Path
    port: int
    key_id: str
    secret: str = field(repr=False)
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """Address of both its APIs, IAM and S3."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> str:
        """File of the CA that signed the server's certificate."""
        return str(self.directory / "ca.crt")

    @property
    def login(self) -> Mapping[str, str]:
        """The administrator's key as it lies in OpenBao."""
        return {"access_key_id": self.key_id, "secret_access_key": self.secret}

    def client(self, service: str, key_id: str = "", secret: str = "") -> Any:
        """Return a client of `iam` or `s3` with this key, or the administrator's; kept open."""
        name = (service, key_id or self.key_id)
        if name not in self._clients:
            self._clients[name] = self._made(*name, secret or self.secret)
        return self._clients[name]

    def _made(self, service: str, key_id: str, secret: str) -> Any:
        session = botocore.session.Session()
        session.register_component("data_loader", _LOADER)
        return session.create_client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            verify=self.ca_file,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "total_max_attempts": 1},
            ),
        )


def _command(store: BareObjectStore, ports: list[int]) -> list[str]:
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = ports
    options = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": store.directory / "data",
        "master.port": master,
        "master.port.grpc": master_grpc,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
        "volume.max": 8,
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        "filer.localSocket": store.directory / "filer.sock",
        "s3": "true",
        "s3.port": store.port,
        "s3.port.grpc": s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": store.directory / "s3.sock",
        "s3.iam.readOnly": "false",
        "s3.cert.file": store.directory / "server.crt",
        "s3.key.file": store.directory / "server.key",
    }
    chosen = [f"-{name}={value}" for name, value in options.items()]
    return [str(tool("weed")), "-logtostderr=true", "server", *chosen]


@contextmanager
def bare_object_store(directory: Path) -> Iterator[BareObjectStore]:
    """Run SeaweedFS in `directory`."""
    port, *ports = free_ports(8)
    store = BareObjectStore(
        directory, port, "ADMINISTRATOR" + secrets.token_hex(3).upper(), secrets.token_hex(20)
    )
    Authority(directory).issue("server", "objects", "infraflows")
    (directory / "data").mkdir()
    environment = {"AWS_ACCESS_KEY_ID": store.key_id, "AWS_SECRET_ACCESS_KEY": store.secret}
    process = start_server(
        _command(store, ports), directory, "seaweedfs.log", environment=environment
    )
    try:
        wait_for_server(
            process, directory / "seaweedfs.log", lambda: bool(store.client("iam").list_users())
        )
        yield store
    finally:
        # It would wait for its own cluster to say good-bye.
        process.kill()
        process.wait()
        for socket in Path("/tmp").glob("seaweedfs-*-grpc-*.sock"):  # noqa: S108 - its own choice
            if socket.stem.rpartition("-")[2] in {str(number) for number in ports}:
                socket.unlink(missing_ok=True)
        shutil.rmtree(directory / "data", ignore_errors=True)
