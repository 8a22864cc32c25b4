"""Hosts for the lab's RKE2: network namespaces of this machine instead of guests.

Why: a cluster of four hosts in namespaces is up in seconds, and what is tested is the very archive
that the lab's mirror serves. Promises: every process ends with the test session, every namespace
is removed. Refuses: to run where the namespaces' names are taken (another session's).
"""

import contextlib
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.toolchain.paths import RKE2_VERSION, rke2_artifacts

SERVER_TOKEN = "planted-server-token"
AGENT_TOKEN = "planted-agent-token"
PREFIX = f"rke2t{os.getpid() % 10000}"


def run(*command: str | Path) -> str:
    """What the command prints; a failure shows both of its streams."""
    parts = [str(part) for part in command]
    ended = subprocess.run(parts, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def eventually(what: str, is_true: Callable[[], bool], timeout_seconds: float = 90) -> None:
    until = time.monotonic() + timeout_seconds
    while time.monotonic() < until:
        with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):
            if is_true():
                return
        time.sleep(0.25)
    pytest.fail(f"it never happened within {timeout_seconds} s: {what}")


@dataclass
class Host:
    """One host: a namespace, a configuration, a data directory, and rke2 in it."""

    number: int
    role: str
    root: Path
    prefix: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def name(self) -> str:
        return f"{self.role}-{self.number}"

    @property
    def address(self) -> str:
        return f"10.78.0.1{self.number}"

    @property
    def netns(self) -> str:
        return f"{PREFIX}-{self.number}"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def log(self) -> Path:
        return self.root / "log"

    def configure(self, **extra: object) -> None:
        settings: dict[str, object] = {
            "node-name": self.name,
            "node-ip": self.address,
            "data-dir": str(self.data),
            "token": SERVER_TOKEN if self.role == "server" else AGENT_TOKEN,
        }
        if self.role == "server":
            settings |= {"agent-token": AGENT_TOKEN, "tls-san": ["10.78.0.100"]}
            settings["node-taint"] = ["node-role.kubernetes.io/control-plane=true:NoSchedule"]
        if self.number != 1:
            settings["server"] = "https://10.78.0.11:9345"
        path = self.root / "etc" / "rke2" / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings | extra))

    def inside(self, *command: str | Path) -> list[str]:
        return [str(part) for part in ("nsenter", f"--net=/run/netns/{self.netns}", *command)]

    def rke2(self, *arguments: str) -> list[str]:
        settings = self.root / "etc" / "rke2" / "config.yaml"
        program = self.prefix / "bin" / "rke2"
        etc = f"RKE2_ETC_DIR={self.root / 'etc'}"
        return self.inside("env", etc, program, *arguments, "--config", settings)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.rke2(self.role), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            self.process.wait(timeout=40)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def await_up(self, timeout_seconds: float = 120) -> None:
        count = self.text().count("up and running")
        eventually(
            f"{self.name} is up; its log ends with {self.text()[-600:]}",
            lambda: self.text().count("up and running") > count,
            timeout_seconds,
        )

    def start_and_await(self) -> None:
        self.start()
        self.await_up()

    def kubectl(self, *arguments: str) -> str:
        program = self.prefix / "libexec" / "rke2" / "kubectl"
        settings = self.root / "etc" / "rke2" / "rke2.yaml"
        return run(*self.inside(program, "--kubeconfig", settings, *arguments))

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "-o", "json"))[
            "items"
        ]
        return items

    def etcdctl(self, *arguments: str) -> str:
        tls = self.data / "server" / "tls" / "etcd"
        options = [f"--cacert={tls}/server-ca.crt", f"--cert={tls}/client.crt"]
        options += [f"--key={tls}/client.key", "--endpoints=https://127.0.0.1:2379"]
        program = self.prefix / "libexec" / "rke2" / "etcdctl"
        return run(*self.inside(program, *options, *arguments))

    def members(self) -> list[dict[str, Any]]:
        answer = json.loads(self.etcdctl("member", "list", "-w", "json"))
        members: list[dict[str, Any]] = answer["members"]
        return members


def _add_namespaces(count: int) -> None:
    switch = f"{PREFIX}-sw"
    run("ip", "netns", "add", switch)
    run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
    run("ip", "-n", switch, "link", "set", "br0", "up")
    for number in range(1, count + 1):
        name, port = f"{PREFIX}-{number}", f"p{number}"
        run("ip", "netns", "add", name)
        peer = ("peer", "name", "eth0", "netns", name)
        run("ip", "-n", switch, "link", "add", port, "type", "veth", *peer)
        run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "addr", "add", f"10.78.0.1{number}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")


def _remove_namespaces(count: int) -> None:
    for suffix in [*map(str, range(1, count + 1)), "sw"]:
        subprocess.run(
            ["ip", "netns", "del", f"{PREFIX}-{suffix}"], check=False, capture_output=True
        )


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Three servers and an agent, configured, none started."""
    archive = rke2_artifacts() / RKE2_VERSION / "rke2.linux-amd64.tar.gz"
    if os.geteuid() != 0 or not archive.exists():
        pytest.skip(f"needs root and {archive} (python -m lab.toolchain build rke2)")
    root = tmp_path_factory.mktemp("rke2")
    with tarfile.open(archive) as packed:
        packed.extractall(root / "usr-local", filter="data")
    roles = ["server", "server", "server", "agent"]
    cluster = [
        Host(number, role, root / f"host-{number}", root / "usr-local")
        for number, role in enumerate(roles, start=1)
    ]
    try:
        _add_namespaces(len(cluster))
        for host in cluster:
            host.configure()
        yield cluster
    finally:
        for host in reversed(cluster):
            host.end(signal.SIGKILL)
        _remove_namespaces(len(cluster))


@pytest.fixture(scope="module")
def cluster(hosts: list[Host]) -> list[Host]:
    """The four hosts, started at once and all Ready."""
    for host in hosts:
        host.start()
    first = hosts[0]
    eventually("all four are up", lambda: all("up and running" in h.text() for h in hosts), 180)
    eventually("all four are Ready", lambda: ready_nodes(first) == {h.name for h in hosts})
    return hosts


def ready_nodes(host: Host) -> set[str]:
    return {
        node["metadata"]["name"]
        for node in host.objects("nodes")
        for condition in node["status"].get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    }


@pytest.fixture
def readiness() -> Callable[[Host], set[str]]:
    return ready_nodes


@pytest.fixture
def patience() -> Callable[..., None]:
    return eventually
