"""The secrets of the leak drill: real ones in five classes, as many as are asked for.

Why it exists: how long a leak takes can be measured only on secrets that something accepts.
Promises the same number of each class, all below one prefix of their own, and a trial of each value
by the system itself, with the rights of its holder and nothing of the product. Refuses a number
that does not share out evenly.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from lab.bare_services import BareRedis
from lab.layout import ENVIRONMENT, GATEWAY, POSTGRESQL_PORT, Layout
from lab.rotation_demo import (
    ADMIN,
    ADMIN_PATH,
    APPROLE,
    DATABASE,
    POLICY_FILE,
    TOKEN,
    commit,
    database_administrator,
)
from lab.services.https_probe import request
from lab.services.namespace import inside
from lab.services.openbao_setup import APPROLE as WORKER_ROLE
from lab.services.openbao_setup import APPS_APPROLE_MOUNT, KV_MOUNT, Client, root_client
from lab.services.postgresql import APPS_DATABASE, run_statements

STATIC, REDIS = "postgresql-static-role", "redis-acl-user"
PARTS: Mapping[str, str] = {
    "approle": APPROLE,
    "token": TOKEN,
    "database": DATABASE,
    "login": STATIC,
    "cache": REDIS,
}
"""Last name of a path -> its class."""
REDIS_PATH = f"infraflows/{ENVIRONMENT}/redis-apps"
ENGINE = "leak-drill"
"""OpenBao's database engine of the drill: apart from the one that applications are given."""
WORKER_POLICY = "infraflows-leak-drill"
QUIET_SECONDS = 1
PARALLEL = 4
THREADS = 8
Values = dict[str, str]
Item = TypeVar("Item")
Made = TypeVar("Made")


def in_parallel(work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """Return what `work` makes of each item, several at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def policy() -> dict[str, Any]:
    """Return the policy that the drill's secrets are rotated by, whatever their number."""
    quiet = {"quiet_seconds": QUIET_SECONDS}
    parameters: Mapping[str, Mapping[str, Any]] = {
        APPROLE: {"role": "{2}", "mount": APPS_APPROLE_MOUNT, **quiet},
        TOKEN: {"token_roles": "apps-{2}-a,apps-{2}-b", **quiet},
        DATABASE: {"users": "{2}_a,{2}_b", "role": "{2}", "admin_path": ADMIN_PATH, **quiet},
        STATIC: {"static_role": "{2}_static", "mount": ENGINE, "admin_path": ADMIN_PATH},
        REDIS: {"user": "{2}", "admin_path": REDIS_PATH, **quiet},
    }
    limits = {"max_age_days": 30, "observe_interval_seconds": 0.5, "parallel": PARALLEL}
    return {
        "environments": ["production"],
        "classes": dict.fromkeys(PARTS.values(), limits),
        "secrets": [
            {
                "path": f"apps/*/*/{part}",
                "class": kind,
                "environment": "production",
                "parameters": dict(parameters[kind]),
            }
            for part, kind in PARTS.items()
        ],
    }


@dataclass(frozen=True)
class Drill:
    """So many secrets below one prefix, in a lab and a Redis beside it."""

    layout: Layout
    cache: BareRedis
    count: int

    def __post_init__(self) -> None:
        if self.count <= 0 or self.count % len(PARTS):
            raise ValueError(f"{self.count} secrets do not share out over {len(PARTS)} classes.")

    @property
    def prefix(self) -> str:
        """What leaks."""
        return f"apps/drill-{self.count}"

    @property
    def apps(self) -> list[str]:
        """Applications, each with one secret of each class."""
        return [f"d{self.count}_{n:04d}" for n in range(self.count // len(PARTS))]

    @property
    def paths(self) -> list[str]:
        """Every secret's path."""
        return [f"{self.prefix}/{app}/{part}" for app in self.apps for part in PARTS]

    def seed(self) -> None:
        """Make the secrets, and what the worker needs to rotate them."""
        bao = root_client(self.layout)
        database_administrator(self.layout, bao)
        _prepare_worker(bao, self.cache)
        commit(self.layout, {POLICY_FILE: yaml.safe_dump(policy(), sort_keys=False)}, "leak drill")
        self._make_database_users(bao)
        in_parallel(lambda app: self._make_of_openbao(bao, app), self.apps)
        self._make_cache_users(bao)

    def _write(self, bao: Client, app: str, part: str, values: Values) -> None:
        bao.call("POST", f"{KV_MOUNT}/data/{self.prefix}/{app}/{part}", {"data": values})

    def _make_of_openbao(self, bao: Client, app: str) -> None:
        own = "\n".join(
            f'path "{path}" {{ capabilities = ["{right}"] }}'
            for path, right in (
                (f"{KV_MOUNT}/data/{self.prefix}/{app}/*", "read"),
                ("auth/token/renew-self", "update"),
                ("auth/token/lookup-self", "read"),
                ("auth/token/revoke-self", "update"),
            )
        )
        name = f"apps-{app}"
        bao.call("PUT", f"sys/policies/acl/{name}", {"policy": own})
        role = f"auth/{APPS_APPROLE_MOUNT}/role/{app}"
        bao.call("POST", role, {"token_policies": [name], "token_ttl": "10m"})
        role_id = bao.call("GET", f"{role}/role-id")["data"]["role_id"]
        secret_id = secrets.token_hex(32)
        bao.call("POST", f"{role}/custom-secret-id", {"secret_id": secret_id})
        self._write(bao, app, "approle", {"role_id": role_id, "secret_id": secret_id})
        for turn in "ab":
            body = {
                "allowed_policies": [name],
                "token_period": "768h",
                "orphan": True,
                "renewable": True,
                "token_no_default_policy": True,
            }
            bao.call("POST", f"auth/token/roles/{name}-{turn}", body)
        auth = bao.call("POST", f"auth/token/create/{name}-a", {})["auth"]
        token = {"token": auth["client_token"], "accessor": auth["accessor"]}
        self._write(bao, app, "token", token)

    def _make_database_users(self, bao: Client) -> None:
        passwords = {app: secrets.token_urlsafe(24) for app in self.apps}
        run_statements(
            self.layout,
            APPS_DATABASE,
            "\n".join(
                f"CREATE ROLE {app} NOLOGIN; CREATE ROLE {app}_static LOGIN; "
                f"CREATE ROLE {app}_a LOGIN PASSWORD '{password}'; GRANT {app} TO {app}_a; "
                f"ALTER ROLE {app}_a SET role = '{app}';"
                for app, password in passwords.items()
            ),
        )

        def note(app: str) -> None:
            self._write(bao, app, "database", {"username": f"{app}_a", "password": passwords[app]})
            user, place = f"{app}_static", f"{ENGINE}/static-roles/{app}_static"
            body = {"db_name": "apps", "username": user, "rotation_period": "720h"}
            bao.call("POST", place, body)
            # The engine keeps the password; the path tells consumers where to read it.
            self._write(bao, app, "login", {"read_from": f"{ENGINE}/static-creds/{user}"})

        in_parallel(note, self.apps)

    def _make_cache_users(self, bao: Client) -> None:
        passwords = {app: secrets.token_urlsafe(24) for app in self.apps}
        with inside(self.layout.namespace_path), self.cache.client() as client:
            pipeline = client.pipeline(transaction=False)
            for app, password in passwords.items():
                rule = ("ACL SETUSER", app, "on", f">{password}", "~*", "+@all", "-@admin")
                pipeline.execute_command(*rule)
            pipeline.execute()
            client.execute_command("ACL SAVE")
        in_parallel(
            lambda app: self._write(
                bao, app, "cache", {"username": app, "password": passwords[app]}
            ),
            self.apps,
        )

    def values(self) -> dict[str, Values]:
        """Return what a consumer of each path reads now."""
        bao = root_client(self.layout)

        def read(path: str) -> Values:
            found: Values = bao.call("GET", f"{KV_MOUNT}/data/{path}")["data"]["data"]
            if "read_from" not in found:
                return found
            data = bao.call("GET", found["read_from"])["data"]
            return {"username": data["username"], "password": data["password"]}

        return dict(zip(self.paths, in_parallel(read, self.paths), strict=True))

    def accepted(self, values: Mapping[str, Values]) -> dict[str, bool]:
        """Use every value as its holder would; returns path -> whether the system accepts it."""

        def attempt(item: tuple[str, Values]) -> tuple[str, bool]:
            return item[0], self._is_accepted(*item)

        return dict(in_parallel(attempt, values.items()))

    def _is_accepted(self, path: str, values: Values) -> bool:
        part = path.rpartition("/")[2]
        if part == "approle":
            url = f"{self.layout.openbao_url}/v1/auth/{APPS_APPROLE_MOUNT}/login"
            return _answers(self.layout, "POST", url, 400, json=values)
        if part == "token":
            url = f"{self.layout.openbao_url}/v1/auth/token/lookup-self"
            headers = {"X-Vault-Token": values["token"]}
            return _answers(self.layout, "GET", url, 403, headers=headers)
        with inside(self.layout.namespace_path):
            return self._redis(values) if part == "cache" else _postgresql(values)

    def _redis(self, values: Values) -> bool:
        client = redis.Redis(
            "127.0.0.1",
            self.cache.port,
            username=values["username"],
            password=values["password"],
            retry=Retry(NoBackoff(), 0),
            socket_timeout=20,
        )
        try:
            client.ping()
        except redis.exceptions.AuthenticationError:
            return False
        finally:
            client.close()
        return True

    def forget(self) -> None:
        """Remove paths and records, so that the next number of secrets is measured alone."""
        bao = root_client(self.layout)
        records = f"{KV_MOUNT}/metadata/rotation/{ENVIRONMENT}"
        found = bao.call("LIST", records, absent_is_none=True)
        left = [f"{records}/{name}" for name in (found["data"]["keys"] if found else ())]
        left += [f"{KV_MOUNT}/metadata/{path}" for path in self.paths]
        left += [f"sys/policies/acl/apps-{app}" for app in self.apps]
        in_parallel(lambda path: bao.call("DELETE", path), left)


def _answers(layout: Layout, method: str, url: str, refusal: int, **sent: Any) -> bool:
    """True when a request is served, False when it is refused with the status that says so."""
    reply = request(layout, method, url, timeout_seconds=20.0, **sent)
    if reply.status_code not in (200, refusal):
        raise RuntimeError(f"Unable to tell whether {url} accepts: HTTP {reply.status_code}.")
    return reply.status_code == 200


def _postgresql(values: Values) -> bool:
    try:
        psycopg.connect(
            host=GATEWAY,
            port=POSTGRESQL_PORT,
            dbname=APPS_DATABASE,
            user=values["username"],
            password=values["password"],
            connect_timeout=20,
        ).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" not in str(error):
            raise
        return False
    return True


def _prepare_worker(bao: Client, cache: BareRedis) -> None:
    """Let the worker reach what the lab alone does not have: Redis and a database engine."""
    bao.call("POST", f"{KV_MOUNT}/data/{REDIS_PATH}", {"data": dict(cache.login)})
    rights = (
        f'path "{ENGINE}/static-creds/+" {{ capabilities = ["read"] }}\n'
        f'path "{ENGINE}/rotate-role/+" {{ capabilities = ["update"] }}\n'
    )
    bao.call("PUT", f"sys/policies/acl/{WORKER_POLICY}", {"policy": rights})
    given = {"token_policies": [WORKER_ROLE, WORKER_POLICY]}
    bao.call("POST", f"auth/approle/role/{WORKER_ROLE}", given)
    if f"{ENGINE}/" in bao.call("GET", "sys/mounts")["data"]:
        return
    bao.call("POST", f"sys/mounts/{ENGINE}", {"type": "database"})
    login = bao.call("GET", f"{KV_MOUNT}/data/{ADMIN_PATH}")["data"]["data"]
    bao.call(
        "POST",
        f"{ENGINE}/config/apps",
        {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": "*",
            "connection_url": "postgresql://{{username}}:{{password}}@"
            f"{GATEWAY}:{POSTGRESQL_PORT}/{APPS_DATABASE}?sslmode=disable",
            "username": ADMIN,
            "password": login["password"],
        },
    )
