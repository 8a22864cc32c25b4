"""A real Argo CD and a real Git server without the lab, for tests of what is delivered by GitOps.

Why it exists: whether a commit arrives, drift is healed and a deletion cascades can only be told by
Argo CD itself. Promises the same stand-in for its pods as in the lab, on a control plane of
`lab.bare_control_plane`, and Git over HTTPS with a login. Refuses to outlive the test run.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from domain.errors import TemporaryError
from lab.argocd.instance import ArgocdInstance, Ports, ServerCertificate
from lab.bare_control_plane import Authority, BareControlPlane, free_ports
from lab.services.site_server import application

STEP_SECONDS = 0.3
START_SECONDS = 20.0


@dataclass(frozen=True)
class BareGitServer:
    """Git over HTTPS on the loop-back device."""

    directory: Path
    port: int
    ca_file: Path
    login: dict[str, str] = field(repr=False)

    def url(self, repository: str) -> str:
        """Address of a repository."""
        return f"https://localhost:{self.port}/git/{repository}"


@contextmanager
def bare_git_server(directory: Path, *repositories: str) -> Iterator[BareGitServer]:
    """Serve empty repositories of these names."""
    login = {"username": "infraflows", "password": secrets.token_urlsafe(16)}
    Authority(directory).issue("git", "git", "infraflows")
    for name in repositories:
        path = directory / "git" / name
        path.mkdir(parents=True)
        for arguments in (("init", "-q", "--bare", "--initial-branch=main"), _RECEIVE):
            subprocess.run(["git", "-C", str(path), *arguments], check=True)
    app = application(
        git_directory=directory / "git",
        git_login=login,
        state_directory=directory / "state",
        state_login=login,
        artifacts_directory=directory / "none",
    )
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        ssl_certfile=str(directory / "git.crt"),
        ssl_keyfile=str(directory / "git.key"),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        _wait_until_started(server)
        port = int(listener.getsockname()[1])
        yield BareGitServer(directory, port, directory / "ca.crt", login)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


_RECEIVE = ("config", "http.receivepack", "true")


def _wait_until_started(server: uvicorn.Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if time.monotonic() > deadline:
            raise RuntimeError("Unable to start the Git server: it does not listen.")
        time.sleep(0.02)


@dataclass(frozen=True)
class BareArgocd:
    """The programs of one control plane's Argo CD."""

    instance: ArgocdInstance
    ports: Ports
    directory: Path


@contextmanager
def bare_argocd(directory: Path, plane: BareControlPlane) -> Iterator[BareArgocd]:
    """Run Argo CD's programs for a control plane, as long as their pods are Ready."""
    free = free_ports(6)
    ports = Ports("127.0.0.1", *free)
    authority_pair = (plane.directory / "server.crt", plane.directory / "server.key")
    instance = ArgocdInstance(
        plane.kubeconfig,
        directory / "argocd",
        lambda program: directory / f"{program}.log",
        ports,
        ServerCertificate(*authority_pair),
    )
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(STEP_SECONDS):
            try:
                instance.step()
            except TemporaryError:
                continue
        instance.stop()

    thread = threading.Thread(target=run, name="argocd", daemon=True)
    thread.start()
    try:
        yield BareArgocd(instance, ports, directory)
    finally:
        ending.set()
        thread.join(60)
