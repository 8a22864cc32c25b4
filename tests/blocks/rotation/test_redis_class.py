"""Users of Redis, rotated against a real Redis under load and through kills."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from blocks.rotation.redis_acl import AclUser
from domain.errors import Conflict, PolicyViolation
from domain.rotation.contract import Values
from lab.bare_services import BareRedis

RECONNECT_EVERY = 8
ADMIN_PATH = "apps-admin/redis"


@pytest.fixture(autouse=True)
def _admin_login(site: Any, redis_server: BareRedis) -> None:
    if site.versions.read(ADMIN_PATH).values is None:
        site.put(ADMIN_PATH, redis_server.login)


def accepted(server: BareRedis, values: Values) -> bool:
    client = redis.Redis(
        "127.0.0.1",
        server.port,
        username=values["username"],
        password=values["password"],
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()
    except redis.exceptions.AuthenticationError:
        return False
    finally:
        client.close()
    return True


def make_user(site: Any, make_world: Any, server: BareRedis, **parameters: str) -> Any:
    user = site.name("app")
    server.client().acl_setuser(
        user, enabled=True, passwords=["+first-word"], keys=["*"], commands=["+@all"]
    )
    secret = site.ref(
        AclUser.kind, user=user, admin_path=ADMIN_PATH, **{"quiet_seconds": "0", **parameters}
    )
    site.put(secret.path, {"username": user, "password": "first-word"})
    return make_world(
        secret=secret,
        adapter=AclUser(site.session),
        current=lambda: site.get(secret.path),
        works=lambda values: accepted(server, values),
        times_rotated=lambda: site.times_written(secret.path),
    )


def consumer(site: Any, world: Any, server: BareRedis) -> Callable[[int], Callable[[], None]]:
    def make(number: int) -> Callable[[], None]:
        reader, sent = site.bao.client(), 0
        client: Any = None

        def request() -> None:
            nonlocal sent, client
            if sent % RECONNECT_EVERY == 0:
                if client is not None:
                    client.close()
                answer = reader.secrets.kv.v2.read_secret_version(
                    world.secret.path, mount_point="kv", raise_on_deleted_version=True
                )
                held = answer["data"]["data"]
                client = redis.Redis(
                    "127.0.0.1",
                    server.port,
                    username=held["username"],
                    password=held["password"],
                    client_name=f"consumer-{number}",
                    single_connection_client=True,
                    retry=Retry(NoBackoff(), 0),
                )
            sent += 1
            client.incr(f"probe-{number}")

        return request

    return make


def test_a_password_is_rotated_under_load_without_a_failed_command(
    site: Any,
    make_world: Any,
    make_probe: Any,
    matrix: Any,
    wish: Any,
    redis_server: BareRedis,
    record_property: Any,
) -> None:
    world = make_user(site, make_world, redis_server, quiet_seconds="1")
    old = world.current()
    with make_probe(consumer(site, world, redis_server)) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    record_property("load", f"{world.secret.kind}: {probe.load}")


def test_a_password_is_rotated_once_whatever_kills_it(
    site: Any, make_world: Any, matrix: Any, redis_server: BareRedis, record_property: Any
) -> None:
    edges = matrix.kill_everywhere(lambda: make_user(site, make_world, redis_server))
    record_property("edges", edges)


def test_one_password_is_left_and_a_restart_would_keep_it(
    site: Any, make_world: Any, matrix: Any, wish: Any, redis_server: BareRedis
) -> None:
    world = make_user(site, make_world, redis_server)
    matrix.rotate(world, wish())
    new = world.current()
    expected = hashlib.sha256(new["password"].encode()).hexdigest()
    found: Any = redis_server.client().acl_getuser(new["username"])
    assert found["passwords"] == [expected]
    saved = (redis_server.directory / "users.acl").read_text()
    (line,) = (text for text in saved.splitlines() if f"user {new['username']} " in text)
    assert f"#{expected}" in line
    assert line.count("#") == 1


def test_a_connection_from_before_holds_up_the_revocation(
    site: Any, make_world: Any, redis_server: BareRedis
) -> None:
    world = make_user(site, make_world, redis_server)
    old = world.current()
    client = redis.Redis(
        "127.0.0.1",
        redis_server.port,
        username=old["username"],
        password=old["password"],
        single_connection_client=True,
    )
    client.ping()
    new = world.adapter.create(world.secret, 1, old)
    world.adapter.set(world.secret, new, old)
    site.put(world.secret.path, new)
    assert [seen.is_on_new for seen in world.adapter.observe(world.secret, new, old)] == [False]
    client.close()


def test_a_user_without_password_and_the_administrator_are_refused(
    site: Any, make_world: Any, redis_server: BareRedis
) -> None:
    world = make_user(site, make_world, redis_server)
    name = site.name("open")
    redis_server.client().acl_setuser(name, enabled=True, nopass=True)
    without = site.ref(AclUser.kind, user=name, admin_path=ADMIN_PATH)
    with pytest.raises(Conflict, match="asks it for no password"):
        world.adapter.create(without, 1, None)
    own = site.ref(AclUser.kind, user=redis_server.username, admin_path=ADMIN_PATH)
    with pytest.raises(PolicyViolation, match="logs in to Redis with it"):
        world.adapter.create(own, 1, None)
