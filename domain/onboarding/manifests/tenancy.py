"""What an application gets in a cluster before anything of it runs there.

Promises a namespace in which only restricted pods start, which cannot use more than its share,
speaks to nobody by default, and in which the team sees everything but Secrets. Outside production
the team may also look inside its pods; nowhere may it change what Git says.
"""

from __future__ import annotations

from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests.conventions import Object, a_manifest, stage_labels
from domain.onboarding.manifests.network import network_policies
from domain.onboarding.manifests.sizing import container_resources, resources_of, size_of
from domain.onboarding.tenant import PULL_SECRET, SERVICE_ACCOUNT, Tenant

TENANCY_KINDS = (
    ("v1", "ResourceQuota"),
    ("v1", "LimitRange"),
    ("v1", "ServiceAccount"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
)
"""Kinds in the namespace that the platform manages itself; none of them comes by GitOps."""

POD_SECURITY_LEVEL = "restricted"
TEAM_ROLE = "team"
_RBAC = "rbac.authorization.k8s.io"
_LOOK = ["get", "list", "watch"]


def tenancy_objects(tenant: Tenant, stage: Stage) -> list[Object]:
    """Return the namespace of a stage and what the platform keeps in it."""
    return [
        _namespace(tenant, stage),
        _quota(tenant, stage),
        _limits(tenant, stage),
        _service_account(tenant, stage),
        *network_policies(tenant, stage),
        _role(tenant, stage),
        _binding(tenant, stage),
    ]


def _object(tenant: Tenant, stage: Stage, kind: str, name: str, **parts: object) -> Object:
    api_version = next(version for version, known in TENANCY_KINDS if known == kind)
    return a_manifest(
        api_version, kind, name, stage_labels(tenant, stage), tenant.scoped(stage), **parts
    )


def _namespace(tenant: Tenant, stage: Stage) -> Object:
    security = {
        f"pod-security.kubernetes.io/{mode}": POD_SECURITY_LEVEL
        for mode in ("enforce", "audit", "warn")
    }
    labels = {**stage_labels(tenant, stage), **security}
    return a_manifest("v1", "Namespace", tenant.scoped(stage), labels)


def _quota(tenant: Tenant, stage: Stage) -> Object:
    return _object(
        tenant, stage, "ResourceQuota", "app", spec={"hard": size_of(tenant, stage).quota}
    )


def _limits(tenant: Tenant, stage: Stage) -> Object:
    amounts = container_resources(resources_of(tenant, stage))
    entry: Object = {
        "type": "Container",
        "default": {"memory": amounts["limits"]["memory"]},
        "defaultRequest": amounts["requests"],
    }
    return _object(tenant, stage, "LimitRange", "app", spec={"limits": [entry]})


def _service_account(tenant: Tenant, stage: Stage) -> Object:
    return _object(
        tenant,
        stage,
        "ServiceAccount",
        SERVICE_ACCOUNT,
        automountServiceAccountToken=False,
        imagePullSecrets=[{"name": PULL_SECRET}],
    )


def _role(tenant: Tenant, stage: Stage) -> Object:
    core = ["configmaps", "endpoints", "events", "limitranges", "pods", "pods/log"]
    core += ["resourcequotas", "serviceaccounts", "services"]
    groups = ["apps", "autoscaling", "events.k8s.io", "metrics.k8s.io", "monitoring.coreos.com"]
    groups += ["networking.k8s.io", "policy"]
    rules = [
        {"apiGroups": [""], "resources": core, "verbs": _LOOK},
        {"apiGroups": groups, "resources": ["*"], "verbs": _LOOK},
    ]
    if stage is not Stage.PRODUCTION:
        inside = ["pods/exec", "pods/portforward"]
        rules.append({"apiGroups": [""], "resources": inside, "verbs": ["create"]})
        rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]})
    return _object(tenant, stage, "Role", TEAM_ROLE, rules=rules)


def _binding(tenant: Tenant, stage: Stage) -> Object:
    """Bind the role to the team and the owners, as the identity provider names them."""
    named = [("Group", f"infraflows:team:{tenant.app.team}")]
    named += [("User", owner) for owner in sorted(set(tenant.app.owners))]
    return _object(
        tenant,
        stage,
        "RoleBinding",
        TEAM_ROLE,
        roleRef={"apiGroup": _RBAC, "kind": "Role", "name": TEAM_ROLE},
        subjects=[{"apiGroup": _RBAC, "kind": kind, "name": name} for kind, name in named],
    )
