"""What the preflight wants to know about OpenBao, gathered without changing anything."""

from __future__ import annotations

from prefect import task

from blocks.openbao import openbao
from domain.errors import LifecycleError, NotFound, Unreachable
from domain.preflight import OpenBaoFacts
from domain.specs import ClusterSpec
from tasks.retry_rules import TEMPORARY

SITE_SECRETS = ("proxmox", "git", "dns", "state")


def site_path(environment: str, system: str) -> str:
    """Return the OpenBao path where an environment keeps its credential for a system."""
    return f"infraflows/{environment}/{system}"


@task(name="gather OpenBao facts", tags=["system:openbao"], **TEMPORARY)
def gather_openbao_facts(environment: str, spec: ClusterSpec) -> OpenBaoFacts:
    """Look whether OpenBao answers, is unsealed, and holds what a run reads."""
    server = openbao(environment)
    try:
        health = server.health()
    except Unreachable as error:
        return OpenBaoFacts(is_reachable=False, problem=str(error))
    if health.is_sealed or not health.is_initialized:
        return OpenBaoFacts(is_reachable=True, is_sealed=True, version=health.version)
    missing: list[str] = []
    try:
        with server.session() as bao:
            for system in SITE_SECRETS:
                try:
                    bao.read(site_path(environment, system))
                except NotFound:
                    missing.append(site_path(environment, system))
            for key in (server.ledger_key, server.state_key):
                if not bao.has_transit_key(key):
                    missing.append(f"{server.transit_mount}/keys/{key}")
            bao.ssh_ca_public_key()
            bao.names_under(spec.secrets_path)
    except LifecycleError as error:
        return OpenBaoFacts(
            is_reachable=True, is_sealed=False, version=health.version, problem=str(error)
        )
    return OpenBaoFacts(
        is_reachable=True, is_sealed=False, version=health.version, missing_paths=tuple(missing)
    )
