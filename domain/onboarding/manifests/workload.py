"""What runs of an application in one stage: the objects that Argo CD keeps as Git says.

Promises pods that the restricted Pod Security level accepts, that are spread over nodes, drained
before they end and replaced one by one. What is the same in every stage is in `base_objects`;
`stage_objects` holds what is a stage's own; `rendered` is both as kustomize puts them together.
"""

from __future__ import annotations

import copy
from typing import Any

from domain.onboarding.app_spec import ServiceLevel, Stage
from domain.onboarding.manifests import secrets_agent
from domain.onboarding.manifests.conventions import (
    APP_CONTAINER,
    APP_USER,
    HTTP_PORT,
    INGRESS_CLASS,
    UNBUILT_TAG,
    Object,
    a_manifest,
    selector,
)
from domain.onboarding.manifests.observability import (
    alert_rules,
    dashboard,
    service_monitor,
)
from domain.onboarding.manifests.sizing import (
    container_resources,
    has_agent,
    resources_of,
    size_of,
)
from domain.onboarding.tenant import (
    PULL_SECRET,
    SERVICE_ACCOUNT,
    STAGE_LABEL,
    TLS_SECRET,
    Tenant,
)
from domain.onboarding.things import digest

SERVICE_PORT = 80
CPU_PERCENT_TO_SCALE_AT = 70
AGENT_DIGEST = "infraflows.io/secrets-agent"
"""Annotation of the pods: a changed configuration of the agent starts new ones."""


def image_name(tenant: Tenant) -> str:
    """Return the image without tag, for applications that are built."""
    return f"{tenant.platform.registry}/{tenant.harbor_project}/{tenant.name}"


def image_tag(tenant: Tenant, stage: Stage) -> str:
    """Return the tag that a stage runs, for applications that are built."""
    return tenant.tags.get(stage) or UNBUILT_TAG


# --- the same in every stage -----------------------------------------------------------------


def base_objects(tenant: Tenant) -> dict[str, Object]:
    """Return what all stages share, by file."""
    return {"deployment.yaml": _deployment(tenant), "service.yaml": _service(tenant)}


def _deployment(tenant: Tenant) -> Object:
    labels = {**tenant.labels, "app.kubernetes.io/name": tenant.name}
    spec = {
        "selector": {"matchLabels": selector(tenant)},
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": 600,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "template": {"metadata": {"labels": labels}, "spec": _pod(tenant)},
    }
    return a_manifest("apps/v1", "Deployment", tenant.name, labels, spec=spec)


def _pod(tenant: Tenant) -> Object:
    pod: Object = {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        "imagePullSecrets": [{"name": PULL_SECRET}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": APP_USER,
            "runAsGroup": APP_USER,
            "fsGroup": APP_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(tenant)},
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
        "containers": [_container(tenant)],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}],
    }
    if has_agent(tenant):
        pod["initContainers"] = [secrets_agent.container(tenant, _container_security())]
        pod["volumes"] += secrets_agent.volumes()
    return pod


def _container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _container(tenant: Tenant) -> Object:
    stage_field = {"fieldRef": {"fieldPath": f"metadata.labels['{STAGE_LABEL}']"}}
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - in the container
    if has_agent(tenant):
        mounts.append(
            {
                "name": "secrets",
                "mountPath": secrets_agent.SECRETS_DIRECTORY,
                "readOnly": True,
            }
        )
    return {
        "name": APP_CONTAINER,
        "image": tenant.app.image or image_name(tenant),
        "ports": [{"name": HTTP_PORT, "containerPort": tenant.app.port, "protocol": "TCP"}],
        "env": [
            {"name": "APP_ENVIRONMENT", "valueFrom": stage_field},
            {"name": "PORT", "value": str(tenant.app.port)},
            *secrets_agent.environment(tenant),
        ],
        "securityContext": _container_security(),
        "startupProbe": _probe(tenant, periodSeconds=2, failureThreshold=60),
        "readinessProbe": _probe(tenant, periodSeconds=5, failureThreshold=2),
        "livenessProbe": _probe(tenant, periodSeconds=10, failureThreshold=3),
        # Until every ingress controller knows that the pod ends, it goes on to answer.
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "volumeMounts": mounts,
    }


def _probe(tenant: Tenant, **timing: int) -> Object:
    request = {"path": tenant.app.health_path, "port": HTTP_PORT}
    return {"httpGet": request, "timeoutSeconds": 2, **timing}


def _service(tenant: Tenant) -> Object:
    port = {"name": HTTP_PORT, "port": SERVICE_PORT, "targetPort": HTTP_PORT, "protocol": "TCP"}
    spec = {"type": "ClusterIP", "selector": selector(tenant), "ports": [port]}
    return a_manifest("v1", "Service", tenant.name, tenant.labels, spec=spec)


# --- one stage's own -------------------------------------------------------------------------


def stage_objects(tenant: Tenant, stage: Stage) -> dict[str, Object]:
    """Return what only one stage has, by file, without namespace and stage label."""
    size = size_of(tenant, stage)
    found = {
        "ingress.yaml": _ingress(tenant, stage),
        "alerts.yaml": alert_rules(tenant, stage),
        "dashboard.yaml": dashboard(tenant, stage),
    }
    if size.is_scaled:
        found["autoscaler.yaml"] = _autoscaler(tenant, size.replicas, size.most_replicas)
    if tenant.app.service_level is not ServiceLevel.BRONZE and size.replicas > 1:
        found["disruption-budget.yaml"] = _disruption_budget(tenant)
    if tenant.app.metrics_path:
        found["service-monitor.yaml"] = service_monitor(tenant)
    if has_agent(tenant):
        found["secrets-agent.yaml"] = secrets_agent.config_map(tenant, stage)
    return found


def _ingress(tenant: Tenant, stage: Stage) -> Object:
    inside = tenant.hostnames(stage)
    outside = tenant.app.environments[stage].outside_hostnames
    backend = {"service": {"name": tenant.name, "port": {"name": HTTP_PORT}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    rules = [{"host": host, "http": {"paths": [path]}} for host in [*inside, *outside]]
    # The server outside ends TLS for its own names; inside ones have the certificate here.
    spec = {
        "ingressClassName": INGRESS_CLASS,
        "tls": [{"hosts": inside, "secretName": TLS_SECRET}],
        "rules": rules,
    }
    return a_manifest("networking.k8s.io/v1", "Ingress", tenant.name, tenant.labels, spec=spec)


def _autoscaler(tenant: Tenant, least: int, most: int) -> Object:
    target = {"type": "Utilization", "averageUtilization": CPU_PERCENT_TO_SCALE_AT}
    # The application's container alone: the agent beside it idles.
    metric = {"name": "cpu", "container": APP_CONTAINER, "target": target}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": tenant.name},
        "minReplicas": least,
        "maxReplicas": most,
        "metrics": [{"type": "ContainerResource", "containerResource": metric}],
    }
    return a_manifest(
        "autoscaling/v2", "HorizontalPodAutoscaler", tenant.name, tenant.labels, spec=spec
    )


def _disruption_budget(tenant: Tenant) -> Object:
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector(tenant)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return a_manifest("policy/v1", "PodDisruptionBudget", tenant.name, tenant.labels, spec=spec)


def deployment_patch(tenant: Tenant, stage: Stage) -> Object:
    """Return what a stage changes of the Deployment, besides image and replicas."""
    resources = container_resources(resources_of(tenant, stage))
    template: Object = {
        "spec": {"containers": [{"name": APP_CONTAINER, "resources": resources}]},
    }
    if has_agent(tenant):
        configuration = secrets_agent.config_map(tenant, stage)["data"]
        template["metadata"] = {"annotations": {AGENT_DIGEST: digest(configuration)}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": tenant.name},
        "spec": {"template": template},
    }


# --- as kustomize puts it together -----------------------------------------------------------


def rendered(tenant: Tenant, stage: Stage) -> list[Object]:
    """Return a stage's objects as `kustomize build` of its overlay gives them."""
    found = [*base_objects(tenant).values(), *stage_objects(tenant, stage).values()]
    complete = [copy.deepcopy(document) for document in found]
    for document in complete:
        document["metadata"]["namespace"] = tenant.scoped(stage)
        document["metadata"]["labels"][STAGE_LABEL] = stage.value
        if document["kind"] == "Deployment":
            _complete(document["spec"], tenant, stage)
    return complete


def _complete(spec: dict[str, Any], tenant: Tenant, stage: Stage) -> None:
    size = size_of(tenant, stage)
    if not size.is_scaled:
        spec["replicas"] = size.replicas
    template = spec["template"]
    template["metadata"]["labels"][STAGE_LABEL] = stage.value
    patch = deployment_patch(tenant, stage)["spec"]["template"]
    template["metadata"].update(copy.deepcopy(patch.get("metadata", {})))
    container = template["spec"]["containers"][0]
    container["resources"] = copy.deepcopy(patch["spec"]["containers"][0]["resources"])
    if not tenant.app.image:
        container["image"] = f"{image_name(tenant)}:{image_tag(tenant, stage)}"
