"""Every step of the saga, in an order that respects what each needs."""

from __future__ import annotations

from tasks.onboarding.step import Step
from tasks.onboarding.steps.gitlab_access import GitLabAccess
from tasks.onboarding.steps.gitlab_project import GitLabProject
from tasks.onboarding.steps.gitops import GitOps
from tasks.onboarding.steps.harbor_project import HarborProject
from tasks.onboarding.steps.kubernetes_tenancy import KubernetesTenancy

STEPS: tuple[Step, ...] = (
    GitLabProject(),
    HarborProject(),
    GitLabAccess(),
    KubernetesTenancy(),
    GitOps(),
)
