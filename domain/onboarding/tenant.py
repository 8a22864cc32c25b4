"""One application on one platform: every name that is derived from it, in one place.

Exists because a dozen systems must call the same application by the same names, today and in a
year, in onboarding, off-boarding and roll-back. Promises that nothing is drawn at random and that
no name depends on the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from domain.onboarding.app_spec import AppSpec, Stage

MANAGED_BY = "infraflows"
APP_LABEL = "infraflows.io/app"
STAGE_LABEL = "infraflows.io/stage"
TEAM_LABEL = "infraflows.io/team"
PULL_SECRET = "registry-pull"  # noqa: S105 - name of a Kubernetes Secret, not its value
TLS_SECRET = "ingress-tls"  # noqa: S105 - name of a Kubernetes Secret, not its value
SERVICE_ACCOUNT = "app"


@dataclass(frozen=True)
class Platform:
    """Where applications land. Addresses and names only; saved as a block by the site's set-up."""

    environment: str
    """Names the blocks: OpenBao, GitLab, Harbor, DNS, ledger."""
    clusters: Mapping[Stage, str]
    """Name of the cluster of each stage."""
    domain: str
    """Derived host names lie below it: `<app>.<domain>` in production, `<app>-<stage>.<domain>`."""
    ingress_address: str
    """Where the ingress controller answers; what DNS records of host names point to."""
    outside_address: str
    """Where the NGINX outside the cluster answers; empty if there is none."""
    registry: str
    """Harbor's host and port, as images are named."""
    gitops_url: str
    gitops_branch: str
    gitops_credential: str
    """OpenBao path of the GitOps repository's login."""
    gitlab_url: str
    gateway_url: str
    """Where GitLab delivers its webhooks to."""
    database_mount: str
    """OpenBao's database engine."""
    database_server: str
    """Name of the engine's connection; its administrator's login lies at `database_credential`."""
    database_credential: str
    """OpenBao path of {host, port, username, password, ca_file, database}."""
    pki_mount: str
    pki_role: str
    argocd_namespace: str = "argocd"
    openbao_url: str = ""
    """Where pods reach OpenBao; needed by applications that want secrets or a database."""
    openbao_kv_mount: str = "kv"
    openbao_ca_pem: str = ""
    """CA of that address; pods' own list if empty."""
    database_address: str = ""
    """Host and port where pods reach PostgreSQL; needed by applications that want a database."""
    database_ca_pem: str = ""
    """CA of PostgreSQL: with it pods verify the server, without it they only encrypt."""

    def kubernetes_mount(self, stage: Stage) -> str:
        """Return OpenBao's auth mount of a stage's cluster."""
        return f"kubernetes-{self.clusters[stage]}"

    def kubeconfig_path(self, stage: Stage) -> str:
        """Return the OpenBao path of a stage's cluster's kubeconfig."""
        return f"clusters/{self.clusters[stage]}/kubeconfig"


@dataclass(frozen=True)
class Tenant:
    """One application on a platform."""

    platform: Platform
    app: AppSpec
    project_id: int
    """Of the GitLab project: stays when the project is renamed or moved."""
    tags: Mapping[Stage, str]
    """Image tag that each stage runs, for applications that are built."""

    @property
    def name(self) -> str:
        """The application's name."""
        return self.app.name

    def scoped(self, stage: Stage) -> str:
        """Return `<app>-<stage>`: namespace, Argo CD application, OpenBao role and policy part."""
        return f"{self.name}-{stage.value}"

    @property
    def namespaces(self) -> list[str]:
        """Namespaces of the wanted stages."""
        return [self.scoped(stage) for stage in self.app.stages]

    @property
    def labels(self) -> dict[str, str]:
        """What marks every object of this application."""
        return {
            "app.kubernetes.io/managed-by": MANAGED_BY,
            APP_LABEL: self.name,
            TEAM_LABEL: self.app.team,
        }

    @property
    def gitops_directory(self) -> str:
        """Directory of the application in the GitOps repository."""
        return f"apps/{self.name}"

    def overlay_directory(self, stage: Stage) -> str:
        """Directory that a stage's Argo CD application renders."""
        return f"{self.gitops_directory}/overlays/{stage.value}"

    @property
    def harbor_project(self) -> str:
        """Harbor project of the application's images."""
        return self.name

    def image(self, stage: Stage) -> str:
        """Return the image with its tag that a stage runs."""
        if self.app.image:
            return self.app.image
        return f"{self.platform.registry}/{self.harbor_project}/{self.name}:{self.tags[stage]}"

    @property
    def secrets_root(self) -> str:
        """OpenBao path (without mount) under which everything of the application lies."""
        return f"apps/{self.name}"

    def secret_path(self, stage: Stage, wish: str) -> str:
        """Return the OpenBao path of a wanted secret in one stage."""
        return f"{self.secrets_root}/{stage.value}/{wish}"

    @property
    def push_robot_path(self) -> str:
        """OpenBao path of Harbor's robot that pushes, used by the pipeline."""
        return f"{self.secrets_root}/harbor-push"

    @property
    def pull_robot_path(self) -> str:
        """OpenBao path of Harbor's robot that pulls, used by the cluster."""
        return f"{self.secrets_root}/harbor-pull"

    @property
    def deploy_token_path(self) -> str:
        """OpenBao path of GitLab's deploy token."""
        return f"{self.secrets_root}/gitlab-deploy-token"

    def policy(self, stage: Stage) -> str:
        """Name of OpenBao's policy and Kubernetes auth role, and of the dynamic database role."""
        return f"app-{self.scoped(stage)}"

    def database(self, stage: Stage) -> str:
        """Return the name of a stage's database; its owner role has the same name."""
        return self.scoped(stage).replace("-", "_")

    def hostnames(self, stage: Stage) -> list[str]:
        """Return the host names that a stage's ingress answers."""
        given = self.app.environments[stage].hostnames
        if given:
            return list(given)
        label = self.name if stage is Stage.PRODUCTION else self.scoped(stage)
        return [f"{label}.{self.platform.domain}"]
