"""Six secrets of two demo applications, as a site would have them, for `rotate-secrets` to rotate.

    python -m lab.rotation_demo

Why it exists: rotation can be tried only on secrets that something accepts. Promises real ones: a
secret id of an AppRole, a periodic token and a database user for each of two applications, one in
the environment test and one in production, all older than the policy allows; and the policy in the
lab's Git repository. What is there already is left as it is. Refuses to touch the lab's own
credentials.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from lab.layout import ENVIRONMENT, GATEWAY, GIT_BRANCH, GIT_REPOSITORY, POSTGRESQL_PORT, Layout
from lab.services.openbao_setup import APPS_APPROLE_MOUNT, KV_MOUNT, Client, root_client
from lab.services.postgresql import APPS_DATABASE, run_statements

APPS: Mapping[str, str] = {"ci": "test", "shop": "production"}
"""Application -> environment of the policy."""
AGE = timedelta(days=400)
POLICY_FILE = "rotation/policy.yaml"
ADMIN = "apps_admin"
ADMIN_PATH = f"infraflows/{ENVIRONMENT}/postgresql-apps"
QUIET_SECONDS = 1

APPROLE, TOKEN, DATABASE = (
    "openbao-approle-secret-id",
    "openbao-periodic-token",
    "postgresql-alternating-users",
)


def path_of(app: str, part: str) -> str:
    """Return the OpenBao path of an application's secret: `approle`, `token` or `database`."""
    return f"apps/{APPS[app]}/{app}/{part}"


def paths() -> list[str]:
    """Return the paths of all demo secrets."""
    return [path_of(app, part) for app in APPS for part in ("approle", "token", "database")]


def policy() -> dict[str, Any]:
    """Return the policy that they are rotated by."""
    limits = {"max_age_days": 30, "observe_interval_seconds": 0.5, "observe_deadline_seconds": 60}
    rules = []
    for environment in dict.fromkeys(APPS.values()):
        for part, kind, parameters in (
            (
                "approle",
                APPROLE,
                {"role": "{1}", "mount": APPS_APPROLE_MOUNT, "quiet_seconds": QUIET_SECONDS},
            ),
            (
                "token",
                TOKEN,
                {"token_roles": "apps-{1}-a,apps-{1}-b", "quiet_seconds": QUIET_SECONDS},
            ),
            (
                "database",
                DATABASE,
                {
                    "users": "{1}_a,{1}_b",
                    "role": "{1}",
                    "admin_path": ADMIN_PATH,
                    "quiet_seconds": QUIET_SECONDS,
                },
            ),
        ):
            rules.append(
                {
                    "path": f"apps/{environment}/*/{part}",
                    "class": kind,
                    "environment": environment,
                    "parameters": parameters,
                }
            )
    return {
        "environments": ["test", "production"],
        "classes": {
            APPROLE: {**limits, "revoke_first": True},
            TOKEN: limits,
            DATABASE: {**limits, "parallel": 2},
        },
        "secrets": rules,
    }


def seed(layout: Layout) -> list[str]:
    """Make the secrets that are absent and commit the policy; returns what was made."""
    bao = root_client(layout)
    made = []
    database_administrator(layout, bao)
    for app in APPS:
        for part, make in (
            ("approle", _secret_id),
            ("token", _token),
            ("database", _database_user),
        ):
            path = path_of(app, part)
            if bao.call("GET", f"{KV_MOUNT}/data/{path}", absent_is_none=True) is None:
                _write(bao, path, make(layout, bao, app))
                made.append(path)
    if commit(layout, {POLICY_FILE: yaml.safe_dump(policy(), sort_keys=False)}, "rotation policy"):
        made.append(POLICY_FILE)
    return made


def _write(bao: Client, path: str, values: Mapping[str, str]) -> None:
    bao.call("POST", f"{KV_MOUNT}/data/{path}", {"data": dict(values)})
    # It is as new in OpenBao as the lab: that its value is old is for its owner to say.
    issued_at = (datetime.now(UTC) - AGE).isoformat(timespec="seconds")
    custom = {"custom_metadata": {"issued_at": issued_at}}
    bao.call("POST", f"{KV_MOUNT}/metadata/{path}", custom)


def _policy_of(bao: Client, app: str) -> str:
    name = f"apps-{app}"
    text = f'path "{KV_MOUNT}/data/apps/{APPS[app]}/{app}/*" {{ capabilities = ["read"] }}'
    own = 'path "auth/token/renew-self" { capabilities = ["update"] }'
    look = 'path "auth/token/lookup-self" { capabilities = ["read"] }'
    back = 'path "auth/token/revoke-self" { capabilities = ["update"] }'
    text = "\n".join((text, own, look, back))
    bao.call("PUT", f"sys/policies/acl/{name}", {"policy": text})
    return name


def _secret_id(_layout: Layout, bao: Client, app: str) -> dict[str, str]:
    role = f"auth/{APPS_APPROLE_MOUNT}/role/{app}"
    bao.call("POST", role, {"token_policies": [_policy_of(bao, app)], "token_ttl": "10m"})
    role_id = bao.call("GET", f"{role}/role-id")["data"]["role_id"]
    secret_id = secrets.token_hex(32)
    bao.call("POST", f"{role}/custom-secret-id", {"secret_id": secret_id})
    return {"role_id": role_id, "secret_id": secret_id}


def _token(_layout: Layout, bao: Client, app: str) -> dict[str, str]:
    policy_name = _policy_of(bao, app)
    for turn in "ab":
        body = {
            "allowed_policies": [policy_name],
            "token_period": "768h",
            "orphan": True,
            "renewable": True,
            "token_no_default_policy": True,
        }
        bao.call("POST", f"auth/token/roles/apps-{app}-{turn}", body)
    auth = bao.call("POST", f"auth/token/create/apps-{app}-a", {})["auth"]
    return {"token": auth["client_token"], "accessor": auth["accessor"]}


def database_administrator(layout: Layout, bao: Client) -> None:
    """A user that may change users and sees sessions, and is no superuser; its database."""
    path = f"{KV_MOUNT}/data/{ADMIN_PATH}"
    if bao.call("GET", path, absent_is_none=True) is not None:
        return
    password = secrets.token_urlsafe(24)
    run_statements(
        layout,
        "postgres",
        f"""
        SELECT 'CREATE ROLE {ADMIN}' WHERE NOT EXISTS
          (SELECT 1 FROM pg_roles WHERE rolname = '{ADMIN}') \\gexec
        ALTER ROLE {ADMIN} LOGIN CREATEROLE PASSWORD '{password}';
        GRANT pg_monitor, pg_signal_backend TO {ADMIN};
        SELECT 'CREATE DATABASE {APPS_DATABASE}' WHERE NOT EXISTS
          (SELECT 1 FROM pg_database WHERE datname = '{APPS_DATABASE}') \\gexec
        """,  # noqa: S608 - our own names, and a password of URL-safe characters that we made
    )
    login = {
        "host": GATEWAY,
        "port": str(POSTGRESQL_PORT),
        "database": APPS_DATABASE,
        "username": ADMIN,
        "password": password,
    }
    bao.call("POST", path, {"data": login})


def _database_user(layout: Layout, _bao: Client, app: str) -> dict[str, str]:
    user, password = f"{app}_a", secrets.token_urlsafe(24)
    run_statements(
        layout,
        APPS_DATABASE,
        f"""
        SELECT 'CREATE ROLE {app} NOLOGIN' WHERE NOT EXISTS
          (SELECT 1 FROM pg_roles WHERE rolname = '{app}') \\gexec
        SELECT 'CREATE ROLE {user}' WHERE NOT EXISTS
          (SELECT 1 FROM pg_roles WHERE rolname = '{user}') \\gexec
        ALTER ROLE {user} LOGIN PASSWORD '{password}';
        GRANT {app} TO {user};
        ALTER ROLE {user} SET role = '{app}';
        """,  # noqa: S608 - our own names, and a password of URL-safe characters that we made
    )
    return {"username": user, "password": password}


def commit(layout: Layout, files: Mapping[str, str], subject: str) -> str:
    """Commit files to the main branch of the lab's repository; empty when nothing differs."""
    repository = layout.git_directory / GIT_REPOSITORY
    branch = f"refs/heads/{GIT_BRANCH}"

    with tempfile.TemporaryDirectory() as directory:
        index = {"GIT_INDEX_FILE": str(Path(directory) / "index")}
        base = _git(repository, "rev-parse", branch)
        _git(repository, "read-tree", base, environment=index)
        for path, text in files.items():
            blob = _git(repository, "hash-object", "-w", "--stdin", text=text)
            entry = f"100644,{blob},{path}"
            _git(repository, "update-index", "--add", "--cacheinfo", entry, environment=index)
        tree = _git(repository, "write-tree", environment=index)
    if tree == _git(repository, "rev-parse", f"{base}^{{tree}}"):
        return ""
    made = _git(repository, "commit-tree", tree, "-p", base, text=f"{subject}\n")
    _git(repository, "update-ref", branch, made, base)
    return made


def _git(
    repository: Path,
    *arguments: str,
    text: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    author = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (
            ("NAME", "Infraflows lab"),
            ("EMAIL", "lab@lab.infraflows.internal"),
        )
    }
    done = subprocess.run(
        ["git", *arguments],
        cwd=repository,
        input=text,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **author, **(environment or {})},
    )
    return done.stdout.strip()


if __name__ == "__main__":
    for each in seed(Layout.from_environment()):
        print(each)
