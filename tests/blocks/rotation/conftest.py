"""Real servers, a load probe, and a matrix of kills that any class of secrets can be put through.

A class joins with a `World`: one secret of its own, made anew by `make`. `matrix` runs the engine
until its n-th edge, for every n, and lets the next run finish; `probe` uses the credential all the
time. An edge is before and after every act and every write of state, and after every request by
which an act changes OpenBao, PostgreSQL or Redis.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import requests
from botocore.awsrequest import AWSPreparedRequest
from botocore.httpsession import URLLib3Session

from blocks.openbao import OpenBaoServer, OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from blocks.rotation.store import RotationStore
from domain.rotation.contract import SecretRef, Values
from domain.rotation.machine import Limits, Request
from domain.rotation.state import RotationState, Step
from lab.bare_object_store import BareObjectStore, bare_object_store
from lab.bare_services import (
    BareOpenBao,
    BarePostgresql,
    BareRedis,
    bare_openbao,
    bare_postgresql,
    bare_redis,
)
from tasks.rotation.engine import Job, StepReport, rotate_one

ENVIRONMENT = "trial"
WORKER = "rotator"
LIMITS = Limits(observe_interval_seconds=0.05, observe_deadline_seconds=120.0, retry_seconds=0.01)
THREADS = 6
PAUSE_SECONDS = 0.01
"""Between two requests of one thread: 6 threads send more than 50 requests a second."""
WARM_REQUESTS = 40
WARM_SECONDS = 90.0

READING = frozenset(
    ("load", "current", "fingerprint", "own_accessors", "accessors", "states", "path")
)
READ_PATHS = ("/lookup", "/hmac/", "/revoke-self", "/login")

POLICY = """
path "kv/data/*"               { capabilities = ["create", "read", "update"] }
path "kv/metadata/*"           { capabilities = ["create", "read", "update", "list", "delete"] }
path "kv/destroy/*"            { capabilities = ["update"] }
path "transit/hmac/infraflows-rotation/*" { capabilities = ["update"] }
path "auth/approle/role/+"     { capabilities = ["read"] }
path "auth/approle/role/+/role-id"           { capabilities = ["read"] }
path "auth/approle/role/+/custom-secret-id"  { capabilities = ["update"] }
path "auth/approle/role/+/secret-id/lookup"  { capabilities = ["update"] }
path "auth/approle/role/+/secret-id/destroy" { capabilities = ["update"] }
path "auth/token/roles/+"      { capabilities = ["read"] }
path "auth/token/create/+"     { capabilities = ["create", "update"] }
path "auth/token/lookup"       { capabilities = ["update"] }
path "auth/token/revoke"       { capabilities = ["update"] }
path "auth/token/accessors"    { capabilities = ["list", "sudo"] }
path "auth/token/lookup-accessor" { capabilities = ["update"] }
path "auth/token/lookup-self"  { capabilities = ["read"] }
path "auth/token/revoke-self"  { capabilities = ["update"] }
path "sys/leases/revoke-prefix/auth/token/create/+" { capabilities = ["update", "sudo"] }
path "sys/rotate/root/*"       { capabilities = ["create", "read", "update", "delete", "sudo"] }
path "database/static-creds/+" { capabilities = ["read"] }
path "database/rotate-role/+"  { capabilities = ["update"] }
"""


class Killed(BaseException):
    """What SIGKILL is within one process: nothing after it is done."""


@dataclass
class World:
    """One secret of a class, where it lies, and what can be asked about it."""

    secret: SecretRef
    adapter: Any
    current: Callable[[], Values]
    """What a consumer reads now."""
    works: Callable[[Values], bool]
    """Whether the system accepts a value."""
    times_rotated: Callable[[], int]
    """How often the value was changed for consumers."""
    has_overlap: bool = True
    consume: Callable[[], None] | None = None
    """One use by a consumer, for classes whose consumers are seen by their uses."""
    holds_working: Callable[[], bool] | None = None
    """For classes whose consumers hold several values: whether one of them works."""

    def keeps_consumers_working(self) -> bool:
        return self.holds_working() if self.holds_working else self.works(self.current())


class Edges:
    """Counts the edges of one run and kills it at one of them."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.names: list[str] = []
        self._thread = threading.get_ident()

    @property
    def is_dead(self) -> bool:
        return self.kill_at is not None and len(self.names) > self.kill_at

    def is_dead_here(self) -> bool:
        """True for what the killed thread would do to clean up: the dead do nothing."""
        return self.is_dead and threading.get_ident() == self._thread

    def point(self, name: str) -> None:
        """Pass an edge, or die at it."""
        if threading.get_ident() != self._thread:
            return
        self.names.append(name)
        if self.is_dead:
            raise Killed(name)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.point(f"before {name}")
            answer = call(*arguments, **named)
            self.point(f"after {name}")
            return answer

        return watched


class Watched:
    """An adapter or a store; before and after each method that may change something is an edge."""

    def __init__(self, inner: Any, edges: Edges) -> None:
        for name in dir(inner):
            value = getattr(inner, name)
            if name.startswith("_") or not callable(value):
                continue
            if name not in READING:
                value = edges.around(f"{type(inner).__name__}.{name}", value)
            setattr(self, name, value)


@contextmanager
def requests_as_edges(edges: Edges) -> Iterator[None]:
    """After each request that may change a system is an edge: it took effect, nobody knows.

    Before it is the same as after the one that came before: nothing happened in between.
    """
    patched = [
        (requests.Session, "send"),
        (psycopg.Connection, "execute"),
        (redis.Redis, "execute_command"),
        (URLLib3Session, "send"),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name in patched]
    try:
        for owner, name, original in originals:
            setattr(owner, name, _as_method(edges, original))
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _as_method(edges: Edges, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, what: Any, *arguments: Any, **named: Any) -> Any:
        text = _told(what, arguments)
        if edges.is_dead_here():
            raise Killed(text)
        answer = original(self, what, *arguments, **named)
        if text:
            edges.point(f"after {text}")
        return answer

    return method


def _told(what: Any, arguments: tuple[Any, ...]) -> str:
    """Return what a request does, without values; empty when it changes nothing."""
    if isinstance(what, requests.PreparedRequest):
        path = str(what.path_url)
        is_reading = what.method in ("GET", "LIST") or any(part in path for part in READ_PATHS)
        return "" if is_reading else f"{what.method} {path}"
    if isinstance(what, AWSPreparedRequest):
        # Of IAM's form the action only is told.
        action = re.search(r"Action=(\w+)", str(what.body or ""))
        return f"IAM {action[1]}" if action and not action[1].startswith(("List", "Get")) else ""
    text = str(what) if not isinstance(what, str) else what
    if text.startswith(("SELECT", "AUTH", "ACL GETUSER", "CLIENT LIST", "CONFIG GET")):
        return ""
    return " ".join(text.split()[:2])


def request(name: str = "first", *, is_leak: bool = False) -> Request:
    return Request(request_id=name, asked_at=datetime.now(UTC), is_leak=is_leak)


@dataclass
class Matrix:
    """The kill matrix; `rows` is the table of the test report."""

    store: RotationStore
    rows: list[tuple[str, str]] = field(default_factory=list)

    def rotate(
        self,
        world: World,
        wish: Request,
        edges: Edges | None = None,
        limits: Limits = LIMITS,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> RotationState:
        """Run the engine, watched or not; consumers come by before it and at each step."""
        adapter, store = world.adapter, self.store
        told = on_step

        def on_step(report: StepReport) -> None:
            if told:
                told(report)
            # What is told is recorded a moment later; a consumer that comes by then reads the new.
            if world.consume and report.step is Step.DISTRIBUTE:
                world.consume()

        if world.consume:
            world.consume()
        job = Job(secret=world.secret, request=wish, limits=limits, run_id=wish.request_id)
        if edges is None:
            return rotate_one(adapter, store, job, on_step=on_step)
        watched: Any = Watched(store, edges)
        with requests_as_edges(edges):
            return rotate_one(Watched(adapter, edges), watched, job, on_step=on_step)  # type: ignore[arg-type]

    def edges_of(self, make: Callable[[], World]) -> list[str]:
        """Return the names of the edges of a run that nobody kills."""
        edges, world = Edges(), make()
        assert self.rotate(world, request(), edges).step is Step.DONE
        assert world.works(world.current())
        return edges.names

    def kill_everywhere(self, make: Callable[[], World], every: int = 1) -> int:
        """Kill a fresh rotation at each edge; returns how many there were."""
        names = self.edges_of(make)
        for number in range(0, len(names), every):
            self.kill_at(make(), number)
        return len(range(0, len(names), every))

    def kill_at(self, world: World, number: int) -> None:
        """Kill at one edge, look at the invariant, and let the next run finish."""
        old, wish = dict(world.current()), request()
        edges = Edges(number)
        try:
            state = self.rotate(world, wish, edges)
        except Killed:
            state = None
        where = f"edge {number} ({edges.names[-1]})"
        assert state is None or len(edges.names) <= number, f"{where}: the kill was caught"
        assert world.keeps_consumers_working(), f"{where}: no consumer's credential works"
        record = self.store.load(world.secret)
        if world.has_overlap and not (record and record.state.is_past_revoke):
            assert world.works(old), f"{where}: the old value died too early"
        state = self.rotate(world, wish)
        self.assert_rotated_once(world, old, state, where)
        self.rows.append((where, "held, finished, rotated once"))

    def assert_rotated_once(
        self, world: World, old: Values, state: RotationState, where: str = ""
    ) -> None:
        """The new value works, the old one is refused, nothing of it is left anywhere."""
        assert (state.step, state.generation) == (Step.DONE, 1), f"{where}: {state}"
        new = world.current()
        assert new != old, where
        assert world.works(new), f"{where}: the new value does not work"
        assert not world.works(old), f"{where}: the old value is accepted"
        assert world.times_rotated() == 1, f"{where}: rotated {world.times_rotated()} times"
        record = self.store.load(world.secret)
        assert record is not None
        assert record.values == {}, f"{where}: values are left in the record"
        assert record.proof, f"{where}: no proof is recorded"


@dataclass
class Load:
    """What the probe has seen."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


class Probe:
    """Threads that use a credential all the time."""

    def __init__(self, make_consumer: Callable[[int], Callable[[], None]]) -> None:
        self.load = Load()
        self._make = make_consumer
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def _run(self, number: int) -> None:
        consume = self._make(number)
        while not self._stopped.is_set():
            problem = ""
            try:
                consume()
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            with self._lock:
                self.load.requests += 1
                if problem:
                    self.load.failures.append(problem)
            self._stopped.wait(PAUSE_SECONDS)

    def wait_for_requests(self, count: int) -> None:
        """Let the probe send so many more."""
        until, deadline = self.load.requests + count, time.monotonic() + WARM_SECONDS
        while self.load.requests < until:
            assert time.monotonic() < deadline, f"the probe stands still: {self.load}"
            time.sleep(0.01)

    def __enter__(self) -> Probe:
        self._started = time.monotonic()
        for number in range(THREADS):
            thread = threading.Thread(target=self._run, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()
        self.wait_for_requests(WARM_REQUESTS)
        return self

    def __exit__(self, *ignored: object) -> None:
        try:
            if ignored[0] is None:
                self.wait_for_requests(WARM_REQUESTS)
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join(30)
            self.load.seconds = time.monotonic() - self._started


@pytest.fixture(scope="session")
def trial_directory() -> Iterator[Path]:
    """A directory that PostgreSQL's system user can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="infraflows-rotation-"))
    directory.chmod(0o755)
    for name in ("objects", "openbao", "postgresql", "redis", "worker"):
        (directory / name).mkdir(mode=0o700)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def bao(trial_directory: Path) -> Iterator[BareOpenBao]:
    """OpenBao with what an administrator prepares for rotations."""
    with bare_openbao(trial_directory / "openbao") as server:
        client = server.client()
        client.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
        client.sys.enable_secrets_engine("transit")
        client.sys.enable_secrets_engine("database")
        client.sys.enable_auth_method("approle")
        client.secrets.transit.create_key("infraflows-rotation", key_type="aes256-gcm96")
        client.sys.create_or_update_policy(WORKER, POLICY)
        add_approle(server, WORKER, trial_directory / "worker", token_policies=[WORKER])
        yield server


def add_approle(server: BareOpenBao, name: str, directory: Path, **settings: Any) -> None:
    """Make a role and write the two files that a worker logs in with."""
    client = server.client()
    client.auth.approle.create_or_update_approle(name, **settings)
    role_id = client.auth.approle.read_role_id(name)["data"]["role_id"]
    secret_id = client.auth.approle.generate_secret_id(name)["data"]["secret_id"]
    (directory / "role_id").write_text(role_id)
    (directory / "secret_id").write_text(secret_id)


@pytest.fixture(scope="session")
def openbao_server(bao: BareOpenBao, trial_directory: Path) -> OpenBaoServer:
    """The block of the server, as the worker's."""
    return OpenBaoServer(
        address=bao.address,
        ca_file=bao.ca_file,
        role_id_file=str(trial_directory / "worker" / "role_id"),
        secret_id_file=str(trial_directory / "worker" / "secret_id"),
        audit_file=str(bao.directory / "audit.log"),
    )


@pytest.fixture
def session(openbao_server: OpenBaoServer) -> Iterator[OpenBaoSession]:
    """A worker's login, with no more rights than its policy gives."""
    with openbao_server.session() as opened:
        yield opened


@pytest.fixture
def store(session: OpenBaoSession) -> RotationStore:
    return RotationStore(session, ENVIRONMENT)


@pytest.fixture
def matrix(store: RotationStore) -> Matrix:
    return Matrix(store)


@pytest.fixture(scope="session")
def postgres(trial_directory: Path) -> Iterator[BarePostgresql]:
    with bare_postgresql(trial_directory / "postgresql") as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(trial_directory: Path) -> Iterator[BareRedis]:
    with bare_redis(trial_directory / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def object_store(trial_directory: Path) -> Iterator[BareObjectStore]:
    with bare_object_store(trial_directory / "objects") as server:
        yield server


@pytest.fixture
def make_probe() -> Callable[[Callable[[int], Callable[[], None]]], Probe]:
    return Probe


@dataclass
class Site:
    """What the worlds of these tests are made with: the administrator's side of the systems."""

    bao: BareOpenBao
    session: OpenBaoSession
    store: RotationStore
    directory: Path

    def __post_init__(self) -> None:
        self.admin = self.bao.client()
        self.versions = VersionedSecrets(self.session)

    def put(self, path: str, values: Mapping[str, str]) -> None:
        self.admin.secrets.kv.v2.create_or_update_secret(path, dict(values), mount_point="kv")

    def get(self, path: str) -> dict[str, str]:
        """Read as a consumer does, with a login of its own."""
        answer = self.admin.secrets.kv.v2.read_secret_version(
            path, mount_point="kv", raise_on_deleted_version=True
        )
        return dict(answer["data"]["data"])

    def times_written(self, path: str) -> int:
        """How often the path was written after the first time."""
        return int(self.versions.metadata(path)["current_version"]) - 1

    def ref(self, kind: str, **parameters: str) -> SecretRef:
        name = uuid.uuid4().hex[:12]
        return SecretRef(f"apps/{name}", kind, ENVIRONMENT, parameters)

    def name(self, prefix: str) -> str:
        return f"{prefix}_{secrets.token_hex(4)}"


@pytest.fixture
def site(
    bao: BareOpenBao, session: OpenBaoSession, store: RotationStore, trial_directory: Path
) -> Site:
    return Site(bao, session, store, trial_directory)


@pytest.fixture
def make_world() -> Callable[..., World]:
    """Return how a world is built; the fields are those of `World`."""
    return World


@pytest.fixture
def wish() -> Callable[..., Request]:
    return request


@pytest.fixture
def limits() -> Limits:
    return LIMITS
