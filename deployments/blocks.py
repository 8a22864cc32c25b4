"""Writes a site's block documents; running it again changes only what differs."""

from __future__ import annotations

from collections.abc import Iterator

from prefect.blocks.core import Block

from blocks.artifact_mirror import ArtifactMirror
from blocks.dns_zone import DnsZone
from blocks.git_repository import GitRepository
from blocks.ledger_file import LedgerDirectory
from blocks.openbao import OpenBaoServer
from blocks.proxmox import ProxmoxCluster
from blocks.tofu import TofuWorkspace
from deployments.site_file import SiteFile


def site_blocks(site: SiteFile) -> Iterator[Block]:
    """Return every block of a site, unsaved."""
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
    for block in site_blocks(site):
        block.save(site.environment, overwrite=True)
        saved.append(str(block.get_block_type_slug()))
    return saved
