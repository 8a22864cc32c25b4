"""Passwords of a Redis ACL user: a user has several, the old one is taken away in the end.

Promises that Redis gets hashes and never a password when one is set, that users are kept over a
restart (`ACL SAVE`, or `CONFIG REWRITE`), and that every node of a list is changed: Redis does not
replicate its users. Refuses a user that needs no password, and the administrator that it works
with. Redis does not tell by which password a connection was opened, so connections are judged by
their age: one that is older than the new value was opened with the old one.

Parameters: `user`; `admin_path`, where `host` (or several with commas), `port`, `username`,
`password` and where wanted `tls` (`true`) and `ca_file` lie; `quiet_seconds`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from blocks.rotation.classes import RotationClass
from blocks.rotation.last_use import CONNECT_SECONDS, quiet_seconds
from blocks.rotation.secret_parameters import parameters
from domain.errors import (
    Conflict,
    NotFound,
    PermanentError,
    PolicyViolation,
    Unauthorized,
    Unreachable,
)
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "redis-acl-user"
PASSWORD_BYTES = 32
TIMEOUT_SECONDS = 10.0
CONNECTION_NAME = "infraflows-rotation"


@contextmanager
def _explained(act: str, where: str) -> Iterator[None]:
    failed = f"Unable to {act} at Redis {where}"
    try:
        yield
    except (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError):
        raise Unauthorized(f"{failed}: the login was denied. Check user and password.") from None
    except redis.exceptions.NoPermissionError:
        raise Unauthorized(f"{failed}: the administrator lacks the right. Allow it.") from None
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        kind = type(error).__name__
        raise Unreachable(f"{failed}: no answer ({kind}). Check address and TLS.") from None
    except redis.exceptions.RedisError as error:
        # The text may repeat what was sent.
        kind = type(error).__name__
        raise PermanentError(f"{failed}: it refused ({kind}). See the server's log.") from None


def _execute(client: Any, *parts: str) -> None:
    client.execute_command(*parts)


class AclUser:
    """Users of Redis servers."""

    kind = KIND
    has_overlap = True

    def __init__(self, session: OpenBaoSession) -> None:
        """Read the administrators' logins by `session`."""
        self._session = session
        self._versions = VersionedSecrets(session)

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a password; Redis does not know it yet."""
        (user,) = parameters(secret, "user")
        for host, client in self._nodes(secret):
            self._user(client, host, user)
        fresh = {"username": user, "password": secrets.token_urlsafe(PASSWORD_BYTES)}
        return {**(current or {}), **fresh}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Add the password's hash to those of the user."""
        self._change(secret, new["username"], f"#{_hash(new)}")

    def test(self, secret: SecretRef, new: Values) -> None:
        """Log in to each node with the new password."""
        for host in self._hosts(secret):
            with self._client(secret, host, new) as client, _explained("log in", host):
                _execute(client, "AUTH", new["username"], new["password"])

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path when they connect."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look which connections are younger than the value that consumers read now."""
        elapsed = self._elapsed_seconds(secret)
        if elapsed is None:
            return [Seen(new["username"], None, "it is not known when it was handed out")]
        if elapsed < quiet_seconds(secret, CONNECT_SECONDS):
            return [Seen(new["username"], False, f"{elapsed:.0f} s since it was handed out")]
        old: dict[str, bool] = {}
        for host, client in self._nodes(secret):
            for entry in self._connections(client, host, new["username"]):
                name = f"{entry['name'] or 'unnamed'} at {entry['addr'].rpartition(':')[0]}"
                # Ages are whole seconds, rounded down: one of the same second may be older.
                old[name] = old.get(name, False) or int(entry["age"]) + 1 > elapsed
        detail = {True: "a connection from before is open", False: "connected since"}
        return [Seen(name, not is_old, detail[is_old]) for name, is_old in sorted(old.items())]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Take the password's hash from the user, and close what was opened before the new one."""
        self._change(secret, old["username"], f"!{_hash(old)}")
        elapsed = self._elapsed_seconds(secret)
        is_handed_out = self._versions.read(secret.path).values != old
        for host, client in self._nodes(secret):
            for entry in self._connections(client, host, old["username"]):
                # Before consumers have moved (after a leak) every connection is an old one.
                if not is_handed_out or elapsed is None or int(entry["age"]) > elapsed:
                    with _explained("close a connection", host):
                        client.client_kill_filter(_id=entry["id"])

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in to each node with the old password."""
        method = f"AUTH {old['username']}"
        for host in self._hosts(secret):
            try:
                with self._client(secret, host, old) as client, _explained("log in", host):
                    _execute(client, "AUTH", old["username"], old["password"])
            except Unauthorized:
                continue
            return Proof(False, method, f"{host} accepted it")
        return Proof(True, method, "WRONGPASS")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Take the new password's hash from the user."""
        self._change(secret, new["username"], f"!{_hash(new)}")

    def _login(self, secret: SecretRef) -> Mapping[str, str]:
        path, user = parameters(secret, "admin_path", "user")
        login = {} if path == secret.path else self._session.read(path)
        if path == secret.path or login.get("username") == user:
            raise PolicyViolation(
                f"Unable to rotate {secret.path}: this run logs in to Redis with it. "
                "Name another administrator in admin_path."
            )
        missing = [name for name in ("host", "username", "password") if not login.get(name)]
        if missing:
            raise Conflict(
                f"Unable to log in to Redis for {secret.path}: {path} has no "
                f"{', '.join(missing)}. Write the administrator's login there."
            )
        return login

    def _hosts(self, secret: SecretRef) -> list[str]:
        return [host.strip() for host in self._login(secret)["host"].split(",") if host.strip()]

    @contextmanager
    def _client(self, secret: SecretRef, host: str, values: Values) -> Iterator[redis.Redis]:
        login = self._login(secret)
        options: dict[str, Any] = {}
        if login.get("tls") == "true":
            options = {"ssl": True, "ssl_ca_certs": login.get("ca_file")}
        client = redis.Redis(
            host=host,
            port=int(login.get("port", "6379")),
            username=values["username"],
            password=values["password"],
            client_name=CONNECTION_NAME,
            # A denied login counts as a broken connection there, and would be tried ten times.
            retry=Retry(NoBackoff(), 0),
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            decode_responses=True,
            **options,
        )
        try:
            yield client
        finally:
            client.close()

    def _nodes(self, secret: SecretRef) -> Iterator[tuple[str, redis.Redis]]:
        for host in self._hosts(secret):
            with self._client(secret, host, self._login(secret)) as client:
                yield host, client

    @staticmethod
    def _user(client: redis.Redis, host: str, name: str) -> Mapping[str, Any]:
        with _explained(f"look up the user {name}", host):
            found: Any = client.acl_getuser(name)
        if not found:
            raise NotFound(
                f"Unable to rotate the Redis user {name}: {host} has none. "
                "Make it with its rights first: ACL SETUSER."
            )
        if "nopass" in found["flags"]:
            raise Conflict(
                f"Unable to rotate the Redis user {name}: {host} asks it for no password. "
                f"Take that away first: ACL SETUSER {name} resetpass."
            )
        return dict(found)

    def _change(self, secret: SecretRef, user: str, rule: str) -> None:
        """Add (`#hash`) or remove (`!hash`) a password on every node, and have the node keep it."""
        for host, client in self._nodes(secret):
            held = self._user(client, host, user)["passwords"]
            is_there = rule[1:] in held
            with _explained(f"change the passwords of {user}", host):
                if is_there != rule.startswith("#"):
                    _execute(client, "ACL SETUSER", user, rule)
            self._persist(client, host)

    @staticmethod
    def _persist(client: redis.Redis, host: str) -> None:
        with _explained("keep the users", host):
            configured: Any = client.config_get("aclfile")
            _execute(client, "ACL SAVE" if configured.get("aclfile") else "CONFIG REWRITE")

    @staticmethod
    def _connections(client: redis.Redis, host: str, user: str) -> list[dict[str, str]]:
        with _explained("list the connections", host):
            found: Any = client.client_list()
        return [
            entry for entry in found if entry["user"] == user and entry["name"] != CONNECTION_NAME
        ]

    def _elapsed_seconds(self, secret: SecretRef) -> float | None:
        since = self._versions.written_at(secret.path)
        return None if since is None else (datetime.now(UTC) - since).total_seconds()


def _hash(values: Values) -> str:
    return hashlib.sha256(values["password"].encode()).hexdigest()


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: AclUser(site.session),
    has_overlap=True,
    observed="CLIENT LIST: every connection of a consumer is younger than the new value",
    proved_dead="AUTH with the old password: WRONGPASS",
    parameters=("user", "admin_path"),
    optional=("quiet_seconds",),
)
"""How the registry knows it."""
