"""A rotation that is killed at any edge, and a consumer that never stops asking.

The steps are the machine's; what is recorded after each is what a worker would find in OpenBao.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from blocks.openbao import OpenBaoServer, OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from domain.rotation.contract import Adapter, Proof, SecretRef, Seen, Values
from lab.bare_services import BareOpenBao, bare_openbao

STEPS = ("create", "set", "test", "distribute", "observe", "revoke", "prove_dead")
EDGES = [(step, when) for step in STEPS for when in ("before", "after")]
OBSERVE_SECONDS = 240.0


class Killed(BaseException):
    """What SIGKILL is in one process: nobody may catch it."""


@dataclass
class Rotation:
    """One secret's rotation, with the record that survives a kill."""

    adapter: Adapter
    secret: SecretRef
    current: Values | None
    generation: int = 1
    position: int = 0
    pending: Values | None = None
    proof: Proof | None = None
    acts: list[str] = field(default_factory=list)
    kill_at: tuple[str, str] | None = None
    _lock: Any = field(default_factory=threading.Lock)
    _users: dict[int, int] = field(default_factory=dict)

    @property
    def published(self) -> Values | None:
        """What consumers that read OpenBao see."""
        is_out = self.position > STEPS.index("distribute")
        return self.pending if is_out else self.current

    @contextmanager
    def using(self) -> Iterator[Values]:
        """Use what is published, as a consumer whose use of the old value can be seen."""
        with self._lock:
            values = self.published
            assert values is not None
            self._users[id(values)] = self._users.get(id(values), 0) + 1
        try:
            yield values
        finally:
            with self._lock:
                self._users[id(values)] -= 1

    def _is_unused(self, values: Values | None) -> bool:
        with self._lock:
            return not self._users.get(id(values))

    def run(self) -> Proof:
        """Go on from where the record stands, to the end."""
        while self.position < len(STEPS):
            step = STEPS[self.position]
            self._die_if(step, "before")
            result = self._act(step)
            self._die_if(step, "after")
            if step == "create":
                self.pending = result
            elif step == "prove_dead":
                self.proof = result
            self.position += 1
        assert self.proof is not None
        return self.proof

    def finish(self) -> None:
        """Make the new value the current one, ready for the next rotation."""
        self.current, self.pending, self.position = self.pending, None, 0
        self.generation += 1

    def _die_if(self, step: str, when: str) -> None:
        if self.kill_at == (step, when):
            self.kill_at = None
            raise Killed(f"{when} {step}")

    def _act(self, step: str) -> Any:
        adapter, secret, new, current = self.adapter, self.secret, self.pending, self.current
        self.acts.append(step)
        if step == "create":
            return adapter.create(secret, self.generation, current)
        assert new is not None
        if step in ("set", "observe"):
            act = adapter.set if step == "set" else self._observe
            return act(secret, new, current)
        if step in ("test", "distribute"):
            return getattr(adapter, step)(secret, new)
        assert current is not None
        return getattr(adapter, step)(secret, current)

    def _observe(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        deadline = time.monotonic() + OBSERVE_SECONDS
        seen: Sequence[Seen] = ()
        while time.monotonic() < deadline:
            seen = self.adapter.observe(secret, new, current)
            if all(one.is_on_new for one in seen) and self._is_unused(current):
                return
            time.sleep(0.1)
        raise AssertionError([one for one in seen if not one.is_on_new])


@dataclass
class Load:
    """What a load probe counted."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


@contextmanager
def load(request: Callable[[], str | None], threads: int = 4, weight: int = 1) -> Iterator[Load]:
    """Ask continuously; `request` returns what went wrong, or None, for `weight` requests."""
    counted, stop, lock = Load(), threading.Event(), threading.Lock()

    def ask() -> None:
        while not stop.is_set():
            try:
                wrong = request()
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            with lock:
                counted.requests += weight
                if wrong is not None:
                    counted.failures.append(wrong)
            time.sleep(0.01)

    workers = [threading.Thread(target=ask, daemon=True) for _ in range(threads)]
    began = time.monotonic()
    for worker in workers:
        worker.start()
    try:
        yield counted
        # Some requests after the end too: the old value is gone now.
        time.sleep(0.3)
    finally:
        stop.set()
        for worker in workers:
            worker.join(30)
        counted.seconds = time.monotonic() - began


def crash_matrix(
    rotation: Rotation, is_served: Callable[[], str | None], edges: Sequence[tuple[str, str]]
) -> list[str]:
    """Kill one rotation after the other at each edge; return a line for each."""
    lines = []
    for edge in edges:
        rotation.acts.clear()
        rotation.kill_at = edge
        with pytest.raises(Killed):
            rotation.run()
        assert (wrong := is_served()) is None, f"after a kill {edge}: {wrong}"
        proof = rotation.run()
        assert proof.is_dead, f"after a kill {edge}: {proof}"
        assert (wrong := is_served()) is None, f"at the end of {edge}: {wrong}"
        repeated = [step for step in STEPS if rotation.acts.count(step) > 1]
        assert repeated in ([], [edge[0]]), repeated
        lines.append(f"{edge[1]} {edge[0]}: finished, dead: {proof.answer}")
        rotation.finish()
    return lines


@dataclass(frozen=True)
class Bench:
    """The tools of this folder, for tests that cannot import each other."""

    rotation: type[Rotation] = Rotation
    load: Callable[..., Any] = load
    crash_matrix: Callable[..., list[str]] = crash_matrix
    killed: type[Killed] = Killed
    edges: tuple[tuple[str, str], ...] = tuple(EDGES)


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, Load], None]:
    """Hold the figures of a probe to what is promised, and put them into the test report."""

    def write(kind: str, counted: Load) -> None:
        record_property("class", kind)
        record_property("requests", counted.requests)
        record_property("failures", len(counted.failures))
        record_property("requests per second", round(counted.per_second, 1))
        print(f"{kind}: {counted.requests} requests, {counted.per_second:.0f}/s, 0 failures wanted")
        assert counted.failures == [], counted.failures[:5]
        assert counted.requests > 20

    return write


@pytest.fixture(scope="session")
def certifying_openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareOpenBao]:
    """A real OpenBao with a PKI and an SSH engine."""
    with bare_openbao(tmp_path_factory.mktemp("openbao")) as server:
        client = server.client()
        client.sys.enable_auth_method("approle")
        for engine in ("pki", "ssh", "transit"):
            client.sys.enable_secrets_engine(engine)
        client.sys.enable_secrets_engine("kv", "kv", options={"version": "2"})
        client.sys.tune_mount_configuration("pki", max_lease_ttl="87600h")
        write = client.write_data
        write("pki/root/generate/internal", data={"common_name": "test CA", "ttl": "8760h"})
        pki_role = {"allow_any_name": True, "max_ttl": "24h", "key_type": "ec", "key_bits": 256}
        write("pki/roles/web", data=pki_role)
        client.sys.create_or_update_policy(
            "all", 'path "*" { capabilities = ["create","read","update","delete","list","sudo"] }'
        )
        write(
            "ssh/issuers/import/infraflows-g0",
            data={"generate_signing_key": True, "key_type": "ssh-ed25519", "set_default": True},
        )
        host_role = {"key_type": "ca", "allow_host_certificates": True, "allowed_domains": "*"}
        write("ssh/roles/host", data={**host_role, "allow_bare_domains": True, "ttl": "24h"})
        user_role = {"key_type": "ca", "allow_user_certificates": True, "allowed_users": "root"}
        write("ssh/roles/user", data={**user_role, "ttl": "2s", "max_ttl": "2s"})
        write("auth/approle/role/worker", data={"token_policies": "all"})
        yield server


@pytest.fixture
def bao_session(certifying_openbao: BareOpenBao, tmp_path: Path) -> Iterator[OpenBaoSession]:
    """A login of the worker."""
    bao = certifying_openbao
    client = bao.client()
    role_id = client.read("auth/approle/role/worker/role-id")["data"]["role_id"]
    secret_id = client.write_data("auth/approle/role/worker/secret-id")["data"]["secret_id"]
    for name, value in (("role_id", role_id), ("secret_id", secret_id)):
        (tmp_path / name).write_text(value)
    server = OpenBaoServer(
        address=bao.address,
        ca_file=bao.ca_file,
        role_id_file=str(tmp_path / "role_id"),
        secret_id_file=str(tmp_path / "secret_id"),
    )
    with server.session() as session:
        yield session


@pytest.fixture
def engine_world(make_world: Any, store: Any, session: OpenBaoSession) -> Callable[..., Any]:
    """Make what the engine's kill matrix takes, for a class whose value lies in OpenBao."""

    def make(
        adapter: Adapter,
        secret: SecretRef,
        first: Values,
        works: Callable[[Values], bool],
        **more: Any,
    ) -> Any:
        session.write(secret.path, first)
        metadata = VersionedSecrets(session).metadata

        return make_world(
            secret=secret,
            adapter=adapter,
            current=lambda: store.current(secret),
            works=works,
            times_rotated=lambda: int(metadata(secret.path)["current_version"]) - 1,
            **more,
        )

    return make
