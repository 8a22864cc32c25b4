"""Real servers without the lab: OpenBao, PostgreSQL, Redis and BIND, for tests of single systems.

Why it exists: whether a password is dead can only be told by the system that refuses it. Promises
servers on loop-back ports of their own, in one directory, that end with the process that started
them. Refuses to be a service of the lab: nothing here survives the test run, no data is synced.
"""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvac
import psycopg
import redis

from lab.bare_control_plane import Authority, free_ports
from lab.services.postgresql import BINARIES, USER
from lab.toolchain.paths import tool

START_SECONDS = 60.0
PATIENCE_SECONDS = 10.0
REDIS_ADMINISTRATOR = "rotator"

_OPENBAO = """\
log_level    = "warn"
api_addr     = "https://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{cluster_port}"
storage "raft" {{
  path                   = "{directory}/data"
  node_id                = "bare"
  performance_multiplier = 1
}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_cert_file   = "{directory}/server.crt"
  tls_key_file    = "{directory}/server.key"
  # Tests tell by an attempt at a new root token which unseal shares are in force.
  disable_unauthed_generate_root_endpoints = false
}}
audit "file" "to-file" {{
  options {{ file_path = "{directory}/audit.log" }}
}}
"""


_NAMED = """\
key "{key}" {{ algorithm hmac-sha256; secret "{secret}"; }};
options {{
  directory "{directory}"; pid-file none; session-keyfile "{directory}/session.key"; lock-file none;
  listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  allow-transfer {{ key "{key}"; }};
  recursion no; dnssec-validation no; notify no;
}};
controls {{ }};
zone "{zone}" {{ type primary; file "zone"; update-policy {{ grant {key} zonesub ANY; }}; }};
"""
_FIRST_ZONE = """\
$TTL 60
@ IN SOA ns admin 1 60 60 600 60
@ IN NS ns
ns IN A 127.0.0.1
"""


@dataclass
class BareOpenBao:
    """A real OpenBao, unsealed, and what its administrator holds."""

    directory: Path
    port: int
    root_token: str = field(default="", repr=False)
    shares: tuple[str, ...] = field(default=(), repr=False)
    threshold: int = 2

    @property
    def address(self) -> str:
        """Base URL of the server."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> str:
        """File of the CA that signed the server's certificate."""
        return str(self.directory / "ca.crt")

    def client(self, token: str | None = None) -> hvac.Client:
        """Return a client with this token, or the administrator's."""
        held = self.root_token if token is None else token
        return hvac.Client(url=self.address, token=held, verify=self.ca_file, timeout=30)

    def unseal(self, shares: Sequence[str]) -> bool:
        """Hand in shares; True when the server is unsealed by them."""
        client = self.client("")
        client.sys.submit_unseal_key(reset=True)
        for share in shares:
            client.sys.submit_unseal_key(share)
        return not client.sys.is_sealed()

    def wait_until_active(self) -> None:
        """Wait until it serves requests after it was unsealed."""
        deadline = time.monotonic() + START_SECONDS
        # hvac answers with the body when the server is active, with the response when it is not.
        while not isinstance(self.client("").sys.read_health_status(method="GET"), dict):
            if time.monotonic() > deadline:
                raise RuntimeError("Unable to unseal OpenBao: it has not become the leader.")
            time.sleep(0.05)


@dataclass(frozen=True)
class BarePostgresql:
    """A real PostgreSQL and its administrator's login."""

    directory: Path
    port: int
    password: str = field(repr=False)
    database: str = "postgres"
    username: str = "administrator"

    @property
    def login(self) -> Mapping[str, str]:
        """Where it is and how its administrator logs in."""
        return {
            "host": "127.0.0.1",
            "port": str(self.port),
            "database": self.database,
            "username": self.username,
            "password": self.password,
        }

    def connect(
        self, username: str = "", password: str = "", database: str = ""
    ) -> psycopg.Connection[Any]:
        """Log in, by default as the administrator to the administrator's database."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=database or self.database,
            user=username or self.username,
            password=password or self.password,
            connect_timeout=20,
            autocommit=True,
        )


@dataclass(frozen=True)
class BareDns:
    """A real BIND, primary of one zone, and the key that its updates are signed with."""

    directory: Path
    port: int
    zone: str
    secret: str = field(repr=False)
    key_name: str = "updates"

    @property
    def key(self) -> Mapping[str, str]:
        """The key as it lies in OpenBao."""
        return {"key_name": self.key_name, "algorithm": "hmac-sha256", "secret": self.secret}


@dataclass(frozen=True)
class BareRedis:
    """A real Redis with an ACL file, and its administrator's login."""

    directory: Path
    port: int
    password: str = field(repr=False)
    username: str = REDIS_ADMINISTRATOR

    @property
    def login(self) -> Mapping[str, str]:
        """Where it is and how its administrator logs in."""
        return {
            "host": "127.0.0.1",
            "port": str(self.port),
            "username": self.username,
            "password": self.password,
        }

    def client(self) -> redis.Redis:
        """Return the administrator's client."""
        return redis.Redis("127.0.0.1", self.port, username=self.username, password=self.password)


def start_server(
    command: Sequence[str],
    directory: Path,
    log: str,
    user: str = "",
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server, which writes to `log` and ends with this process."""
    # setpriv: the process must not outlive a test run that is killed.
    as_user = [f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    with (directory / log).open("ab") as output:
        return subprocess.Popen(
            ["setpriv", *as_user, "--pdeathsig", "TERM", "--", *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=directory,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(directory),
                "LANG": "C.UTF-8",
                **(environment or {}),
            },
        )


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """End a server and wait until it has."""
    # All three end in good order at once; PostgreSQL would wait for its clients after a TERM.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_server(
    process: subprocess.Popen[bytes], log: Path, answers: Callable[[], bool]
) -> None:
    """Wait until a server answers; what it logged is told when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if answers():
                return
        except Exception:  # noqa: S110 - any refusal means: not yet
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"Unable to start {log.stem}: it does not answer.\n{text}")
        time.sleep(0.1)


@contextmanager
def _openbao_process(bao: BareOpenBao) -> Iterator[None]:
    command = [str(tool("bao")), "server", f"-config={bao.directory}/openbao.hcl"]
    process = start_server(command, bao.directory, "openbao.log")
    try:
        client = bao.client("")
        log = bao.directory / "openbao.log"
        wait_for_server(process, log, lambda: client.sys.is_initialized() in (True, False))
        yield
    finally:
        stop_server(process)


@contextmanager
def bare_openbao(directory: Path) -> Iterator[BareOpenBao]:
    """Run OpenBao in `directory`: TLS, three unseal shares of which two are needed, audited."""
    port, cluster_port = free_ports(2)
    bao = BareOpenBao(directory, port)
    Authority(directory).issue("server", "openbao", "infraflows")
    (directory / "data").mkdir()
    (directory / "openbao.hcl").write_text(
        _OPENBAO.format(port=port, cluster_port=cluster_port, directory=directory)
    )
    with _openbao_process(bao):
        made = bao.client("").sys.initialize(secret_shares=3, secret_threshold=bao.threshold)
        bao.root_token, bao.shares = str(made["root_token"]), tuple(made["keys_base64"])
        bao.unseal(bao.shares[: bao.threshold])
        bao.wait_until_active()
        yield bao
    shutil.rmtree(directory / "data", ignore_errors=True)


@contextmanager
def bare_postgresql(directory: Path) -> Iterator[BarePostgresql]:
    """Run PostgreSQL in `directory`, which the system's postgres user must be able to reach."""
    server = BarePostgresql(directory, free_ports(1)[0], secrets.token_hex(16))
    directory.chmod(0o755)
    shutil.chown(directory, USER, USER)
    password_file = directory / "password"
    password_file.write_text(server.password)
    shutil.chown(password_file, USER, USER)
    initdb = [str(BINARIES / "initdb"), f"--pgdata={directory}/data", "--auth=scram-sha-256"]
    initdb += [f"--username={server.username}", f"--pwfile={password_file}", "--no-sync"]
    initdb += ["--encoding=UTF8", "--locale=C.UTF-8"]
    made = start_server(initdb, directory, "initdb.log", USER).wait(START_SECONDS * 2)
    if made != 0:
        raise RuntimeError(f"Unable to make a database cluster: {directory}/initdb.log tells why.")
    password_file.unlink()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(server.port),
        "unix_socket_directories": "",
        "fsync": "off",
        "max_connections": "60",
        "shared_buffers": "16MB",
    }
    command = [str(BINARIES / "postgres"), "-D", f"{directory}/data"]
    command += [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    process = start_server(command, directory, "postgresql.log", USER)
    try:
        wait_for_server(process, directory / "postgresql.log", lambda: not server.connect().broken)
        yield server
    finally:
        stop_server(process)
        shutil.rmtree(directory / "data", ignore_errors=True)


@contextmanager
def bare_redis(directory: Path) -> Iterator[BareRedis]:
    """Run Redis in `directory`, its users kept in an ACL file, the default user off."""
    server = BareRedis(directory, free_ports(1)[0], secrets.token_hex(16))
    (directory / "users.acl").write_text(
        f"user default off\nuser {server.username} on >{server.password} ~* &* +@all\n"
    )
    settings = {
        "bind": "127.0.0.1",
        "port": str(server.port),
        "dir": str(directory),
        "aclfile": str(directory / "users.acl"),
        "save": '""',
    }
    (directory / "redis.conf").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    process = start_server(
        ["/usr/bin/redis-server", str(directory / "redis.conf")], directory, "redis.log"
    )
    try:
        wait_for_server(process, directory / "redis.log", lambda: bool(server.client().ping()))
        yield server
    finally:
        stop_server(process)


@contextmanager
def bare_dns(directory: Path, zone: str) -> Iterator[BareDns]:
    """Run BIND in `directory`, which takes signed updates of `zone` and hands it out signed."""
    secret = base64.b64encode(secrets.token_bytes(32)).decode()
    server = BareDns(directory, free_ports(1)[0], zone, secret)
    (directory / "zone").write_text(_FIRST_ZONE)
    (directory / "named.conf").write_text(
        _NAMED.format(
            key=server.key_name, secret=secret, directory=directory, port=server.port, zone=zone
        )
    )
    user = pwd.getpwuid(os.getuid()).pw_name
    command = ["/usr/sbin/named", "-g", "-n", "1", "-u", user, "-c", f"{directory}/named.conf"]
    process = start_server(command, directory, "named.log")

    def answers() -> bool:
        with socket.create_connection(("127.0.0.1", server.port), timeout=1):
            return True

    try:
        wait_for_server(process, directory / "named.log", answers)
        yield server
    finally:
        stop_server(process)
