"""What an application's Argo CD objects say: project, repository and one Application for a stage.

Exists so that plan, apply and read-back are one text. Promises that an application can reach its
own namespaces, one repository and the kinds of `ALLOWED_KINDS`, and nothing of the whole cluster;
that production waits for a person and everything before it follows Git by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain.onboarding.app_spec import Stage
from domain.onboarding.argocd_state import RESOURCES_FINALIZER
from domain.onboarding.tenant import MANAGED_BY, STAGE_LABEL, Tenant

API_VERSION = "argoproj.io/v1alpha1"
IN_CLUSTER = "https://kubernetes.default.svc"
SECRET_TYPE_LABEL = "argocd.argoproj.io/secret-type"  # noqa: S105 - name of a label
PATHS_ANNOTATION = "argocd.argoproj.io/manifest-generate-paths"
"""Where commits concern an Application: others need no rendering, of hundreds in one repository."""

ALLOWED_KINDS = (
    ("", "ConfigMap"),
    ("", "Service"),
    ("apps", "Deployment"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("monitoring.coreos.com", "PrometheusRule"),
    ("monitoring.coreos.com", "ServiceMonitor"),
    ("networking.k8s.io", "Ingress"),
    ("policy", "PodDisruptionBudget"),
)
"""Group and kind of what the GitOps repository may bring; tenancy and secrets are not among it."""

SYNC_OPTIONS = ("CreateNamespace=false", "PruneLast=true", "ServerSideApply=true")


def is_automatic(stage: Stage) -> bool:
    """Tell whether a stage follows the branch by itself."""
    return stage is not Stage.PRODUCTION


def clusters(tenant: Tenant) -> dict[str, list[Stage]]:
    """Return the wanted stages by the cluster that they run in."""
    found: dict[str, list[Stage]] = {}
    for stage in tenant.app.stages:
        found.setdefault(tenant.platform.clusters[stage], []).append(stage)
    return found


def repository_name(tenant: Tenant) -> str:
    """Return the name of the Secret with the repository's login."""
    return f"{tenant.name}-gitops"


def _metadata(tenant: Tenant, name: str, **labels: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": tenant.platform.argocd_namespace,
        "labels": {**tenant.labels, **labels},
    }


def project(tenant: Tenant, stages: list[Stage]) -> dict[str, Any]:
    """Return the AppProject: what the application may be and where."""
    reads = f"p, proj:{tenant.name}:team, applications, get, {tenant.name}/*, allow"
    return {
        "apiVersion": API_VERSION,
        "kind": "AppProject",
        "metadata": _metadata(tenant, tenant.name),
        "spec": {
            "description": f"{tenant.name} of team {tenant.app.team}",
            "sourceRepos": [tenant.platform.gitops_url],
            "destinations": [
                {"server": IN_CLUSTER, "namespace": tenant.scoped(stage)} for stage in stages
            ],
            "clusterResourceWhitelist": [],
            "namespaceResourceWhitelist": [
                {"group": group, "kind": kind} for group, kind in ALLOWED_KINDS
            ],
            "roles": [
                {
                    "name": "team",
                    "description": "Sees its applications; changes go through Git.",
                    "groups": [tenant.app.team],
                    "policies": [reads],
                }
            ],
        },
    }


def application(tenant: Tenant, stage: Stage) -> dict[str, Any]:
    """Return the Application of one stage."""
    policy: dict[str, Any] = {
        "syncOptions": list(SYNC_OPTIONS),
        "retry": {"limit": 5, "backoff": {"duration": "5s", "factor": 2, "maxDuration": "1m"}},
    }
    if is_automatic(stage):
        policy["automated"] = {"prune": True, "selfHeal": True}
    metadata = _metadata(tenant, tenant.scoped(stage), **{STAGE_LABEL: stage.value})
    return {
        "apiVersion": API_VERSION,
        "kind": "Application",
        "metadata": {
            **metadata,
            "annotations": {PATHS_ANNOTATION: f"/{tenant.gitops_directory}"},
            "finalizers": [RESOURCES_FINALIZER],
        },
        "spec": {
            "project": tenant.name,
            "source": {
                "repoURL": tenant.platform.gitops_url,
                "targetRevision": tenant.platform.gitops_branch,
                "path": tenant.overlay_directory(stage),
            },
            "destination": {"server": IN_CLUSTER, "namespace": tenant.scoped(stage)},
            "syncPolicy": policy,
        },
    }


def repository(tenant: Tenant) -> dict[str, Any]:
    """Return the Secret by which Argo CD reads the repository for this project, without a login."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(tenant, repository_name(tenant), **{SECRET_TYPE_LABEL: "repository"}),
        "type": "Opaque",
        "stringData": {
            "type": "git",
            "url": tenant.platform.gitops_url,
            "project": tenant.name,
        },
    }


def managed(document: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Return what is compared of an object, as it is declared and as it is found.

    `values` are a Secret's plain ones; its login is only said to be there.
    """
    metadata = document["metadata"]
    labels = metadata.get("labels") or {}
    ours = ("infraflows.io/", "app.kubernetes.io/managed-by", SECRET_TYPE_LABEL)
    return {
        "labels": {k: v for k, v in labels.items() if k.startswith(ours)},
        "finalizers": [f for f in metadata.get("finalizers") or [] if f == RESOURCES_FINALIZER],
        "paths": (metadata.get("annotations") or {}).get(PATHS_ANNOTATION, ""),
        "spec": _without_empty(document.get("spec") or {}),
        "values": dict(values),
        "is_ending": bool(metadata.get("deletionTimestamp")),
    }


def _without_empty(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Drop empty lists: Argo CD leaves them out when it writes the object."""
    return {key: value for key, value in spec.items() if value not in ([], {}, None)}


def is_ours(document: Mapping[str, Any]) -> bool:
    """Tell whether an object was made by this product."""
    labels = document["metadata"].get("labels") or {}
    return labels.get("app.kubernetes.io/managed-by") == MANAGED_BY
