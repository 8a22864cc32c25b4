"""What an administrator prepares in OpenBao for applications: databases, certificates, rights.

What it promises: every step is repeated safely. OpenBao logs in to PostgreSQL with a user of its
own, so that the product's login is not the one that makes applications' users. Certificates are
signed by the lab's own CA, which everything here trusts.

What it refuses: certificates for names of the site itself: only below the applications' domains.

The worker's rights end at `app-` and `apps/`. Still: who may write policies, and bind logins to
them, can give itself what these policies can say. The worker's AppRole is to be guarded like an
administrator's; a site that wants less puts applications in an OpenBao namespace of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.layout import ENVIRONMENT, ZONE, Layout
from lab.services.credentials import credential

if TYPE_CHECKING:
    from lab.services.openbao_setup import Client

DATABASE_MOUNT = "database"
DATABASE_SERVER = "apps"
PKI_MOUNT = "pki"
PKI_ROLE = "apps"
APPS_DOMAIN = f"apps.{ZONE}"
OUTSIDE_DOMAIN = f"outside.{ZONE}"
"""Host names that the NGINX outside the clusters answers."""
ALERTMANAGER_PATH = f"webhooks/{ENVIRONMENT}/alertmanager"
"""By what the gateway knows Alertmanager."""

# Paths are relative to the KV mount `kv`; lines that rotation has too are merged there.
ONBOARDING_POLICY = f"""
# Onboarding: the journal of the saga, and the secrets that webhooks are verified with.
path "kv/data/onboarding/{ENVIRONMENT}/*" {{
  capabilities = ["create", "read", "update", "delete"]
}}
path "kv/metadata/onboarding/{ENVIRONMENT}/*" {{
  capabilities = ["create", "read", "update", "delete", "list"]
}}
path "kv/destroy/onboarding/{ENVIRONMENT}/*" {{ capabilities = ["update"] }}
path "kv/data/webhooks/*"     {{ capabilities = ["create", "read", "update", "delete"] }}
path "kv/metadata/webhooks/*" {{ capabilities = ["create", "read", "update", "delete", "list"] }}
path "kv/destroy/webhooks/*"  {{ capabilities = ["update"] }}

# What an application may read: one policy for each of its stages.
path "sys/policies/acl/app-*" {{ capabilities = ["create", "read", "update", "delete"] }}

# How its pods log in: one method for each cluster, one role for each stage. `sudo` is what OpenBao
# asks for to enable a method; listing shows which are there.
path "sys/auth"              {{ capabilities = ["read"] }}
path "sys/auth/kubernetes-*" {{ capabilities = ["create", "read", "update", "sudo"] }}
path "auth/kubernetes-*"     {{ capabilities = ["create", "read", "update", "delete", "list"] }}

# Its short-lived database users. The connection is the administrator's: its user is read, to be
# named as the one who may grant. A trial user is made to prove that it works.
path "{DATABASE_MOUNT}/config/{DATABASE_SERVER}" {{ capabilities = ["read"] }}
path "{DATABASE_MOUNT}/roles"       {{ capabilities = ["list"] }}
path "{DATABASE_MOUNT}/roles/"      {{ capabilities = ["list"] }}
path "{DATABASE_MOUNT}/roles/app-*" {{ capabilities = ["create", "read", "update", "delete"] }}
path "{DATABASE_MOUNT}/creds/app-*" {{ capabilities = ["read"] }}
path "sys/leases/revoke" {{ capabilities = ["update"] }}
path "sys/leases/lookup/{DATABASE_MOUNT}/creds/app-*" {{ capabilities = ["list", "sudo"] }}
path "sys/leases/revoke-prefix/{DATABASE_MOUNT}/creds/app-*" {{
  capabilities = ["update", "sudo"]
}}
# Rotation of users that stay.
path "{DATABASE_MOUNT}/static-roles/app-*" {{
  capabilities = ["create", "read", "update", "delete"]
}}
path "{DATABASE_MOUNT}/static-creds/app-*" {{ capabilities = ["read"] }}
path "{DATABASE_MOUNT}/rotate-role/app-*"  {{ capabilities = ["update"] }}

# Certificates of its host names.
path "{PKI_MOUNT}/issue/{PKI_ROLE}" {{ capabilities = ["update"] }}
path "{PKI_MOUNT}/revoke"           {{ capabilities = ["update"] }}
"""

_PKI_ROLE = {
    "allowed_domains": [APPS_DOMAIN, OUTSIDE_DOMAIN],
    "allow_subdomains": True,
    "allow_bare_domains": False,
    "allow_wildcard_certificates": False,
    "allow_localhost": False,
    "allow_ip_sans": False,
    "enforce_hostnames": True,
    "require_cn": False,
    "key_type": "ec",
    "key_bits": 256,
    "key_usage": ["DigitalSignature"],
    "server_flag": True,
    "client_flag": False,
    "ttl": "720h",
    "max_ttl": "2160h",
}


def prepare_onboarding(client: Client, layout: Layout) -> None:
    """Connection of the database engine, CA and role of the PKI engine; their mounts are there."""
    _database_connection(client, layout)
    _certificate_authority(client, layout)
    login = dict(credential(layout, "alertmanager"))
    client.call("POST", f"kv/data/{ALERTMANAGER_PATH}", {"data": login})


def _database_connection(client: Client, layout: Layout) -> None:
    login = credential(layout, "database-issuer")
    place = f"{login['host']}:{login['port']}/{login['database']}"
    body = {
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": ["app-*"],
        "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{place}?sslmode=disable",
        "username": login["username"],
        "password": login["password"],
        # Users' passwords reach the server as verifiers: its log cannot tell them.
        "password_authentication": "scram-sha-256",
        # PostgreSQL may start after OpenBao.
        "verify_connection": False,
    }
    client.call("POST", f"{DATABASE_MOUNT}/config/{DATABASE_SERVER}", body)


def _certificate_authority(client: Client, layout: Layout) -> None:
    """The lab's CA signs leaves only (its path length is 0): so it is this engine's issuer.

    A real site has its offline root sign an intermediate here. Importing it again changes nothing.
    """
    bundle = layout.ca_key_file.read_text() + layout.ca_file.read_text()
    client.call("POST", f"{PKI_MOUNT}/issuers/import/bundle", {"pem_bundle": bundle})
    here = f"{layout.openbao_url}/v1/{PKI_MOUNT}"
    urls = {"crl_distribution_points": [f"{here}/crl"], "ocsp_servers": [f"{here}/ocsp"]}
    client.call("POST", f"{PKI_MOUNT}/config/urls", urls)
    client.call("POST", f"{PKI_MOUNT}/roles/{PKI_ROLE}", _PKI_ROLE)
