"""A PostgreSQL server's databases of applications, as seen by whoever makes them.

Why it exists: a tenant is a database and a role that owns it, and the role's comment says whose
both are. Promises that a role is never without its comment (one transaction makes both); that
nobody can connect to a database before the right to connect is taken from PUBLIC; that dropping
ends the sessions first and the owner last, so that what is left is always found. Refuses databases
and roles that bear no mark.

Works as a role with CREATEDB and CREATEROLE that is no superuser; PostgreSQL 15 or later, where the
schema `public` belongs to the database's owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from blocks.rotation.postgresql_login import Connection, administrator
from domain.errors import Conflict, InvalidSpec

_WANTED = ("host", "port", "database", "username", "password")

_OWNERS = """
SELECT rolname, shobj_description(oid, 'pg_authid'), rolcanlogin OR rolsuper OR rolcreaterole
       OR rolcreatedb
  FROM pg_catalog.pg_roles WHERE shobj_description(oid, 'pg_authid') = ANY(%s) ORDER BY 1
"""
_DATABASES = """
SELECT datname, pg_get_userbyid(datdba), datconnlimit, datallowconn,
       has_database_privilege('public', oid, 'CONNECT'), shobj_description(oid, 'pg_database')
  FROM pg_catalog.pg_database WHERE pg_get_userbyid(datdba) = ANY(%s) ORDER BY 1
"""
_MEMBERSHIPS = """
SELECT pg_get_userbyid(member), bool_or(admin_option) FROM pg_catalog.pg_auth_members
 WHERE pg_get_userbyid(roleid) = %s GROUP BY 1
"""
_EXTENSIONS = """
SELECT extname FROM pg_catalog.pg_extension
 WHERE obj_description(oid, 'pg_extension') = %s ORDER BY 1
"""
_SESSIONS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity
 WHERE datname = %s AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@dataclass(frozen=True)
class WantedDatabase:
    """A tenant's database; the owner has its name."""

    name: str
    mark: str
    """Comment of database, owner and extensions: whose they are."""
    connections: int
    extensions: tuple[str, ...]
    issuer: str
    """User that may make others in the owner's role."""


@dataclass(frozen=True)
class FoundOwner:
    """A marked role."""

    name: str
    mark: str
    is_plain: bool
    """It cannot log in and has no rights on the server."""
    issuers: tuple[str, ...]


@dataclass(frozen=True)
class FoundDatabase:
    """A database of a marked role."""

    name: str
    owner: str
    mark: str
    connections: int
    is_open: bool
    """It takes connections."""
    is_public: bool
    """Every user of the server may connect."""
    extensions: tuple[str, ...]
    """Those that bear the mark."""


class TenantDatabases:
    """One server, as its provisioner."""

    def __init__(self, login: Mapping[str, str], path: str) -> None:
        """Use a login of an OpenBao path.

        Raises:
            InvalidSpec: values are missing there.
        """
        missing = [name for name in _WANTED if not login.get(name)]
        if missing:
            raise InvalidSpec(
                f"the secret {path}", [f"{name}: missing. Write it to OpenBao" for name in missing]
            )
        self._login = login

    @contextmanager
    def _connection(self, database: str = "") -> Iterator[Connection]:
        place = {"database": database} if database else {}
        with administrator({**self._login, **place}) as connection:
            yield connection

    # --- reading -----------------------------------------------------------------------------

    def owners(self, marks: Sequence[str]) -> list[FoundOwner]:
        """Return the roles that bear one of these marks."""
        with self._connection() as connection:
            return [
                FoundOwner(name, mark, not has_rights, self._issuers(connection, name))
                for name, mark, has_rights in connection.execute(_OWNERS, (list(marks),))
            ]

    def _issuers(self, connection: Connection, owner: str) -> tuple[str, ...]:
        rows = connection.execute(_MEMBERSHIPS, (owner,))
        return tuple(str(name) for name, may_grant in rows if may_grant)

    def databases(self, owners: Sequence[FoundOwner]) -> list[FoundDatabase]:
        """Return the databases of marked roles."""
        marks = {owner.name: owner.mark for owner in owners}
        with self._connection() as connection:
            rows = connection.execute(_DATABASES, (list(marks),)).fetchall()
        return [
            FoundDatabase(
                *(name, owner, str(comment or ""), limit, is_open, is_public),
                self._extensions(name, marks[owner]) if is_open else (),
            )
            for name, owner, limit, is_open, is_public, comment in rows
        ]

    def _extensions(self, database: str, mark: str) -> tuple[str, ...]:
        with self._connection(database) as connection:
            return tuple(str(row[0]) for row in connection.execute(_EXTENSIONS, (mark,)))

    def problems(self, name: str, mark: str) -> list[str]:
        """Return what of this name is somebody else's."""
        with self._connection() as connection:
            owner = connection.execute(
                "SELECT shobj_description(oid, 'pg_authid') FROM pg_catalog.pg_roles "
                "WHERE rolname = %s",
                (name,),
            ).fetchone()
            database = connection.execute(
                "SELECT pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE datname = %s",
                (name,),
            ).fetchone()
        found = []
        if owner and owner[0] != mark:
            found.append(f"the role {name} is there without the application's mark")
        if database and (database[0] != name or not owner or owner[0] != mark):
            found.append(f"the database {name} is there and belongs to {database[0]}")
        return found

    # --- writing -----------------------------------------------------------------------------

    def ensure(self, wanted: WantedDatabase) -> None:
        """Make owner, database and extensions as wanted; what fits is left alone.

        Raises:
            Conflict: the name is somebody else's.
        """
        problems = self.problems(wanted.name, wanted.mark)
        if problems:
            raise Conflict(
                f"Unable to make the database {wanted.name}: {'; '.join(problems)}. "
                "Rename or drop what is not the application's."
            )
        with self._connection() as connection:
            self._ensure_owner(connection, wanted)
            self._ensure_database(connection, wanted)
        self._ensure_extensions(wanted)

    def _ensure_owner(self, connection: Connection, wanted: WantedDatabase) -> None:
        owner = sql.Identifier(wanted.name)
        if not self._exists(connection, "pg_roles WHERE rolname", wanted.name):
            with connection.transaction():
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(owner))
                connection.execute(
                    sql.SQL("COMMENT ON ROLE {} IS {}").format(owner, sql.Literal(wanted.mark))
                )
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN NOCREATEDB NOCREATEROLE").format(owner))
        self._join(connection, wanted.name)
        connection.execute(
            sql.SQL("GRANT {} TO {} WITH ADMIN OPTION").format(owner, sql.Identifier(wanted.issuer))
        )

    @staticmethod
    def _join(connection: Connection, owner: str) -> None:
        """Only a member may make or drop what the role owns."""
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(owner)))

    @staticmethod
    def _exists(connection: Connection, where: LiteralString, name: str) -> bool:
        query = sql.SQL("SELECT 1 FROM pg_catalog.{} = {}").format(
            sql.SQL(where),
            sql.Literal(name),
        )
        return connection.execute(query).fetchone() is not None

    def _ensure_database(self, connection: Connection, wanted: WantedDatabase) -> None:
        name = sql.Identifier(wanted.name)
        if not self._exists(connection, "pg_database WHERE datname", wanted.name):
            # Closed at first: by default every user of the server may connect.
            connection.execute(
                sql.SQL(
                    "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8' "
                    "ALLOW_CONNECTIONS false"
                ).format(name, name)
            )
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(wanted.mark))
        )
        connection.execute(
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(
                name, sql.Literal(wanted.connections)
            )
        )
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))

    def _ensure_extensions(self, wanted: WantedDatabase) -> None:
        present = self._extensions(wanted.name, wanted.mark)
        made = [name for name in wanted.extensions if name not in present]
        gone = [name for name in present if name not in wanted.extensions]
        if not made and not gone:
            return
        with self._connection(wanted.name) as connection, connection.transaction():
            # As the owner: trusted extensions are the owner's to make, and then it owns them.
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(wanted.name)))
            for each in made:
                extension = sql.Identifier(each)
                connection.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(extension))
                connection.execute(
                    sql.SQL("COMMENT ON EXTENSION {} IS {}").format(
                        extension, sql.Literal(wanted.mark)
                    )
                )
            for each in gone:
                self._drop_extension(connection, wanted.name, each)

    @staticmethod
    def _drop_extension(connection: Connection, database: str, name: str) -> None:
        try:
            connection.execute(sql.SQL("DROP EXTENSION {}").format(sql.Identifier(name)))
        except psycopg.errors.DependentObjectsStillExist:
            raise Conflict(
                f"Unable to take the extension {name} from {database}: tables of the application "
                "use it. Change the tables first, or ask for the extension again."
            ) from None

    # --- dropping ----------------------------------------------------------------------------

    def drop(self, owner: FoundOwner, users_mark: str) -> None:
        """Drop the databases of a marked role, its short-lived users, and then the role."""
        with self._connection() as connection:
            self._join(connection, owner.name)
            names = connection.execute(_DATABASES, ([owner.name],)).fetchall()
            for name, *_ in names:
                identifier = sql.Identifier(name)
                close = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(identifier)
                connection.execute(close)
                connection.execute(_SESSIONS, (name,))
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(identifier))
            for user in self._users(connection, users_mark):
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(user)))
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(owner.name)))

    @staticmethod
    def _users(connection: Connection, mark: str) -> list[str]:
        rows: list[Any] = connection.execute(_OWNERS, ([mark],)).fetchall()
        return [str(row[0]) for row in rows]
