"""The two databases that can hold deliveries: SQLite in a file, or PostgreSQL.

Exists so that the store is written once. Promises that a commit which returned is on disk
(SQLite: write-ahead log with synchronous=FULL; PostgreSQL: synchronous_commit=on) and that only
one process opens an SQLite file.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg

from domain.errors import Conflict, PermanentError, Unreachable

CONNECT_TIMEOUT_SECONDS = 4
STATEMENT_TIMEOUT_SECONDS = 4

SCHEMA = """
CREATE TABLE IF NOT EXISTS deliveries (
    number {serial},
    source TEXT NOT NULL,
    lane TEXT NOT NULL,
    delivery_key TEXT NOT NULL,
    event TEXT NOT NULL,
    content TEXT NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at DOUBLE PRECISION NOT NULL DEFAULT 0,
    finished_at DOUBLE PRECISION,
    UNIQUE (lane, delivery_key)
);
CREATE INDEX IF NOT EXISTS deliveries_pending ON deliveries (due_at, lane) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS deliveries_lane ON deliveries (lane) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS deliveries_finished ON deliveries (finished_at)
    WHERE finished_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS lanes (
    lane TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    lease_until DOUBLE PRECISION NOT NULL
);
CREATE TABLE IF NOT EXISTS dispatches (
    scope TEXT PRIMARY KEY,
    marker TEXT NOT NULL,
    generation BIGINT NOT NULL,
    name TEXT NOT NULL,
    run_id TEXT NOT NULL,
    tries INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS dispatches_name ON dispatches (name)
"""

Row = tuple[Any, ...]


class Engine(Protocol):
    """One connection, used by the store's one thread only."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement with `?` for each value; returns what it returns."""
        ...

    def commit(self) -> None:
        """Return when everything since the last commit is on disk."""
        ...

    def rollback(self) -> None:
        """Forget everything since the last commit; opens the connection anew where it is lost."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...

    @property
    def is_shared(self) -> bool:
        """True when another gateway may use the same database at the same time."""
        ...


class SqliteEngine:
    """A file of this process alone."""

    is_shared = False

    def __init__(self, file: Path) -> None:
        """Open the file, made if absent.

        Raises:
            Conflict: another process has it open. PermanentError: it cannot be opened.
        """
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The kernel lets go of the lock when the process dies, however it dies.
        self._lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Conflict(
                f"Unable to open {file}: another gateway uses it. Stop it, or use PostgreSQL."
            ) from None
        try:
            # Autocommit: transactions are begun by us, so that reads begin none.
            self._connection = sqlite3.connect(
                file, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=2000"):
                self._connection.execute(f"PRAGMA {pragma}")
            serial = "INTEGER PRIMARY KEY AUTOINCREMENT"
            self._connection.executescript(SCHEMA.format(serial=serial))
        except sqlite3.Error as error:
            os.close(self._lock)
            raise PermanentError(
                f"Unable to open {file}: {error}. Restore it, or move it away to begin anew."
            ) from error

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement."""
        try:
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(error) from error

    def commit(self) -> None:
        """Write what was done to the disk."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _unusable(error) from error

    def rollback(self) -> None:
        """Forget what was not committed."""
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        os.close(self._lock)


class PostgresqlEngine:
    """A database that several gateways may share."""

    is_shared = True

    def __init__(self, login: Mapping[str, str]) -> None:
        """Connect with host, port, database, username, password and, for TLS, ca_file.

        Raises:
            Unreachable: there is no connection.
        """
        self._login = dict(login)
        self._connection = self._connected()
        for statement in SCHEMA.format(serial="BIGSERIAL PRIMARY KEY").split(";"):
            self.execute(statement)
        self.commit()

    def _connected(self) -> psycopg.Connection[Row]:
        login = self._login
        tls: dict[str, Any] = {}
        if login.get("ca_file"):
            tls = {"sslmode": "verify-full", "sslrootcert": login["ca_file"]}
        try:
            return psycopg.connect(
                host=login["host"],
                port=int(login.get("port") or 5432),
                dbname=login["database"],
                user=login["username"],
                password=login["password"],
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                tcp_user_timeout=STATEMENT_TIMEOUT_SECONDS * 1000,
                options=(
                    f"-c synchronous_commit=on -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s"
                ),
                application_name="infraflows-gateway",
                **tls,
            )
        except (psycopg.Error, KeyError, ValueError) as error:
            raise Unreachable(
                "Unable to connect to the deliveries' PostgreSQL: "
                f"{type(error).__name__}. Check its address, its login and its log."
            ) from None

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement."""
        try:
            # The statements are this package's own; only the sign for a value differs.
            cursor = self._connection.execute(
                statement.replace("?", "%s").encode(), values, prepare=bool(values)
            )
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise _unusable(error) from error

    def commit(self) -> None:
        """Have what was done written to the disk."""
        try:
            self._connection.commit()
        except psycopg.Error as error:
            raise _unusable(error) from error

    def rollback(self) -> None:
        """Forget what was not committed, and connect again when the connection is lost."""
        with suppress(psycopg.Error):
            self._connection.rollback()
        if self._connection.closed:
            self._connection = self._connected()

    def close(self) -> None:
        """End the connection."""
        with suppress(psycopg.Error):
            self._connection.close()


def _unusable(error: Exception) -> Unreachable:
    # A text of the database may repeat values: only its kind is told.
    return Unreachable(
        f"Unable to use the store of deliveries: {type(error).__name__}. "
        "Check its disk and its server; nothing was acknowledged that is not stored."
    )
