"""Writes a site's block documents; running it again changes only what differs."""

from __future__ import annotations

from collections.abc import Iterator

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


def onboarding_blocks(site: SiteFile) -> Iterator[tuple[str, Block]]:
    """Return what onboarding adds, each with its document's name, unsaved."""
    part = site.onboarding
    if part is None:
        return
    yield site.environment, GitLabServer(**part.gitlab.model_dump())
    yield site.environment, HarborRegistry(**part.harbor.model_dump())
    yield f"{site.environment}-gitops", GitRepository(**part.gitops.model_dump())
    platform = AppPlatform(
        environment=site.environment,
        registry=part.harbor.registry,
        gitops_url=part.gitops.url,
        gitops_branch=part.gitops.branch,
        gitops_credential=part.gitops.credential,
        gitlab_url=part.gitlab.url,
        gateway_url=part.gateway_url,
        gateway_ca_file=part.gateway_ca_file,
        **part.platform.model_dump(),
    )
    yield site.environment, platform


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
