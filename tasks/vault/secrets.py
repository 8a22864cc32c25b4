"""The secrets that a cluster owns: made once, found again, and removed with the cluster.

Promises that no value leaves a task: flows get paths, counts and yes or no.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from prefect import task

from blocks.openbao import openbao
from domain.specs import ClusterSpec
from tasks.retry_rules import TEMPORARY

TOKEN_BYTES = 32
VRRP_PASSWORD_LENGTH = 8
"""keepalived uses the first eight characters of a VRRP password only."""


def rke2_path(spec: ClusterSpec) -> str:
    """Return the OpenBao path of the tokens that machines join with."""
    return f"{spec.secrets_path}/rke2"


def kubeconfig_path(spec: ClusterSpec) -> str:
    """Return the OpenBao path of the administrator's kubeconfig."""
    return f"{spec.secrets_path}/kubeconfig"


def _new_tokens() -> Mapping[str, str]:
    return {
        "server_token": secrets.token_hex(TOKEN_BYTES),
        "agent_token": secrets.token_hex(TOKEN_BYTES),
        "vrrp_password": secrets.token_hex(VRRP_PASSWORD_LENGTH // 2),
    }


@task(name="ensure cluster secrets", tags=["system:openbao"], **TEMPORARY)
def ensure_cluster_secrets(environment: str, spec: ClusterSpec) -> bool:
    """Create the cluster's join tokens if there are none; returns True if they were made now."""
    path = rke2_path(spec)
    with openbao(environment).session() as bao:
        was_there = bao.exists(path)
        bao.read_or_create(path, _new_tokens)
    return not was_there


@task(name="remove cluster secrets", tags=["system:openbao"], **TEMPORARY)
def remove_cluster_secrets(environment: str, spec: ClusterSpec) -> list[str]:
    """Delete every secret under the cluster's path; returns the paths that were there."""
    with openbao(environment).session() as bao:
        found = bao.names_under(spec.secrets_path)
        for path in found:
            bao.delete(path)
    return found


@task(name="find cluster secrets", tags=["system:openbao"], **TEMPORARY)
def secrets_left(environment: str, spec: ClusterSpec) -> list[str]:
    """Return the paths of the secrets that the cluster still has."""
    with openbao(environment).session() as bao:
        return bao.names_under(spec.secrets_path)
