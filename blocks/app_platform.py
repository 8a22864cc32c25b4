"""Where applications land, as a block: names and addresses that all steps of onboarding share."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from blocks.documents import document
from domain.onboarding.app_spec import Stage
from domain.onboarding.tenant import Platform


class AppPlatform(Block):
    """The platform that applications are onboarded to. Holds no secret."""

    _block_type_name: ClassVar[str] = "App platform"
    _block_type_slug: ClassVar[str] = "app-platform"

    environment: str = Field(description="Name of the site's other blocks.")
    clusters: dict[Stage, str] = Field(description="Cluster of each stage.")
    domain: str = Field(description="DNS domain of derived host names.")
    ingress_address: str = Field(description="Address of the ingress controller.")
    outside_address: str = Field(
        default="", description="Address of the NGINX outside the clusters; none if empty."
    )
    registry: str = Field(description="Host and port of Harbor, as images are named.")
    gitops_url: str = Field(description="GitOps repository.")
    gitops_branch: str = Field(default="main", description="Its branch.")
    gitops_credential: str = Field(description="OpenBao path of its login.")
    gitlab_url: str = Field(description="Address of GitLab.")
    gateway_url: str = Field(description="Where GitLab delivers its webhooks to.")
    gateway_ca_file: str = Field(
        default="", description="CA of the gateway's certificate; the system's if empty."
    )
    database_mount: str = Field(default="database", description="OpenBao's database engine.")
    database_server: str = Field(default="apps", description="Connection of the database engine.")
    database_credential: str = Field(
        description="OpenBao path of the database administrator's login."
    )
    pki_mount: str = Field(default="pki", description="OpenBao's PKI engine.")
    pki_role: str = Field(default="apps", description="Role of the PKI engine for host names.")
    argocd_namespace: str = Field(default="argocd", description="Namespace of Argo CD.")
    openbao_url: str = Field(default="", description="Where pods reach OpenBao.")
    openbao_kv_mount: str = Field(default="kv", description="OpenBao's key-value engine.")
    openbao_ca_pem: str = Field(default="", description="CA of that address, as PEM.")
    database_address: str = Field(
        default="", description="Host and port where pods reach PostgreSQL."
    )
    database_ca_pem: str = Field(default="", description="CA of PostgreSQL, as PEM.")

    def platform(self) -> Platform:
        """Return what the block says as the domain's type."""
        fields = Platform.__dataclass_fields__
        return Platform(**{name: getattr(self, name) for name in fields})


def app_platform(environment: str) -> AppPlatform:
    """Load the block of an environment; only inside a task's body."""
    return document(AppPlatform, environment)
