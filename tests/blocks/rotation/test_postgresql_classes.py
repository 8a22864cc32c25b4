"""Users of PostgreSQL, rotated against a real PostgreSQL under load and through kills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from blocks.rotation.postgresql_static_role import StaticRole
from blocks.rotation.postgresql_users import AlternatingUsers
from domain.errors import Conflict, InvalidSpec, PolicyViolation
from domain.rotation.contract import Values
from domain.rotation.state import Step
from lab.bare_services import BarePostgresql

RECONNECT_EVERY = 8
ADMIN_PATH = "apps-admin/postgresql"


@pytest.fixture(autouse=True)
def _admin_login(site: Any, postgres: BarePostgresql) -> None:
    if site.versions.read(ADMIN_PATH).values is None:
        site.put(ADMIN_PATH, postgres.login)


def accepted(postgres: BarePostgresql, values: Values) -> bool:
    try:
        postgres.connect(values["username"], values["password"]).close()
    except psycopg.OperationalError as error:
        if "authentication failed" in str(error) or "not permitted to log in" in str(error):
            return False
        raise
    return True


# -------------------------------------------------------------------------- alternating users


def make_users(site: Any, make_world: Any, postgres: BarePostgresql, **parameters: str) -> Any:
    base = site.name("app")
    role, users = f"{base}_role", [f"{base}_a", f"{base}_b"]
    with postgres.connect() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
        admin.execute(sql.SQL("CREATE TABLE {} (n int)").format(sql.Identifier(f"{base}_orders")))
        admin.execute(
            sql.SQL("GRANT SELECT, INSERT ON {} TO {}").format(
                sql.Identifier(f"{base}_orders"), sql.Identifier(role)
            )
        )
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'first-word' IN ROLE {}").format(
                sql.Identifier(users[0]), sql.Identifier(role)
            )
        )
    secret = site.ref(
        AlternatingUsers.kind,
        users=",".join(users),
        role=role,
        admin_path=ADMIN_PATH,
        **{"quiet_seconds": "0", **parameters},
    )
    site.put(
        secret.path,
        {
            "username": users[0],
            "password": "first-word",
            "host": "127.0.0.1",
            "table": f"{base}_orders",
        },
    )
    return make_world(
        secret=secret,
        adapter=AlternatingUsers(site.session),
        current=lambda: site.get(secret.path),
        works=lambda values: accepted(postgres, values),
        times_rotated=lambda: site.times_written(secret.path),
    )


def pooled(
    site: Any, world: Any, postgres: BarePostgresql, read: Callable[[Any], Values], retries: int
) -> Callable[[int], Callable[[], None]]:
    """Consumers with one open session each, who read the credential whenever they connect."""

    def make(number: int) -> Callable[[], None]:
        reader, sent = site.bao.client(), 0
        connection: Any = None

        def connect() -> Any:
            for attempt in range(retries + 1):
                values = read(reader)
                try:
                    return psycopg.connect(
                        host="127.0.0.1",
                        port=postgres.port,
                        dbname="postgres",
                        user=values["username"],
                        password=values["password"],
                        application_name=f"consumer-{number}",
                        autocommit=True,
                    )
                except psycopg.OperationalError:
                    if attempt == retries:
                        raise
            raise AssertionError("not reached")

        def request() -> None:
            nonlocal sent, connection
            if sent % RECONNECT_EVERY == 0:
                if connection is not None:
                    connection.close()
                connection = connect()
            sent += 1
            connection.execute("SELECT 1").fetchone()

        return request

    return make


def from_kv(path: str) -> Callable[[Any], Values]:
    def read(reader: Any) -> Values:
        answer = reader.secrets.kv.v2.read_secret_version(
            path, mount_point="kv", raise_on_deleted_version=True
        )
        return dict(answer["data"]["data"])

    return read


def test_two_users_take_turns_under_load_without_a_failed_query(
    site: Any,
    make_world: Any,
    make_probe: Any,
    matrix: Any,
    wish: Any,
    postgres: BarePostgresql,
    record_property: Any,
) -> None:
    world = make_users(site, make_world, postgres, quiet_seconds="2")
    old = world.current()
    with make_probe(pooled(site, world, postgres, from_kv(world.secret.path), 0)) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    record_property("load", f"{world.secret.kind}: {probe.load}")


def test_users_are_rotated_once_whatever_kills_it(
    site: Any, make_world: Any, matrix: Any, postgres: BarePostgresql, record_property: Any
) -> None:
    edges = matrix.kill_everywhere(lambda: make_users(site, make_world, postgres))
    record_property("edges", edges)


def test_both_users_do_the_same_and_what_they_make_belongs_to_the_role(
    site: Any, make_world: Any, matrix: Any, wish: Any, postgres: BarePostgresql
) -> None:
    world = make_users(site, make_world, postgres)
    table, role = world.current()["table"], world.secret.parameters["role"]
    with postgres.connect() as admin:
        admin.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(role)))
    for number in ("first", "second"):
        matrix.rotate(world, wish(number))
        new = world.current()
        with postgres.connect(new["username"], new["password"]) as connection:
            connection.execute(sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier(table)))
            made = f"{table}_{number}"
            connection.execute(sql.SQL("CREATE TABLE {} (n int)").format(sql.Identifier(made)))
            owner = connection.execute(
                "SELECT tableowner FROM pg_tables WHERE tablename = %s", (made,)
            ).fetchone()
        assert owner == (role,)
    users = world.secret.parameters["users"].split(",")
    assert world.current()["username"] == users[0]


def test_a_session_of_the_old_user_holds_up_the_revocation(
    site: Any, make_world: Any, postgres: BarePostgresql
) -> None:
    world = make_users(site, make_world, postgres)
    old = world.current()
    with postgres.connect(old["username"], old["password"]):
        new = world.adapter.create(world.secret, 1, old)
        world.adapter.set(world.secret, new, old)
        seen = world.adapter.observe(world.secret, new, old)
    assert [each.is_on_new for each in seen] == [False]
    assert old["username"] in seen[0].detail


def test_a_failed_rotation_leaves_the_old_user_and_no_login_of_the_new(
    site: Any, make_world: Any, matrix: Any, wish: Any, postgres: BarePostgresql
) -> None:
    world = make_users(site, make_world, postgres)
    old, made = world.current(), []
    original = world.adapter.observe

    def observe(secret: Any, new: Values, current: Values | None) -> Any:
        if new["username"] != old["username"]:
            made.append(dict(new))
            raise Conflict("Unable to look: a trial. Do nothing.")
        return original(secret, new, current)

    world.adapter.observe = observe
    state = matrix.rotate(world, wish())
    assert state.step is Step.ROLLED_BACK
    assert world.current() == old
    assert world.works(old)
    assert not world.works(made[0])
    record = matrix.store.load(world.secret)
    assert record is not None
    assert record.values == {}


def test_the_administrator_that_the_run_uses_is_refused(
    site: Any, make_world: Any, postgres: BarePostgresql
) -> None:
    world = make_users(site, make_world, postgres)
    own = site.ref(
        AlternatingUsers.kind,
        users=f"{postgres.username},other",
        role="any",
        admin_path=ADMIN_PATH,
    )
    current = {"username": "other", "password": "x"}
    with pytest.raises(PolicyViolation, match="logs in to PostgreSQL with it"):
        world.adapter.create(own, 1, current)
    with pytest.raises(PolicyViolation, match="logs in to PostgreSQL with it"):
        world.adapter.revoke(own, {"username": postgres.username, "password": "x"})


def test_one_user_alone_cannot_take_turns(site: Any, make_world: Any, postgres: Any) -> None:
    world = make_users(site, make_world, postgres)
    alone = site.ref(AlternatingUsers.kind, users="app", role="any", admin_path=ADMIN_PATH)
    with pytest.raises(InvalidSpec, match="does not name two users"):
        world.adapter.create(alone, 1, None)


def test_no_password_reaches_the_log_of_the_server(
    site: Any, make_world: Any, matrix: Any, wish: Any, postgres: BarePostgresql
) -> None:
    world = make_users(site, make_world, postgres)
    with postgres.connect() as admin:
        admin.execute("ALTER SYSTEM SET log_statement = 'all'")
        admin.execute("SELECT pg_reload_conf()")
    matrix.rotate(world, wish())
    with postgres.connect() as admin:
        admin.execute("ALTER SYSTEM RESET log_statement")
        admin.execute("SELECT pg_reload_conf()")
    log = (postgres.directory / "postgresql.log").read_text(errors="replace")
    assert world.current()["username"] in log
    assert world.current()["password"] not in log


# ------------------------------------------------------------------------------- static roles


def make_static(site: Any, make_world: Any, postgres: BarePostgresql, **parameters: str) -> Any:
    user = site.name("app")
    with postgres.connect() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(user)))
    site.admin.write(
        "database/config/trial",
        plugin_name="postgresql-database-plugin",
        allowed_roles="*",
        connection_url="postgresql://{{username}}:{{password}}@127.0.0.1:"
        f"{postgres.port}/postgres?sslmode=disable",
        username=postgres.username,
        password=postgres.password,
    )
    site.admin.write(
        f"database/static-roles/{user}", db_name="trial", username=user, rotation_period="24h"
    )
    secret = site.ref(StaticRole.kind, static_role=user, admin_path=ADMIN_PATH, **parameters)
    changes: set[str] = set()

    def current() -> Values:
        data = site.admin.read(f"database/static-creds/{user}")["data"]
        changes.add(data["last_vault_rotation"])
        return {"username": data["username"], "password": data["password"]}

    current()
    return make_world(
        secret=secret,
        adapter=StaticRole(site.session),
        current=current,
        works=lambda values: accepted(postgres, values),
        times_rotated=lambda: len(changes) - 1,
        has_overlap=False,
    )


def test_a_static_role_is_rotated_under_load_without_a_failed_query(
    site: Any,
    make_world: Any,
    make_probe: Any,
    matrix: Any,
    wish: Any,
    postgres: BarePostgresql,
    record_property: Any,
) -> None:
    world = make_static(site, make_world, postgres, wait_for_reconnect="true")
    old, user = world.current(), world.secret.parameters["static_role"]

    def read(reader: Any) -> Values:
        return dict(reader.read(f"database/static-creds/{user}")["data"])

    # Such consumers read once more when a login is denied.
    with make_probe(pooled(site, world, postgres, read, 1)) as probe:
        state = matrix.rotate(world, wish())
    matrix.assert_rotated_once(world, old, state)
    assert probe.load.failures == []
    record_property("load", f"{world.secret.kind}: {probe.load}")


def test_a_static_role_is_rotated_once_whatever_kills_it(
    site: Any, make_world: Any, matrix: Any, postgres: BarePostgresql, record_property: Any
) -> None:
    edges = matrix.kill_everywhere(lambda: make_static(site, make_world, postgres))
    record_property("edges", edges)


def test_the_password_of_a_static_role_is_never_copied_to_a_path(
    site: Any, make_world: Any, matrix: Any, wish: Any, postgres: BarePostgresql
) -> None:
    world = make_static(site, make_world, postgres)
    matrix.rotate(world, wish())
    assert site.versions.read(world.secret.path).values is None
