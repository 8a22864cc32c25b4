"""The simulated Harbor with a real registry behind it, without a lab, for tests.

Why it exists: whether an image can be pushed can only be told by a registry that takes it. Promises
servers on loop-back ports of their own, in one directory, that end with the process that started
them; `kill` is SIGKILL, and `start` goes on with the state that it left.
"""

from __future__ import annotations

import json
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from lab.bare_control_plane import Authority, free_ports
from lab.services.registry import ADDRESS, PROGRAM, prepare_directory

START_SECONDS = 60.0
PATIENCE_SECONDS = 10.0


@dataclass
class BareHarbor:
    """A running Harbor and its administrator's login."""

    directory: Path
    port: int
    registry_port: int
    administrator: dict[str, str] = field(repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Base URL."""
        return f"https://localhost:{self.port}"

    @property
    def registry(self) -> str:
        """Host and port, as images are named."""
        return f"localhost:{self.port}"

    @property
    def ca_file(self) -> str:
        """File of the CA that signed the server's certificate."""
        return str(self.directory / "ca.crt")

    def client(self, username: str = "", password: str = "") -> httpx.Client:
        """A client with a login; the administrator's by default."""
        login = self.administrator
        auth = (username, password) if username else (login["username"], login["password"])
        verify = ssl.create_default_context(cafile=self.ca_file)
        return httpx.Client(
            base_url=self.url, auth=auth, verify=verify, trust_env=False, timeout=30
        )

    def start(self) -> None:
        """Start the API and wait until it answers."""
        files = self.directory
        self._process = _process(
            [
                sys.executable,
                "-m",
                "lab.harbor",
                f"--state={files / 'state'}",
                f"--administrator={files / 'administrator.json'}",
                f"--registry=http://{ADDRESS}:{self.registry_port}",
                f"--external-url={self.url}",
                f"--address={ADDRESS}",
                f"--port={self.port}",
                f"--cert={files / 'server.crt'}",
                f"--key={files / 'server.key'}",
            ],
            files / "harbor.log",
        )
        with self.client() as client:
            _wait(self._process, client, "/api/v2.0/ping", files / "harbor.log")

    def kill(self) -> None:
        """End the API as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _process(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        # setpriv: the process must not outlive a test run that is killed.
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
            env={"PATH": "/usr/bin:/bin", "HOME": str(log.parent), "LANG": "C.UTF-8"},
        )


def _wait(process: subprocess.Popen[bytes], client: httpx.Client, path: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if client.get(path).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"Unable to start {log.stem}: it does not answer.\n{text}")
        time.sleep(0.1)


@contextmanager
def _registry(directory: Path, port: int) -> Iterator[None]:
    config = prepare_directory(directory / "registry", f"{ADDRESS}:{port}")
    log = directory / "registry.log"
    process = _process([PROGRAM, "serve", str(config)], log)
    try:
        with httpx.Client(base_url=f"http://{ADDRESS}:{port}", trust_env=False) as client:
            _wait(process, client, "/v2/", log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def bare_harbor(directory: Path) -> Iterator[BareHarbor]:
    """Run Harbor and its registry in `directory`."""
    port, registry_port = free_ports(2)
    administrator = {"username": "admin", "password": secrets.token_urlsafe(24)}
    (directory / "administrator.json").write_text(json.dumps(administrator))
    Authority(directory).issue("server", "harbor", "infraflows")
    harbor = BareHarbor(directory, port, registry_port, administrator)
    with _registry(directory, registry_port):
        try:
            harbor.start()
            yield harbor
        finally:
            harbor.kill()
