"""Writes a site's block documents; running it again changes only what differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefect.blocks.core import Block

from blocks.app_platform import AppPlatform
from blocks.artifact_mirror import ArtifactMirror
from blocks.dns_zone import DnsZone
from blocks.git_repository import GitRepository
from blocks.gitlab_server import GitLabServer
from blocks.harbor import HarborRegistry
from blocks.ledger_file import LedgerDirectory
from blocks.openbao import OpenBaoServer
from blocks.proxmox import ProxmoxCluster
from blocks.tofu import TofuWorkspace
from deployments.site_file import SiteFile
from domain.errors import InvalidSpec


def onboarding_blocks(site: SiteFile) -> Iterator[tuple[str, Block]]:
    """Return what onboarding adds, each with its document's name, unsaved."""
    part = site.onboarding
    if part is None:
        return
    yield site.environment, GitLabServer(**part.gitlab.model_dump())
    yield site.environment, HarborRegistry(**part.harbor.model_dump())
    yield f"{site.environment}-gitops", GitRepository(**part.gitops.model_dump())
    openbao_url = part.platform.openbao_url or site.openbao.address
    platform = AppPlatform(
        environment=site.environment,
        registry=part.harbor.registry,
        gitops_url=part.gitops.url,
        gitops_branch=part.gitops.branch,
        gitops_credential=part.gitops.credential,
        gitlab_url=part.gitlab.url,
        gateway_url=part.gateway_url,
        gateway_ca_file=part.gateway_ca_file,
        openbao_kv_mount=site.openbao.kv_mount,
        openbao_url=openbao_url,
        openbao_ca_pem=_public_text(site.openbao.ca_file),
        database_ca_pem=_public_text(part.platform.database_ca_file),
        **part.platform.model_dump(exclude={"openbao_url", "database_ca_file"}),
    )
    yield site.environment, platform


def _public_text(file: str) -> str:
    """Return a CA's certificate, which pods are given as text; nothing where the system's is used.

    Raises:
        InvalidSpec: the file is named and is not there.
    """
    if not file:
        return ""
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        problem = f"ca_file: {file!r} cannot be read. Name the CA's file"
        raise InvalidSpec("the site file", [problem]) from None


def site_blocks(site: SiteFile) -> Iterator[Block]:
    """Return every block that is named after the environment, unsaved."""
    yield OpenBaoServer(**site.openbao.model_dump())
    yield ProxmoxCluster(**site.proxmox.model_dump())
    yield GitRepository(**site.git.model_dump())
    yield DnsZone(**site.dns.model_dump())
    yield TofuWorkspace(
        binary=site.toolchain.tofu,
        provider_mirror=site.toolchain.provider_mirror,
        backend=site.state.backend,
        locking=site.state.locking,
        url=site.state.url,
        ca_file=site.state.ca_file,
        credential=site.state.credential,
    )
    yield ArtifactMirror(**site.artifacts.model_dump())
    yield LedgerDirectory(**site.ledger.model_dump())


def save_blocks(site: SiteFile) -> list[str]:
    """Save each block under the environment's name; returns the block types' names."""
    saved = []
    named = [(site.environment, block) for block in site_blocks(site)]
    for name, block in (*named, *onboarding_blocks(site)):
        block.save(name, overwrite=True)
        saved.append(str(block.get_block_type_slug()))
    return saved
