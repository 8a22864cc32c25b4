"""PostgreSQL as seen by whoever rotates its users: the administrator's login, and trial logins.

Promises that an error never repeats a password, and that a denial is told from a server that does
not answer. Refuses to send a password in clear when it sets one: the server gets a SCRAM verifier.

The administrator's login lies in OpenBao: `host`, `port`, `database`, `username`, `password`, and
where wanted `sslmode`, `sslrootcert`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from blocks.openbao import OpenBaoSession
from blocks.rotation.secret_parameters import parameters
from domain.errors import Conflict, PermanentError, PolicyViolation, Unauthorized, Unreachable
from domain.rotation.contract import SecretRef, Seen, Values

CONNECT_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_SECONDS = 30
APPLICATION = "infraflows-rotation"
_DENIALS = ("password authentication failed", "is not permitted to log in")
_PLACE = ("host", "port", "database", "sslmode", "sslrootcert")

Connection = psycopg.Connection[Any]


def place(session: OpenBaoSession, secret: SecretRef) -> dict[str, str]:
    """Return the administrator's login, and with it where the server is."""
    (path,) = parameters(secret, "admin_path")
    if path == secret.path:
        raise _own(secret)
    login = session.read(path)
    missing = [n for n in ("host", "database", "username", "password") if not login.get(n)]
    if missing:
        raise Conflict(
            f"Unable to log in to PostgreSQL for {secret.path}: {path} has no "
            f"{', '.join(missing)}. Write the administrator's login there."
        )
    return login


def refuse_own(secret: SecretRef, login: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse when the administrator's own user is among those that would be rotated."""
    if login["username"] in names:
        raise _own(secret)


def _own(secret: SecretRef) -> PolicyViolation:
    return PolicyViolation(
        f"Unable to rotate {secret.path}: this run logs in to PostgreSQL with it. "
        "Name another administrator in admin_path."
    )


@contextmanager
def connected(login: Mapping[str, str], username: str, password: str) -> Iterator[Connection]:
    """Log in; statements are committed one by one unless a transaction is opened.

    Raises:
        Unauthorized: the login was denied. Unreachable. PermanentError: a statement failed.
    """
    options: dict[str, Any] = {
        "dbname" if name == "database" else name: login[name] for name in _PLACE if login.get(name)
    }
    where = f"PostgreSQL at {login['host']} as {username}"
    try:
        connection = psycopg.connect(
            make_conninfo(**options),
            user=username,
            password=password,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name=APPLICATION,
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s",
            autocommit=True,
        )
    except psycopg.Error as error:
        text = str(error)
        known = (*_DENIALS, f'role "{username}" does not exist')
        refusal = next((each for each in known if each in text), None)
        if refusal:
            raise Unauthorized(
                f"Unable to log in to {where}: {refusal}. Check the user and its password."
            ) from None
        raise Unreachable(
            f"Unable to log in to {where}: no answer, or none that is known "
            f"({type(error).__name__}). Check the address, TLS and the server's log."
        ) from None
    with connection:
        try:
            yield connection
        except psycopg.OperationalError as error:
            raise Unreachable(
                f"Unable to go on with {where}: the connection broke ({error.sqlstate}). Try again."
            ) from None
        except psycopg.Error as error:
            # The statement's text may hold a verifier: only its code is told.
            raise PermanentError(
                f"Unable to change users in {where}: SQLSTATE {error.sqlstate} "
                f"({type(error).__name__}). Give the administrator the right it lacks."
            ) from None


@contextmanager
def administrator(login: Mapping[str, str]) -> Iterator[Connection]:
    """Log in as the administrator."""
    with connected(login, login["username"], login["password"]) as connection:
        yield connection


def denial(login: Mapping[str, str], values: Values) -> str | None:
    """Try a login from outside; returns the refusal, or None when it was accepted."""
    try:
        with connected(login, values["username"], values["password"]):
            return None
    except Unauthorized as error:
        return str(error).partition(": ")[2].partition(".")[0]


def set_password(connection: Connection, username: str, password: str) -> None:
    """Let the user log in with the password, which is sent as a SCRAM verifier only."""
    verifier = connection.pgconn.encrypt_password(
        password.encode(), username.encode(), b"scram-sha-256"
    ).decode()
    connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(
            sql.Identifier(username), sql.Literal(verifier)
        )
    )


def end_login(connection: Connection, username: str) -> None:
    """Take login and password from the user, if it exists, and end its sessions."""
    if not role_exists(connection, username):
        return
    connection.execute(
        sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(sql.Identifier(username))
    )
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (username,)
    )


def role_exists(connection: Connection, name: str) -> bool:
    """True when there is such a role."""
    found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
    return found.fetchone() is not None


def sessions(connection: Connection, names: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Return (consumer, user, start) of each open session of these users."""
    rows = connection.execute(
        "SELECT coalesce(nullif(application_name, ''), 'unnamed'), "
        "coalesce(host(client_addr), 'local'), usename, backend_start "
        "FROM pg_stat_activity WHERE usename = ANY(%s) AND application_name <> %s",
        (list(names), APPLICATION),
    )
    return [(f"{row[0]} at {row[1]}", str(row[2]), row[3]) for row in rows]


def seen_by_user(found: Sequence[tuple[str, str, Any]], new: str) -> list[Seen]:
    """Return for each consumer whether all its open sessions are the new user's."""
    users: dict[str, set[str]] = {}
    for consumer, user, _ in found:
        users.setdefault(consumer, set()).add(user)
    return [
        Seen(consumer, held == {new}, f"sessions as {', '.join(sorted(held))}")
        for consumer, held in sorted(users.items())
    ]
