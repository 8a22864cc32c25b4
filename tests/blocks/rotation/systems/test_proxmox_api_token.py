"""Tokens of the lab's Proxmox API, whose guests live in memory here."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from blocks.proxmox_transport import ProxmoxTransport
from blocks.rotation.proxmox_api_token import ProxmoxApiToken
from domain.errors import PolicyViolation
from domain.rotation.contract import SecretRef, Values
from lab.bare_control_plane import Authority
from lab.hypervisor.__main__ import tls_server
from lab.hypervisor.hypervisor import Hypervisor, Settings
from lab.hypervisor.memory_runtime import MemoryRuntime
from lab.hypervisor.server import ReasonProtocol, application

ADMINISTRATOR = {"token_id": "admin@pve!operator", "token_secret": "administrator-secret"}
WORKER = {"token_id": "infraflows@pve!worker", "token_secret": "worker-secret"}
ACL = {"/": ["PVEAuditor"], "/vms": ["PVEVMAdmin"], "/pool": ["PVEPoolAdmin", "PVEVMUser"]}
SECRET = SecretRef("infraflows/test/proxmox", ProxmoxApiToken.kind, "test")


@dataclass
class Site:
    url: str
    ca_file: str

    def login(self, values: Values) -> ProxmoxTransport:
        return self.enter(SECRET, values)

    def enter(self, _secret: SecretRef, values: Values) -> ProxmoxTransport:
        return ProxmoxTransport([self.url], self.ca_file, values, 20)

    def adapter(self) -> ProxmoxApiToken:
        return ProxmoxApiToken(lambda _secret: ADMINISTRATOR, self.enter)

    def status(self, client: httpx.Client, values: Values) -> int:
        held = f"PVEAPIToken={values['token_id']}={values['token_secret']}"
        answer = client.get(f"{self.url}/api2/json/cluster/status", headers={"Authorization": held})
        return answer.status_code


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    Authority(tmp_path).issue("server", "127.0.0.1", "lab")
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.setblocking(False)
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        hypervisor = Hypervisor(
            Settings(
                state_directory=tmp_path / "state",
                node_addresses={"pve1": "10.0.0.1"},
                time_scale=0.0,
                lock_timeout_seconds=1,
            ),
            MemoryRuntime(),
        )
        hypervisor.access.define(
            ADMINISTRATOR["token_id"], ADMINISTRATOR["token_secret"], {"/": ["Administrator"]}
        )
        hypervisor.access.define(WORKER["token_id"], WORKER["token_secret"], ACL)
        await hypervisor.open()
        config = uvicorn.Config(
            application(hypervisor),
            http=ReasonProtocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            ssl_certfile=str(tmp_path / "server.crt"),
            ssl_keyfile=str(tmp_path / "server.key"),
            timeout_graceful_shutdown=1,
        )
        servers.append(tls_server(config))
        await servers[0].serve(sockets=[listener])
        await hypervisor.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    deadline = time.monotonic() + 60
    while not (servers and servers[0].started):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    port = listener.getsockname()[1]
    yield Site(f"https://127.0.0.1:{port}", str(tmp_path / "ca.crt"))
    servers[0].should_exit = True
    thread.join(30)


def acl_of(site: Site, identifier: str) -> set[tuple[str, str]]:
    entries = site.login(ADMINISTRATOR).get("read", "access/acl")
    return {(e["path"], e["roleid"]) for e in entries if e["ugid"] == identifier}


def test_a_token_rotates_under_load_and_the_old_one_is_refused(
    site: Site, bench: Any, report: Any
) -> None:
    rotation = bench.rotation(site.adapter(), SECRET, WORKER)
    rights = acl_of(site, WORKER["token_id"])

    with httpx.Client(verify=site.ca_file, timeout=20) as client:

        def ask() -> str | None:
            with rotation.using() as values:
                status = site.status(client, values)
            return None if status == 200 else f"HTTP {status}"

        with bench.load(ask) as counted:
            for _turn in range(3):
                proof = rotation.run()
                assert proof.is_dead
                assert proof.answer == "HTTP 401"
                rotation.finish()
        report(ProxmoxApiToken.kind, counted)
        assert site.status(client, WORKER) == 401
    assert rotation.current["token_id"] == "infraflows@pve!worker-a"
    assert acl_of(site, "infraflows@pve!worker-a") == rights
    assert acl_of(site, "infraflows@pve!worker-b") == set()


def test_a_token_survives_a_kill_at_every_edge(site: Site, bench: Any) -> None:
    rotation = bench.rotation(site.adapter(), SECRET, WORKER)
    with httpx.Client(verify=site.ca_file, timeout=20) as client:

        def is_served() -> str | None:
            status = site.status(client, rotation.published)
            return None if status == 200 else f"HTTP {status}"

        bench.crash_matrix(rotation, is_served, bench.edges)

    tokens = site.login(ADMINISTRATOR).get("list", "access/users/infraflows@pve/token")
    assert len(tokens) == 1


def test_a_token_survives_a_kill_at_every_request(
    site: Site, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation = bench.rotation(site.adapter(), SECRET, WORKER)
    send = ProxmoxTransport._through
    left = [0]

    def mortal(self: Any, method: str, *arguments: Any) -> Any:
        answer = send(self, method, *arguments)
        if method != "GET":
            left[0] -= 1
            if left[0] == 0:
                raise bench.killed(arguments[0])
        return answer

    monkeypatch.setattr(ProxmoxTransport, "_through", mortal)
    kills = 0
    for number in range(1, 20):
        left[0] = number
        try:
            rotation.run()
        except bench.killed:
            kills += 1
            left[0] = 0
            with httpx.Client(verify=site.ca_file, timeout=20) as client:
                assert site.status(client, rotation.published) == 200
            rotation.run()
        else:
            break
        rotation.finish()
    left[0] = 0

    # Remove a leftover, make, one entry each of four, remove the old one.
    assert kills >= 6
    assert acl_of(site, rotation.pending["token_id"]) == {
        (path, role) for path, roles in ACL.items() for role in roles
    }


def test_a_rotation_that_is_given_up_leaves_the_current_token(site: Site) -> None:
    adapter = site.adapter()
    new = adapter.create(SECRET, 1, WORKER)
    adapter.set(SECRET, new, WORKER)

    adapter.rollback(SECRET, new, WORKER)
    adapter.rollback(SECRET, new, WORKER)

    assert adapter.prove_dead(SECRET, new).is_dead
    assert not adapter.prove_dead(SECRET, WORKER).is_dead


def test_the_first_token_gets_the_rights_of_the_policy(site: Site) -> None:
    secret = SecretRef(
        "infraflows/test/other",
        ProxmoxApiToken.kind,
        "test",
        {
            "user": "infraflows@pve",
            "token": "reports",
            "acl": "/=PVEAuditor;/pool=PVEPoolUser",
            "lifetime_days": "30",
        },
    )
    adapter = site.adapter()
    new = adapter.create(secret, 1, None)
    adapter.set(secret, new, None)
    adapter.test(secret, new)

    assert acl_of(site, "infraflows@pve!reports-a") == {
        ("/", "PVEAuditor"),
        ("/pool", "PVEPoolUser"),
    }
    told = site.login(ADMINISTRATOR).get("read", "access/users/infraflows@pve/token/reports-a")
    days = (told["expire"] - datetime.datetime.now(datetime.UTC).timestamp()) / 86400
    assert 29 < days <= 30


def test_the_token_of_the_run_itself_is_not_removed(site: Site) -> None:
    with pytest.raises(PolicyViolation, match="logged in with it"):
        site.adapter().revoke(SECRET, ADMINISTRATOR)


def test_the_engine_finishes_after_a_kill_at_each_edge(
    site: Site, matrix: Any, engine_world: Any
) -> None:
    number = itertools.count()

    def make() -> Any:
        name = f"engine{next(number)}"
        secret = SecretRef(
            f"proxmox/{name}",
            ProxmoxApiToken.kind,
            "test",
            {"user": "infraflows@pve", "token": name, "acl": "/=PVEAuditor"},
        )
        first = site.adapter().create(secret, 0, None)
        site.adapter().set(secret, first, None)
        return engine_world(site.adapter(), secret, first, works)

    def works(values: Values) -> bool:
        with httpx.Client(verify=site.ca_file, timeout=20) as client:
            return site.status(client, values) == 200

    assert matrix.kill_everywhere(make, every=3) > 10
