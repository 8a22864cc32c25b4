"""Databases of applications on a real PostgreSQL, their users made by a real OpenBao."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from domain.errors import Conflict
from domain.onboarding.tenant import Tenant
from lab.services.credentials import credential
from tasks.onboarding.steps.postgresql_database import PostgresqlDatabase

STEP = PostgresqlDatabase()
Make = Callable[..., Tenant]


def connect(systems: Any, database: str, user: str, password: str) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host="127.0.0.1",
        port=systems.postgresql.port,
        dbname=database,
        user=user,
        password=password,
        autocommit=True,
    )


def user_of(systems: Any, tenant: Tenant, stage: str = "staging") -> dict[str, str]:
    """Have OpenBao make a user, as a pod with the application's policy does."""
    path = f"database/creds/app-{tenant.name}-{stage}"
    answer = systems.admin.read(path)
    return {**answer["data"], "lease": answer["lease_id"]}


@pytest.fixture
def shop(systems: Any, tenant_of: Make) -> Any:
    tenant = tenant_of("shop")
    STEP.apply(tenant)
    yield tenant
    STEP.remove(tenant)
    assert STEP.found(tenant) == {}


def test_it_makes_what_is_wanted_and_a_second_time_nothing(
    shop: Tenant, changes_of: Callable[..., list[str]]
) -> None:
    assert STEP.found(shop) == STEP.wanted(shop)
    assert changes_of(lambda: STEP.apply(shop)) == []


def test_a_user_makes_tables_that_outlive_it(systems: Any, shop: Tenant) -> None:
    first = user_of(systems, shop)
    with connect(systems, "shop_staging", first["username"], first["password"]) as connection:
        connection.execute("CREATE TABLE orders (id int, mail citext)")
        connection.execute("INSERT INTO orders VALUES (1, 'Jo@example.org')")
        owner = connection.execute(
            "SELECT tableowner FROM pg_tables WHERE tablename = 'orders'"
        ).fetchone()
    assert owner == ("shop_staging",)
    systems.admin.sys.revoke_lease(first["lease"])

    second = user_of(systems, shop)
    with connect(systems, "shop_staging", second["username"], second["password"]) as connection:
        found = connection.execute("SELECT id FROM orders WHERE mail = 'jo@EXAMPLE.org'")
        assert found.fetchall() == [(1,)]
        connection.execute("DROP TABLE orders")


def test_a_user_reaches_no_other_database(systems: Any, shop: Tenant, tenant_of: Make) -> None:
    other = tenant_of("bakery")
    STEP.apply(other)
    user = user_of(systems, shop)

    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect(systems, "bakery_staging", user["username"], user["password"])
    with connect(systems, "shop_staging", user["username"], user["password"]) as connection:
        for statement in ("CREATE ROLE x", "CREATE DATABASE x", "SET ROLE bakery_staging"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    STEP.remove(other)


def test_a_user_is_gone_after_its_revocation_and_so_is_its_session(
    systems: Any, shop: Tenant
) -> None:
    user = user_of(systems, shop)
    session = connect(systems, "shop_staging", user["username"], user["password"])
    session.execute("SELECT 1")

    systems.admin.sys.revoke_lease(user["lease"])

    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        connect(systems, "shop_staging", user["username"], user["password"])
    assert users_of(systems) == []


def users_of(systems: Any) -> list[str]:
    with systems.postgresql.connect() as connection:
        rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")
        return [str(row[0]) for row in rows]


def test_a_user_that_made_tables_under_its_own_name_is_dead_after_its_revocation(
    systems: Any, shop: Tenant
) -> None:
    user = user_of(systems, shop)
    with connect(systems, "shop_staging", user["username"], user["password"]) as connection:
        connection.execute("SET ROLE NONE")
        connection.execute("CREATE TABLE public.own (id int)")

    systems.admin.sys.revoke_lease(user["lease"])

    with pytest.raises(psycopg.OperationalError, match=r"authentication failed|not permitted"):
        connect(systems, "shop_staging", user["username"], user["password"])
    # What is left of it goes with the database.
    assert users_of(systems) == [user["username"]]
    STEP.remove(shop)
    assert users_of(systems) == []


def test_removing_ends_sessions_and_users_and_leaves_nothing(
    systems: Any, shop: Tenant, tenant_of: Make
) -> None:
    user = user_of(systems, shop)
    session = connect(systems, "shop_staging", user["username"], user["password"])

    STEP.remove(shop)

    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    assert STEP.found(shop) == {}
    assert users_of(systems) == []
    with systems.postgresql.connect() as connection:
        names = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'shop%' "
            "UNION SELECT datname FROM pg_database WHERE datname LIKE 'shop%'"
        ).fetchall()
    assert names == []


def test_a_changed_wish_converges_and_keeps_the_data(
    systems: Any, shop: Tenant, tenant_of: Make
) -> None:
    with systems.postgresql.connect() as _:
        user = user_of(systems, shop)
    with connect(systems, "shop_staging", user["username"], user["password"]) as connection:
        connection.execute("CREATE TABLE kept (id int)")
    changed = tenant_of("shop", database={"connections": 9, "extensions": ["pgcrypto"]})

    STEP.apply(changed)

    assert STEP.found(changed) == STEP.wanted(changed)
    with connect(systems, "shop_staging", user["username"], user["password"]) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        extensions = connection.execute("SELECT extname FROM pg_extension ORDER BY 1").fetchall()
    assert extensions == [("pgcrypto",), ("plpgsql",)]


def test_an_extension_that_tables_use_is_not_taken_away(
    systems: Any, shop: Tenant, tenant_of: Make
) -> None:
    user = user_of(systems, shop)
    with connect(systems, "shop_staging", user["username"], user["password"]) as connection:
        connection.execute("CREATE TABLE mails (mail citext)")

    with pytest.raises(Conflict, match=r"tables of the application\s+use it"):
        STEP.apply(tenant_of("shop", database={"connections": 5}))


@pytest.mark.parametrize("changed", ["limit", "public", "engine role"])
def test_an_unmanaged_change_is_seen_and_taken_back(
    systems: Any, shop: Tenant, changed: str
) -> None:
    if changed == "engine role":
        systems.admin.write(
            "database/roles/app-shop-staging",
            **{
                **systems.admin.read("database/roles/app-shop-staging")["data"],
                "max_ttl": 999999,
            },
        )
    else:
        statement = {
            "limit": "ALTER DATABASE shop_staging CONNECTION LIMIT -1",
            "public": "GRANT CONNECT ON DATABASE shop_staging TO PUBLIC",
        }[changed]
        with systems.postgresql.connect() as connection:
            connection.execute(statement)

    assert STEP.found(shop) != STEP.wanted(shop)
    STEP.apply(shop)
    assert STEP.found(shop) == STEP.wanted(shop)


@pytest.mark.parametrize("kind", ["role", "database", "engine role"])
def test_what_is_somebody_elses_is_a_conflict_and_untouched(
    systems: Any, tenant_of: Make, kind: str
) -> None:
    tenant = tenant_of("foreign")
    with systems.postgresql.connect() as connection:
        if kind == "role":
            connection.execute("CREATE ROLE foreign_staging")
        elif kind == "database":
            connection.execute("CREATE DATABASE foreign_staging")
        else:
            systems.admin.write(
                "database/roles/app-foreign-staging",
                db_name="apps",
                creation_statements=["SELECT 1"],
            )
        with pytest.raises(Conflict, match=r"foreign.staging is there"):
            STEP.apply(tenant)
        assert STEP.found(tenant) == {}
        STEP.remove(tenant)
        if kind == "engine role":
            path = "database/roles/app-foreign-staging"
            assert systems.admin.read(path)["data"]["creation_statements"] == ["SELECT 1"]
            systems.admin.delete(path)
        else:
            # Both would fail if they were gone.
            connection.execute(f"DROP {kind.upper()} foreign_staging")
        left = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = 'foreign_staging' "
            "UNION SELECT datname FROM pg_database WHERE datname = 'foreign_staging'"
        ).fetchall()
        assert left == []


def test_it_survives_being_killed_after_each_of_its_changes(
    systems: Any, tenant_of: Make, killed_everywhere: Callable[..., int]
) -> None:
    count = killed_everywhere(STEP, lambda n: tenant_of(f"kill-{n}a"))

    assert count > 12


def test_the_provisioner_is_no_superuser(systems: Any, shop: Tenant) -> None:
    login = credential(systems.layout, "database")
    with connect(systems, "postgres", login["username"], login["password"]) as connection:
        rights = connection.execute(
            "SELECT rolsuper, rolbypassrls, rolreplication FROM pg_roles WHERE rolname = "
            "current_user"
        ).fetchone()
    assert rights == (False, False, False)
