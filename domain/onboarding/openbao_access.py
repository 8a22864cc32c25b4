"""What an application may do in OpenBao, as policy, login and database role: pure text and fields.

Exists so that plan and step compare the same. Promises that a stage reads its own secrets and its
own database users and nothing else; that every text carries the mark of the application that it
is of. Refuses wildcards: every path is named.

The KV engine's mount is the site's: it is written `{kv}` here and put in by the step.
"""

from __future__ import annotations

from typing import Any

from domain.onboarding.app_spec import SecretWish, Stage
from domain.onboarding.tenant import MANAGED_BY, SERVICE_ACCOUNT, Tenant

KV = "{kv}"
TOKEN_SECONDS = 3600
TOKEN_AT_MOST_SECONDS = 4 * 3600
DATABASE_USER_SECONDS = 3600
DATABASE_USER_AT_MOST_SECONDS = 24 * 3600

APP_KEY = "infraflows-app"
STAGE_KEY = "infraflows-stage"
OWNER_KEY = "owner"
KEYS_KEY = "keys"
MANAGED_KEYS = (APP_KEY, STAGE_KEY, OWNER_KEY, KEYS_KEY)
"""Custom metadata of a secret path that is ours; other keys are left as they are."""

CUSTOM_METADATA_LENGTH = 512


def mark(app: str, stage: Stage) -> str:
    """Return the words by which a thing that has only text is known to be of an application."""
    return f"{MANAGED_BY} app={app} stage={stage.value}"


def policy_text(tenant: Tenant, stage: Stage) -> str:
    """Return the policy of a stage's pods: what the application asked for, path by path."""
    lines = [f"# {mark(tenant.name, stage)}"]
    for wish in tenant.app.secrets:
        path = tenant.secret_path(stage, wish.path)
        lines.append(f'path "{KV}/data/{path}" {{ capabilities = ["read"] }}')
    if tenant.app.database:
        users = f"{tenant.platform.database_mount}/creds/{tenant.policy(stage)}"
        lines.append(f'path "{users}" {{ capabilities = ["read"] }}')
        # A lease is renewed by its id, which only who was given the user knows.
        lines.append('path "sys/leases/renew" { capabilities = ["update"] }')
    lines += [
        'path "auth/token/lookup-self" { capabilities = ["read"] }',
        'path "auth/token/renew-self" { capabilities = ["update"] }',
        'path "auth/token/revoke-self" { capabilities = ["update"] }',
    ]
    return "\n".join(lines) + "\n"


def login_role(tenant: Tenant, stage: Stage) -> dict[str, Any]:
    """Return the Kubernetes login of a stage: its ServiceAccount in its namespace, no other."""
    return {
        "bound_service_account_names": [SERVICE_ACCOUNT],
        "bound_service_account_namespaces": [tenant.scoped(stage)],
        "token_policies": [tenant.policy(stage)],
        "token_no_default_policy": True,
        "token_ttl": TOKEN_SECONDS,
        "token_max_ttl": TOKEN_AT_MOST_SECONDS,
    }


def secret_metadata(tenant: Tenant, stage: Stage, wish: SecretWish) -> dict[str, str]:
    """Return what is written beside a secret: whose it is, and which keys are expected in it."""
    found = {
        APP_KEY: tenant.name,
        STAGE_KEY: stage.value,
        OWNER_KEY: ",".join(tenant.app.owners),
        KEYS_KEY: ",".join(sorted(wish.key_names)),
    }
    return {key: value[:CUSTOM_METADATA_LENGTH] for key, value in found.items()}


def wanted_secrets(tenant: Tenant) -> dict[str, dict[str, str]]:
    """Return the custom metadata of every secret path that is wanted."""
    return {
        tenant.secret_path(stage, wish.path): secret_metadata(tenant, stage, wish)
        for stage in tenant.app.stages
        for wish in tenant.app.secrets
    }


def user_mark(app: str, stage: Stage) -> str:
    """Return the comment of a short-lived database user."""
    return f"{MANAGED_BY} short-lived user of app={app} stage={stage.value}"


def database_role(tenant: Tenant, stage: Stage) -> dict[str, Any]:
    """Return the database role that makes short-lived users of a stage's database.

    A user acts as the owner from its first statement on, so that what it makes outlives it. Its end
    takes the login away before anything else: what it may have made under its own name (after
    RESET ROLE) would keep it from being dropped, and it must be dead all the same.
    """
    owner = tenant.database(stage)
    comment = user_mark(tenant.name, stage)
    creation = (
        f"/* {mark(tenant.name, stage)} */ "
        f"CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' "
        f"VALID UNTIL '{{{{expiration}}}}' IN ROLE \"{owner}\"; "
        f'ALTER ROLE "{{{{name}}}}" SET role = "{owner}"; '
        f"COMMENT ON ROLE \"{{{{name}}}}\" IS '{comment}';"
    )
    revocation = (
        "DO $$ BEGIN "
        "IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{{name}}') THEN "
        'ALTER ROLE "{{name}}" NOLOGIN PASSWORD NULL; '
        "PERFORM pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
        "WHERE usename = '{{name}}'; "
        'BEGIN DROP ROLE "{{name}}"; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END; '
        "END IF; END $$;"
    )
    return {
        "db_name": tenant.platform.database_server,
        "creation_statements": [creation],
        "revocation_statements": [revocation],
        "renew_statements": ["ALTER ROLE \"{{name}}\" VALID UNTIL '{{expiration}}';"],
        "default_ttl": DATABASE_USER_SECONDS,
        "max_ttl": DATABASE_USER_AT_MOST_SECONDS,
    }
