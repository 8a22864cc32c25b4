"""One contract suite, two sides: the lab's simulator by default, or a real cluster.

    pytest tests/contract --real-proxmox https://pve1.example.org:8006

A real cluster needs PROXMOX_CA_FILE, PROXMOX_TOKEN_ID and PROXMOX_TOKEN_SECRET in the environment;
nothing is created there but one empty pool, which is removed again.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from blocks.proxmox import ProxmoxApi, ProxmoxCluster
from blocks.state_backend import StateBackend
from blocks.tofu import TofuSession, TofuWorkspace
from domain.ownership import pool_comment
from domain.specs import EXAMPLE, ClusterSpec, parse_spec
from lab.hypervisor.hypervisor import Hypervisor, Settings
from lab.hypervisor.memory_runtime import MemoryRuntime
from lab.hypervisor.server import ReasonProtocol, application
from lab.layout import Layout
from lab.services.certificates import ensure_certificates
from lab.services.site_server import application as site_application
from lab.toolchain.paths import bin_dir, provider_mirror
from tasks.terraform import workspace

TOKEN_ID = "infraflows@pve!worker"
TOFU = bin_dir() / "tofu"
PROVIDER = provider_mirror() / "registry.opentofu.org/bpg/proxmox/0.111.1"
SSH_CA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHvZ0nAXuTQsTLRRvx6ABGl9TmXdAjvEVA/Jw1DZtKEY"
STATE_LOGIN = {"username": "tofu", "password": "state-password-canary"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-proxmox", metavar="URL", help="address of a real cluster's API")


@dataclass
class Simulator:
    """A simulated cluster that this process serves."""

    url: str
    ca_file: Path
    hypervisor: Hypervisor
    runtime: MemoryRuntime
    loop: asyncio.AbstractEventLoop
    secret: str
    acl: dict[str, list[str]] = field(default_factory=lambda: {"/": ["PVEAdmin"]})

    @property
    def credential(self) -> dict[str, str]:
        return {"token_id": TOKEN_ID, "token_secret": self.secret}

    def fault(self, name: str, **parameters: str) -> None:
        self.loop.call_soon_threadsafe(self.hypervisor.faults.set, name, parameters)
        time.sleep(0.05)

    def heal(self) -> None:
        self.loop.call_soon_threadsafe(self.hypervisor.faults.clear)
        time.sleep(0.05)

    def block(self, **overrides: Any) -> ProxmoxCluster:
        given = {
            "url": self.url,
            "ca_file": str(self.ca_file),
            "credential": "infraflows/lab/proxmox",
            "timeout_seconds": 5.0,
            **overrides,
        }
        return ProxmoxCluster(**given)


class Served:
    """An ASGI application on a port of the loopback, over TLS, in a thread of its own."""

    def __init__(self, app: Any, layout: Layout, http: Any = "auto") -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.socket.getsockname()[1]}"
        self.loop = asyncio.new_event_loop()
        self.server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=http,
                ws="none",
                lifespan="off",
                log_level="warning",
                ssl_certfile=str(layout.server_certificate_file),
                ssl_keyfile=str(layout.server_key_file),
                timeout_graceful_shutdown=1,
            )
        )
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.server.serve(sockets=[self.socket]))

    def start(self) -> None:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server ended before it answered"
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.loop.close()


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    made = Layout(instance="contract", home=tmp_path_factory.mktemp("contract"))
    ensure_certificates(made)
    return made


@pytest.fixture(scope="module")
def simulator(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    runtime = MemoryRuntime()
    hypervisor = Hypervisor(
        Settings(
            state_directory=tmp_path_factory.mktemp("hypervisor"),
            node_addresses={"pve1": "127.0.0.11", "pve2": "127.0.0.12", "pve3": "127.0.0.13"},
            time_scale=0.0,
            lock_timeout_seconds=0.5,
        ),
        runtime,
    )
    secret = secrets.token_hex(16)
    served = Served(application(hypervisor), layout, ReasonProtocol)
    made = Simulator(served.url, layout.ca_file, hypervisor, runtime, served.loop, secret)
    hypervisor.access.define(TOKEN_ID, secret, made.acl)
    served.loop.run_until_complete(hypervisor.open())
    served.start()
    yield made
    asyncio.run_coroutine_threadsafe(hypervisor.close(), served.loop).result(10)
    served.stop()


@pytest.fixture
def healthy(simulator: Simulator) -> Iterator[Simulator]:
    """The simulator, with every fault that a test injects healed afterwards."""
    simulator.heal()
    yield simulator
    simulator.heal()


@pytest.fixture(scope="module")
def api(request: pytest.FixtureRequest) -> ProxmoxApi:
    """The block's acts on the simulator, or on the real cluster that was named."""
    url = request.config.getoption("--real-proxmox")
    if not url:
        simulator: Simulator = request.getfixturevalue("simulator")
        return simulator.block().api(simulator.credential)
    block = ProxmoxCluster(
        url=url, ca_file=os.environ["PROXMOX_CA_FILE"], credential="not/used/here"
    )
    return block.api(
        {
            "token_id": os.environ["PROXMOX_TOKEN_ID"],
            "token_secret": os.environ["PROXMOX_TOKEN_SECRET"],
        }
    )


@pytest.fixture(scope="module")
def states(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateBackend]:
    """The lab's locked state backend."""
    app = site_application(
        git_directory=tmp_path_factory.mktemp("git"),
        git_login={"username": "git", "password": "unused"},
        state_directory=tmp_path_factory.mktemp("states"),
        state_login=STATE_LOGIN,
        artifacts_directory=tmp_path_factory.mktemp("rke2"),
    )
    served = Served(app, layout)
    served.start()
    yield StateBackend("http", f"{served.url}/state", "webdav", str(layout.ca_file))
    served.stop()


@pytest.fixture(scope="session")
def transit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real OpenBao with a transit key; the variables by which OpenTofu reaches it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(12)
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("openbao") / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                "bao",
                "server",
                "-dev",
                "-dev-no-store-token",
                f"-dev-listen-address=127.0.0.1:{port}",
            ],
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(log.parent),
                "BAO_DEV_ROOT_TOKEN_ID": token,
            },
            stdout=output,
            stderr=output,
        )
    try:
        with httpx.Client(
            base_url=address, headers={"X-Vault-Token": token}, trust_env=False
        ) as client:
            for _ in range(200):
                try:
                    if client.get("/v1/sys/health").status_code == 200:
                        break
                except httpx.TransportError:
                    assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            client.post("/v1/sys/mounts/transit", json={"type": "transit"}).raise_for_status()
            client.post("/v1/transit/keys/infraflows-state").raise_for_status()
        yield {"BAO_ADDR": address, "BAO_TOKEN": token}
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory of the test's own, as the worker's may be in use."""
    made = tempfile.mkdtemp(dir="/dev/shm", prefix="tofu-test-")
    monkeypatch.setenv("INFRAFLOWS_PRIVATE_DIRECTORY", made)
    yield
    shutil.rmtree(made)


@pytest.fixture
def quiet_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps' helpers log to a run; here is none."""
    monkeypatch.setattr("tasks.terraform.leftovers.get_run_logger", lambda: logging.getLogger())


class Cluster:
    """One small cluster on the simulator."""

    def __init__(self, name: str, first_vm_id: int, site: Site) -> None:
        data: dict[str, Any] = copy.deepcopy(EXAMPLE)
        data |= {"name": name, "workers": {"count": 1, "first_address": "10.90.0.61"}}
        data["control_plane"] |= {"count": 1, "memory_mib": 2048, "disk_gib": 10}
        data["proxmox"] |= {"pool": name, "first_vm_id": first_vm_id}
        self.spec: ClusterSpec = parse_spec(data)
        self.site = site
        self.api = site.simulator.block().api(site.simulator.credential)
        self.api.create_pool(name, pool_comment(name))

    def block(self) -> TofuWorkspace:
        return TofuWorkspace(
            binary=str(TOFU),
            provider_mirror=str(provider_mirror()),
            url=self.site.states.url,
            ca_file=self.site.states.ca_file,
            credential="infraflows/lab/state",
        )

    def variables(self) -> dict[str, Any]:
        template = workspace.find_template(self.spec, self.api)
        return workspace.variables(
            "lab", self.spec, template, SSH_CA, ("transit", "infraflows-state")
        )

    def environment(self) -> dict[str, str]:
        credential = self.site.simulator.credential
        return {
            **self.site.transit,
            "PROXMOX_VE_ENDPOINT": self.api.endpoint,
            "PROXMOX_VE_API_TOKEN": f"{credential['token_id']}={credential['token_secret']}",
        }

    def session(self) -> TofuSession:
        return self.block().session(
            f"lab-{self.spec.name}",
            workspace.MODULE,
            self.variables(),
            self.environment(),
            STATE_LOGIN,
            [self.site.states.ca_file],
        )

    def opened(self) -> workspace.Opened:
        return workspace.Opened(self.api, self.session(), self.block(), STATE_LOGIN, 2)

    def state_url(self) -> str:
        return self.site.states.address(f"lab-{self.spec.name}")

    def http(self) -> httpx.Client:
        return httpx.Client(
            verify=self.site.states._verification(),
            auth=(STATE_LOGIN["username"], STATE_LOGIN["password"]),
            trust_env=False,
        )

    def apply_all(self) -> None:
        session = self.session()
        path, _ = session.plan()
        session.apply(path, parallelism=2)


class Site:
    """The systems that a cluster is made with."""

    def __init__(self, simulator: Simulator, states: StateBackend, transit: dict[str, str]) -> None:
        self.simulator, self.states, self.transit = simulator, states, transit


@pytest.fixture
def site(
    healthy: Simulator,
    states: StateBackend,
    transit: dict[str, str],
    runtime_directory: None,
    quiet_logger: None,
) -> Site:
    if not (TOFU.exists() and PROVIDER.exists()):
        pytest.skip("the toolchain is not built on this machine")
    return Site(healthy, states, transit)


_places = itertools.count(2000, 30)


@pytest.fixture
def make_cluster(site: Site) -> Callable[..., Cluster]:
    """Makes a small cluster's spec and pool, at VMIDs of its own."""

    def make(name: str, first_vm_id: int | None = None) -> Cluster:
        return Cluster(name, first_vm_id or next(_places), site)

    return make
