"""What an administrator prepares in OpenBao, done by the lab as a real site would do it once.

What it promises: every step is repeated safely; a set-up that was cut off is completed by the next.
The worker's policy allows what the flows need and nothing else.

What it refuses: to change a configured value behind the product's back: keys and CAs that exist
are kept, only what is absent is made.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.layout import ENVIRONMENT, Layout
from lab.services.credentials import GIVEN_TO_THE_PRODUCT, credential
from lab.services.files import PRIVATE, private_directory, write_atomically
from lab.services.https_probe import request
from lab.services.openbao_onboarding import (
    DATABASE_MOUNT,
    ONBOARDING_POLICY,
    PKI_MOUNT,
    prepare_onboarding,
)

KV_MOUNT = "kv"
TRANSIT_MOUNT = "transit"
SSH_MOUNT = "ssh"
SSH_ROLE = "infraflows"
LEDGER_KEY = "infraflows-ledger"
STATE_KEY = "infraflows-state"
ROTATION_KEY = "infraflows-rotation"
APPS_APPROLE_MOUNT = "approle-apps"
"""AppRoles of applications: apart from the worker's own, which the worker must not change."""
APPROLE = "infraflows-worker"
_LEADER_TIMEOUT_SECONDS = 30.0
_REVISION = 5
"""Raised when the set-up changes in what neither the policy nor a credential shows."""

WORKER_POLICY = f"""\
# What flows create and remove: each cluster's own secrets.
path "{KV_MOUNT}/data/clusters/*"     {{ capabilities = ["create", "read", "update", "delete"] }}
path "{KV_MOUNT}/metadata/clusters/*" {{ capabilities = ["read", "list", "delete"] }}
path "{KV_MOUNT}/delete/clusters/*"   {{ capabilities = ["update"] }}
path "{KV_MOUNT}/destroy/clusters/*"  {{ capabilities = ["update"] }}
path "{KV_MOUNT}/metadata/clusters"   {{ capabilities = ["list"] }}

# What the site's administrators prepared: read only.
path "{KV_MOUNT}/data/infraflows/{ENVIRONMENT}/*"     {{ capabilities = ["read"] }}
path "{KV_MOUNT}/metadata/infraflows/{ENVIRONMENT}/*" {{ capabilities = ["read", "list"] }}

# The state's encryption: OpenTofu asks for data keys and has them decrypted.
path "{TRANSIT_MOUNT}/datakey/plaintext/{STATE_KEY}" {{ capabilities = ["update"] }}
path "{TRANSIT_MOUNT}/decrypt/{STATE_KEY}"           {{ capabilities = ["update"] }}
path "{TRANSIT_MOUNT}/keys/{STATE_KEY}"              {{ capabilities = ["read"] }}

# The ledger: sign, verify, and export the public key for verifiers offline.
path "{TRANSIT_MOUNT}/sign/{LEDGER_KEY}"   {{ capabilities = ["update"] }}
path "{TRANSIT_MOUNT}/verify/{LEDGER_KEY}" {{ capabilities = ["update"] }}
path "{TRANSIT_MOUNT}/keys/{LEDGER_KEY}"   {{ capabilities = ["read"] }}

# Short-lived SSH certificates, and the CA that machines are told to trust.
path "{SSH_MOUNT}/sign/{SSH_ROLE}" {{ capabilities = ["update"] }}
path "{SSH_MOUNT}/config/ca"       {{ capabilities = ["read"] }}

# Rotation: the engine's records, and the secrets of applications that it replaces.
path "{KV_MOUNT}/data/rotation/{ENVIRONMENT}/*" {{ capabilities = ["create", "read", "update"] }}
path "{KV_MOUNT}/metadata/rotation/{ENVIRONMENT}/*" {{
  capabilities = ["create", "read", "update", "list"]
}}
path "{KV_MOUNT}/data/apps/*"     {{ capabilities = ["create", "read", "update", "delete"] }}
# Custom metadata says which application a secret is of, and which keys are expected.
path "{KV_MOUNT}/metadata/apps/*" {{
  capabilities = ["create", "read", "update", "list", "delete"]
}}
path "{KV_MOUNT}/destroy/apps/*"  {{ capabilities = ["update"] }}
path "{TRANSIT_MOUNT}/hmac/{ROTATION_KEY}/*" {{ capabilities = ["update"] }}
path "{TRANSIT_MOUNT}/keys/{ROTATION_KEY}"   {{ capabilities = ["read"] }}

# Secret ids of applications' AppRoles, and periodic tokens of roles named apps-*.
path "auth/{APPS_APPROLE_MOUNT}/role/+"                   {{ capabilities = ["read"] }}
path "auth/{APPS_APPROLE_MOUNT}/role/+/role-id"           {{ capabilities = ["read"] }}
path "auth/{APPS_APPROLE_MOUNT}/role/+/custom-secret-id"  {{ capabilities = ["update"] }}
path "auth/{APPS_APPROLE_MOUNT}/role/+/secret-id/lookup"  {{ capabilities = ["update"] }}
path "auth/{APPS_APPROLE_MOUNT}/role/+/secret-id/destroy" {{ capabilities = ["update"] }}
path "auth/token/roles/apps-*"  {{ capabilities = ["read"] }}
path "auth/token/create/apps-*" {{ capabilities = ["create", "update"] }}
path "sys/leases/revoke-prefix/auth/token/create/apps-*" {{ capabilities = ["update", "sudo"] }}
path "auth/token/lookup" {{ capabilities = ["update"] }}
path "auth/token/revoke" {{ capabilities = ["update"] }}

# A run must know its own credential, to refuse to rotate it.
path "auth/approle/role/{APPROLE}/secret-id/lookup" {{ capabilities = ["update"] }}

# After a leak: which secrets there are, who can read which, and who did. Names, never values.
path "{KV_MOUNT}/metadata/*"          {{ capabilities = ["list"] }}
path "sys/policies/acl"               {{ capabilities = ["list"] }}
path "sys/policies/acl/"              {{ capabilities = ["list"] }}
path "sys/policies/acl/*"             {{ capabilities = ["read"] }}
path "sys/audit"                      {{ capabilities = ["read", "sudo"] }}
path "sys/audit-hash/*"               {{ capabilities = ["update"] }}
path "auth/token/accessors"           {{ capabilities = ["list", "sudo"] }}
path "auth/token/accessors/"          {{ capabilities = ["list", "sudo"] }}
path "auth/token/lookup-accessor"     {{ capabilities = ["update"] }}
path "auth/token/revoke-accessor"     {{ capabilities = ["update"] }}

# Looking around, and giving the token back.
path "sys/health"                {{ capabilities = ["read"] }}
path "sys/internal/ui/mounts"    {{ capabilities = ["read"] }}
path "sys/internal/ui/mounts/*"  {{ capabilities = ["read"] }}
path "auth/token/lookup-self"    {{ capabilities = ["read"] }}
path "auth/token/renew-self"     {{ capabilities = ["update"] }}
path "auth/token/revoke-self"    {{ capabilities = ["update"] }}
{ONBOARDING_POLICY}"""


class OpenBaoRefused(Exception):
    """OpenBao answered with an error. The text names the path, never a value."""


@dataclass(frozen=True)
class Client:
    """A thin client of the HTTP API; one per token."""

    layout: Layout
    token: str = ""

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        absent_is_none: bool = False,
    ) -> Any:
        reply = request(
            self.layout,
            method,
            f"{self.layout.openbao_url}/v1/{path}",
            json=body,
            headers={"X-Vault-Token": self.token} if self.token else None,
            timeout_seconds=20.0,
        )
        if absent_is_none and reply.status_code in (400, 404):
            return None
        if reply.status_code >= 400:
            raise OpenBaoRefused(
                f"Unable to {method} {path} in OpenBao: HTTP {reply.status_code} "
                f"{reply.text.strip()[:300]}"
            )
        return reply.json() if reply.content else None


def _keys_file(layout: Layout) -> Path:
    return layout.openbao_directory / "keys.json"


def _configured_file(layout: Layout) -> Path:
    return layout.openbao_directory / "configured"


def root_client(layout: Layout) -> Client:
    keys = json.loads(_keys_file(layout).read_text(encoding="utf-8"))
    return Client(layout, keys["root_token"])


def is_initialised_without_keys(layout: Layout) -> bool:
    """A set-up that was killed between OpenBao's answer and the keys' file: nobody used it yet."""
    return not _keys_file(layout).exists() and not _configured_file(layout).exists()


def initialise(layout: Layout) -> None:
    client = Client(layout)
    if client.call("GET", "sys/init")["initialized"]:
        if not _keys_file(layout).exists():
            raise OpenBaoRefused(
                "Unable to unseal OpenBao: it is initialised but its keys were lost. "
                "Run `infraflows-lab down --purge` and start again."
            )
        return
    keys = client.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
    write_atomically(_keys_file(layout), json.dumps(keys), PRIVATE)


def unseal(layout: Layout) -> None:
    client = Client(layout)
    keys = json.loads(_keys_file(layout).read_text(encoding="utf-8"))
    if client.call("GET", "sys/seal-status")["sealed"]:
        client.call("PUT", "sys/unseal", {"key": keys["keys_base64"][0]})
    deadline = time.monotonic() + _LEADER_TIMEOUT_SECONDS
    while not _is_leader(layout):
        if time.monotonic() > deadline:
            raise OpenBaoRefused(
                f"Unable to unseal OpenBao: no leader after {_LEADER_TIMEOUT_SECONDS:g} s."
            )
        time.sleep(0.1)


def _is_leader(layout: Layout) -> bool:
    reply = request(layout, "GET", f"{layout.openbao_url}/v1/sys/health")
    return reply.status_code == 200


def _digest(layout: Layout) -> str:
    """Changes when what must be configured changes."""
    given = {name: dict(credential(layout, name)) for name in GIVEN_TO_THE_PRODUCT}
    others = [dict(credential(layout, name)) for name in ("database-issuer", "alertmanager")]
    content = WORKER_POLICY + json.dumps([given, others, _REVISION], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_configured(layout: Layout) -> bool:
    try:
        recorded = _configured_file(layout).read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    files = (layout.role_id_file, layout.secret_id_file)
    return recorded == _digest(layout) and all(file.exists() for file in files)


def configure(layout: Layout) -> None:
    client = root_client(layout)
    _mount(client, KV_MOUNT, {"type": "kv", "options": {"version": "2"}})
    _mount(client, TRANSIT_MOUNT, {"type": "transit"})
    _mount(client, SSH_MOUNT, {"type": "ssh"})
    _mount(client, DATABASE_MOUNT, {"type": "database"})
    pki = {"type": "pki", "config": {"max_lease_ttl": "2160h"}}
    _mount(client, PKI_MOUNT, pki)
    _transit_keys(client)
    _ssh_authority(client)
    client.call("PUT", f"sys/policies/acl/{APPROLE}", {"policy": WORKER_POLICY})
    _worker_login(client, layout)
    prepare_onboarding(client, layout)
    if f"{APPS_APPROLE_MOUNT}/" not in client.call("GET", "sys/auth")["data"]:
        client.call("POST", f"sys/auth/{APPS_APPROLE_MOUNT}", {"type": "approle"})
    for name in GIVEN_TO_THE_PRODUCT:
        path = f"{KV_MOUNT}/data/infraflows/{ENVIRONMENT}/{name}"
        client.call("POST", path, {"data": dict(credential(layout, name))})
    write_atomically(_configured_file(layout), _digest(layout), PRIVATE)


def _mount(client: Client, path: str, body: Mapping[str, Any]) -> None:
    if f"{path}/" not in client.call("GET", "sys/mounts")["data"]:
        client.call("POST", f"sys/mounts/{path}", body)
    if body["type"] == "kv":
        _wait_for_kv(client, path)


def _wait_for_kv(client: Client, path: str) -> None:
    """A new version 2 mount refuses for a moment, while it sets itself up."""
    deadline = time.monotonic() + 15.0
    while client.call("GET", f"{path}/config", absent_is_none=True) is None:
        if time.monotonic() > deadline:
            raise OpenBaoRefused(f"Unable to use mount {path}: it is not ready after 15 s.")
        time.sleep(0.1)


def _transit_keys(client: Client) -> None:
    kinds = {LEDGER_KEY: "ed25519", STATE_KEY: "aes256-gcm96", ROTATION_KEY: "aes256-gcm96"}
    for name, kind in kinds.items():
        path = f"{TRANSIT_MOUNT}/keys/{name}"
        if client.call("GET", path, absent_is_none=True) is None:
            client.call("POST", path, {"type": kind})


def _ssh_authority(client: Client) -> None:
    path = f"{SSH_MOUNT}/config/ca"
    if client.call("GET", path, absent_is_none=True) is None:
        client.call("POST", path, {"generate_signing_key": True, "key_type": "ed25519"})
    client.call(
        "POST",
        f"{SSH_MOUNT}/roles/{SSH_ROLE}",
        {
            "key_type": "ca",
            "allow_user_certificates": True,
            "allow_host_certificates": False,
            "allowed_users": "infraflows",
            "default_user": "infraflows",
            "allowed_extensions": "permit-pty",
            "default_extensions": {"permit-pty": ""},
            "ttl": "30m",
            "max_ttl": "1h",
        },
    )


def _worker_login(client: Client, layout: Layout) -> None:
    if "approle/" not in client.call("GET", "sys/auth")["data"]:
        client.call("POST", "sys/auth/approle", {"type": "approle"})
    role = f"auth/approle/role/{APPROLE}"
    client.call(
        "POST",
        role,
        {
            "token_policies": [APPROLE],
            "token_no_default_policy": True,
            "token_ttl": "1h",
            "token_max_ttl": "4h",
        },
    )
    private_directory(layout.worker_directory)
    role_id = client.call("GET", f"{role}/role-id")["data"]["role_id"]
    write_atomically(layout.role_id_file, role_id, PRIVATE)
    if not layout.secret_id_file.exists():
        secret_id = client.call("POST", f"{role}/secret-id", {})["data"]["secret_id"]
        write_atomically(layout.secret_id_file, secret_id, PRIVATE)
