"""Two PostgreSQL users that take turns: one in use, the other without login until its turn.

Promises that both have the rights of one common role and that what they make belongs to it
(`SET role` at login), so that nothing depends on who is in use; that sessions tell by their user
which consumers have moved; and that the old user ends without login, password and sessions.
Refuses to rotate the administrator that it works with, and a user with open sessions that the
secret's path does not know of.

Parameters: `users`, two names with a comma; `role`, which has the rights; `admin_path`;
`quiet_seconds`, the longest time between reading the path and being connected (default 5).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from psycopg import sql

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from blocks.rotation import postgresql_login as postgresql
from blocks.rotation.classes import RotationClass
from blocks.rotation.last_use import CONNECT_SECONDS, quiet_seconds
from blocks.rotation.secret_parameters import parameters
from domain.errors import Conflict, InvalidSpec, PermanentError
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "postgresql-alternating-users"
PASSWORD_BYTES = 24


class AlternatingUsers:
    """Pairs of users of PostgreSQL servers."""

    kind = KIND
    has_overlap = True

    def __init__(self, session: OpenBaoSession) -> None:
        """Read the administrators' logins by `session`."""
        self._session = session
        self._versions = VersionedSecrets(session)

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Choose the user whose turn it is, and a password; the server does not know it yet."""
        login, users = postgresql.place(self._session, secret), _users(secret)
        postgresql.refuse_own(secret, login, users)
        used = (current or {}).get("username")
        if used is not None and used not in users:
            raise Conflict(
                f"Unable to rotate {secret.path}: its present user {used} is not one of "
                f"{', '.join(users)}. Write the path with one of them, or name it in users."
            )
        name = users[1] if used == users[0] else users[0]
        with postgresql.administrator(login) as connection:
            if postgresql.sessions(connection, [name]):
                raise Conflict(
                    f"Unable to rotate {secret.path}: {name} should be free and has open sessions. "
                    "Find out who uses it (pg_stat_activity), and end that."
                )
        fresh = {"username": name, "password": secrets.token_urlsafe(PASSWORD_BYTES)}
        return {**(current or {}), **fresh}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Give the free user login, password and role, in one transaction."""
        login, (role,) = postgresql.place(self._session, secret), parameters(secret, "role")
        name = new["username"]
        with postgresql.administrator(login) as connection, connection.transaction():
            if not postgresql.role_exists(connection, name):
                connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
            user, common = sql.Identifier(name), sql.Identifier(role)
            connection.execute(sql.SQL("GRANT {} TO {}").format(common, user))
            connection.execute(sql.SQL("ALTER ROLE {} SET role = {}").format(user, common))
            postgresql.set_password(connection, name, new["password"])

    def test(self, secret: SecretRef, new: Values) -> None:
        """Log in as the new user and look whether it acts as the common role."""
        login, (role,) = postgresql.place(self._session, secret), parameters(secret, "role")
        with postgresql.connected(login, new["username"], new["password"]) as connection:
            row = connection.execute("SELECT current_user").fetchone()
        if row is None or row[0] != role:
            raise PermanentError(
                f"Unable to use the new user of {secret.path}: it does not act as {role}. "
                "Look for a setting of the role in this database (pg_db_role_setting)."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path when they connect."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look by which user each consumer's sessions are held."""
        since = self._versions.written_at(secret.path)
        elapsed = (datetime.now(UTC) - since).total_seconds() if since else 0.0
        if elapsed < quiet_seconds(secret, CONNECT_SECONDS):
            return [Seen(secret.path, False, f"handed out {elapsed:.0f} s ago")]
        login, users = postgresql.place(self._session, secret), _users(secret)
        with postgresql.administrator(login) as connection:
            found = postgresql.sessions(connection, users)
        return postgresql.seen_by_user(found, new["username"])

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Take login and password from the old user and end its sessions."""
        login = postgresql.place(self._session, secret)
        postgresql.refuse_own(secret, login, [old["username"]])
        with postgresql.administrator(login) as connection:
            postgresql.end_login(connection, old["username"])

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in with the old user and password."""
        login = postgresql.place(self._session, secret)
        refusal = postgresql.denial(login, old)
        method = f"login as {old['username']}"
        return Proof(refusal is not None, method, refusal or "the login succeeded")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Take login and password from the new user again."""
        self.revoke(secret, new)


def _users(secret: SecretRef) -> list[str]:
    (text,) = parameters(secret, "users")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) != 2:
        raise InvalidSpec(
            f"the secret {secret.path}",
            [f"users: {text!r} does not name two users. Write them as app_a,app_b"],
        )
    return names


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: AlternatingUsers(site.session),
    has_overlap=True,
    observed="pg_stat_activity: every session of a consumer is the new user's",
    proved_dead="login as the old user: password authentication failed",
    parameters=("users", "role", "admin_path"),
    optional=("quiet_seconds",),
)
"""How the registry knows it."""
