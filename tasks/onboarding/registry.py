"""Every step of the saga, in an order that respects what each needs."""

from __future__ import annotations

from tasks.onboarding.step import Step
from tasks.onboarding.steps.argocd import ArgocdStep
from tasks.onboarding.steps.dns import Dns
from tasks.onboarding.steps.gitlab_access import GitLabAccess
from tasks.onboarding.steps.gitlab_project import GitLabProject
from tasks.onboarding.steps.gitops import GitOps
from tasks.onboarding.steps.harbor_project import HarborProject
from tasks.onboarding.steps.kubernetes_secrets import KubernetesSecrets
from tasks.onboarding.steps.kubernetes_tenancy import KubernetesTenancy
from tasks.onboarding.steps.nginx_outside import NginxOutside
from tasks.onboarding.steps.openbao_tenant import OpenBaoTenant
from tasks.onboarding.steps.postgresql_database import PostgresqlDatabase

STEPS: tuple[Step, ...] = (
    HarborProject(),
    GitLabAccess(),
    GitLabProject(),
    OpenBaoTenant(),
    PostgresqlDatabase(),
    KubernetesTenancy(),
    KubernetesSecrets(),
    GitOps(),
    Dns(),
    NginxOutside(),
    ArgocdStep(),
)
