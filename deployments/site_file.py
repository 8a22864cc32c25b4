"""The description of a site: where its systems answer, and where their credentials are kept.

Exists so that a site is set up by one file without a secret in it. Promises that every problem
of the file is told at once, before any block document is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from domain.errors import InvalidSpec
from domain.onboarding.app_spec import Stage
from domain.spec_fields import Name


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OpenBaoSite(_Part):
    """How the worker reaches OpenBao."""

    address: str
    ca_file: str
    role_id_file: str
    secret_id_file: str
    kv_mount: str = "kv"
    transit_mount: str = "transit"
    ssh_mount: str = "ssh"
    ssh_role: str = "infraflows"
    ledger_key: str = "infraflows-ledger"
    state_key: str = "infraflows-state"
    rotation_key: str = "infraflows-rotation"
    audit_file: str = ""


class ProxmoxSite(_Part):
    """The hypervisors' API."""

    url: str
    alternate_urls: list[str] = Field(default_factory=list)
    ca_file: str
    credential: str


class GitSite(_Part):
    """The infrastructure repository."""

    url: str
    branch: str = "main"
    ca_file: str
    credential: str


class DnsSite(_Part):
    """The zone that takes signed updates."""

    server: str
    port: int = 53
    zone: str
    credential: str


class StateSite(_Part):
    """Where OpenTofu keeps its states."""

    backend: Literal["http", "pg"] = "http"
    locking: Literal["webdav", "gitlab"] = "webdav"
    url: str
    ca_file: str = ""
    credential: str


class ToolchainSite(_Part):
    """Programs on the worker."""

    tofu: str
    provider_mirror: str


class ArtifactsSite(_Part):
    """The mirror of RKE2's releases."""

    url: str
    ca_file: str = ""


class LedgerSite(_Part):
    """Folder of the signed ledgers."""

    directory: str


class PrefectSite(_Part):
    """The Prefect server, as the worker and as a person reach it."""

    api_url: str
    ui_url: str


class RotationSiteFile(_Part):
    """When secrets are rotated by the clock."""

    cron: str = "0 1 * * *"
    """In UTC."""
    is_scheduled: bool = True


class GitLabSite(_Part):
    """GitLab's API."""

    url: str
    ca_file: str = ""
    credential: str


class HarborSite(_Part):
    """Harbor's API, and its registry as images are named."""

    url: str
    registry: str
    ca_file: str = ""
    credential: str


class OnboardingPlatformSite(_Part):
    """Where applications land."""

    clusters: dict[Stage, str]
    domain: str
    ingress_address: str
    outside_address: str = ""
    database_mount: str = "database"
    database_server: str = "apps"
    database_credential: str
    pki_mount: str = "pki"
    pki_role: str = "apps"
    argocd_namespace: str = "argocd"
    openbao_url: str = ""
    """Where pods reach OpenBao; as the worker does if empty."""
    database_address: str = ""
    """Host and port where pods reach PostgreSQL."""
    database_ca_file: str = ""
    """CA of PostgreSQL, by which pods verify it."""


class OnboardingSite(_Part):
    """What onboarding of applications needs besides the rest."""

    gitlab: GitLabSite
    harbor: HarborSite
    gitops: GitSite
    gateway_url: str
    """Where GitLab and Alertmanager deliver their webhooks to."""
    gateway_ca_file: str = ""
    platform: OnboardingPlatformSite
    converge_cron: str = "0 3 * * *"
    """When every application is brought to its last good version, in UTC."""
    is_converge_scheduled: bool = True


class GatewaySite(_Part):
    """The webhook gateway: where it listens, and where it keeps what it has acknowledged."""

    host: str = "0.0.0.0"  # noqa: S104 - webhooks come from other machines
    port: int = Field(default=8448, ge=1, le=65535)
    certificate_file: str
    key_file: str
    directory: str = "/var/lib/infraflows/gateway"
    """Of the embedded store."""
    store_credential: str = ""
    """OpenBao path of a PostgreSQL login; then the store is there, and gateways may share it."""
    is_dispatching: bool = True
    reconcile_cron: str = "*/10 * * * *"
    """In UTC."""
    is_reconcile_scheduled: bool = True


class SiteFile(_Part):
    """One environment of a site."""

    environment: Name
    openbao: OpenBaoSite
    proxmox: ProxmoxSite
    git: GitSite
    dns: DnsSite
    state: StateSite
    toolchain: ToolchainSite
    artifacts: ArtifactsSite
    ledger: LedgerSite
    prefect: PrefectSite
    rotation: RotationSiteFile = RotationSiteFile()
    onboarding: OnboardingSite | None = None
    """Left out where applications are not onboarded."""
    gateway: GatewaySite | None = None
    """Left out where no gateway runs."""


def read_site_file(path: Path) -> SiteFile:
    """Return the site that a YAML file describes.

    Raises:
        InvalidSpec: the file cannot be read, or with everything that is wrong in it.
    """
    thing = f"the site file {path}"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSpec(thing, [f"the file: {error.strerror}. Name an existing file"]) from error
    except yaml.YAMLError as error:
        raise InvalidSpec(thing, [f"the file: is not YAML: {error}. Correct it"]) from error
    try:
        return SiteFile.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc'])) or 'the document'}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        ]
        raise InvalidSpec(thing, problems) from None
