"""How secrets get from OpenBao into a pod.

An OpenBao agent runs beside the application as a native sidecar and writes each key to a file in
memory. Nothing else is needed in the cluster: an injector or an operator would be one more system
with rights on every namespace, and a synchronised Secret would put values into etcd, its backups
and whatever reads Secrets. The agent logs in with the pod's own ServiceAccount, so that a value is
never seen by this product, and it renews short-lived database users while the pod runs.

The application finds `<KEY>_FILE` in its environment, and for PostgreSQL libpq's own PGSERVICEFILE.
"""

from __future__ import annotations

import json

from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests.conventions import Object, a_manifest
from domain.onboarding.manifests.network import split_address
from domain.onboarding.manifests.sizing import AGENT_CPU_MILLICORES, AGENT_MEMORY_MIB
from domain.onboarding.quantities import as_cpu, as_memory
from domain.onboarding.tenant import Tenant

AGENT_CONTAINER = "secrets"
AGENT_CONFIG = "secrets-agent"
AGENT_IMAGE = "platform/openbao:2.7.2"
SECRETS_DIRECTORY = "/secrets"
TOKEN_DIRECTORY = "/var/run/secrets/openbao"  # noqa: S105 - a directory
CONFIG_DIRECTORY = "/etc/openbao"
DATABASE_SERVICE = "database"
_SERVICE_FILE = f"{SECRETS_DIRECTORY}/database/pg_service.conf"
_DATABASE_CA_FILE = f"{SECRETS_DIRECTORY}/database/ca.crt"


def environment(tenant: Tenant) -> list[Object]:
    """Return the variables that tell the application where its secrets are."""
    found = [
        {"name": f"{key}_FILE", "value": f"{SECRETS_DIRECTORY}/{wish.path}/{key}"}
        for wish in tenant.app.secrets
        for key in wish.key_names
    ]
    if tenant.app.database:
        found.append({"name": "PGSERVICEFILE", "value": _SERVICE_FILE})
        found.append({"name": "PGSERVICE", "value": DATABASE_SERVICE})
    return found


def config_map(tenant: Tenant, stage: Stage) -> Object:
    """Return the agent's configuration in one stage."""
    data = {"agent.json": json.dumps(_configuration(tenant, stage), indent=2, sort_keys=True)}
    if tenant.platform.openbao_ca_pem:
        data["ca.crt"] = tenant.platform.openbao_ca_pem
    return a_manifest("v1", "ConfigMap", AGENT_CONFIG, tenant.labels, data=data)


def _configuration(tenant: Tenant, stage: Stage) -> Object:
    platform = tenant.platform
    server: Object = {"address": platform.openbao_url}
    if platform.openbao_ca_pem:
        server["ca_cert"] = f"{CONFIG_DIRECTORY}/ca.crt"
    login = {"role": tenant.policy(stage), "token_path": f"{TOKEN_DIRECTORY}/token"}
    method = {"type": "kubernetes", "mount_path": f"auth/{platform.kubernetes_mount(stage)}"}
    return {
        "vault": server,
        "auto_auth": {"method": [{**method, "config": login}]},
        "template_config": {"exit_on_retry_failure": True},
        "template": _templates(tenant, stage),
    }


def _templates(tenant: Tenant, stage: Stage) -> list[Object]:
    found = []
    for wish in tenant.app.secrets:
        path = f"{tenant.platform.openbao_kv_mount}/data/{tenant.secret_path(stage, wish.path)}"
        for key in wish.key_names:
            # Not by `index`, which makes "<no value>" of a key that is not there.
            text = f'{{{{ with secret "{path}" }}}}{{{{ .Data.data.{key} }}}}{{{{ end }}}}'
            found.append(_template(f"{SECRETS_DIRECTORY}/{wish.path}/{key}", text))
    if tenant.app.database:
        if tenant.platform.database_ca_pem:
            # Before what names it: templates are written in their order.
            found.append(_template(_DATABASE_CA_FILE, tenant.platform.database_ca_pem))
        found.append(_template(_SERVICE_FILE, _service_file(tenant, stage)))
    return found


def _template(destination: str, contents: str) -> Object:
    return {
        "contents": contents,
        "destination": destination,
        "error_on_missing_key": True,
        "perms": "0440",
    }


def _service_file(tenant: Tenant, stage: Stage) -> str:
    host, port = split_address(tenant.platform.database_address)
    path = f"{tenant.platform.database_mount}/creds/{tenant.policy(stage)}"
    lines = [f"[{DATABASE_SERVICE}]", f"host={host}", f"port={port}"]
    lines += [f"dbname={tenant.database(stage)}", "user={{ .Data.username }}"]
    lines += ["password={{ .Data.password }}"]
    if tenant.platform.database_ca_pem:
        lines += ["sslmode=verify-full", f"sslrootcert={_DATABASE_CA_FILE}"]
    else:
        lines += ["sslmode=require"]
    return f'{{{{ with secret "{path}" }}}}' + "\n".join(lines) + "\n{{ end }}"


def _rendered_files(tenant: Tenant) -> list[str]:
    found = [
        f"{SECRETS_DIRECTORY}/{wish.path}/{key}"
        for wish in tenant.app.secrets
        for key in wish.key_names
    ]
    return [*found, *([_SERVICE_FILE] if tenant.app.database else [])]


def container(tenant: Tenant, security: Object) -> Object:
    """Return the agent: as a native sidecar it has written every file before the app starts."""
    complete = " && ".join(f"test -f '{path}'" for path in _rendered_files(tenant))
    memory = as_memory(AGENT_MEMORY_MIB)
    return {
        "name": AGENT_CONTAINER,
        "image": f"{tenant.platform.registry}/{AGENT_IMAGE}",
        "restartPolicy": "Always",
        "args": ["agent", f"-config={CONFIG_DIRECTORY}/agent.json"],
        "env": [{"name": "HOME", "value": SECRETS_DIRECTORY}],
        "resources": {
            "requests": {"cpu": as_cpu(AGENT_CPU_MILLICORES), "memory": memory},
            "limits": {"memory": memory},
        },
        "securityContext": security,
        "startupProbe": {
            "exec": {"command": ["sh", "-c", complete]},
            "periodSeconds": 1,
            "failureThreshold": 120,
        },
        "volumeMounts": [
            {"name": "secrets", "mountPath": SECRETS_DIRECTORY},
            {"name": "agent-config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            {"name": "agent-token", "mountPath": TOKEN_DIRECTORY, "readOnly": True},
        ],
    }


def volumes() -> list[Object]:
    """Return the volumes of the agent; what it writes never touches a disk."""
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}
    return [
        {"name": "secrets", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}},
        {"name": "agent-config", "configMap": {"name": AGENT_CONFIG}},
        {"name": "agent-token", "projected": {"sources": [token]}},
    ]
