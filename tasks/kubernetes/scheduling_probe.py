"""A Deployment that shows whether the cluster schedules: made, looked at, removed.

Promises one pod per Node that takes pods (up to a bound), kept apart by a topology spread, and
that the Deployment is gone afterwards, however the look ended; what a killed run left behind is
removed before the next look. Refuses to run where the platform's probe namespace is absent.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from domain.cluster_checks import NodeFact, PlacementFacts
from domain.errors import Unreachable
from domain.manifest_order import ObjectKey

NAMESPACE = "infraflows-probe"
NAME = "scheduling-probe"
IMAGE = "index.docker.io/rancher/mirrored-pause:3.6"
"""RKE2 carries this image itself (it is every pod's sandbox), so that no registry is needed."""

PODS_AT_MOST = 10
AVAILABLE_SECONDS = 60.0
GONE_SECONDS = 60.0
DEPLOYMENT = ObjectKey("apps/v1", "Deployment", NAMESPACE, NAME)


def probe_deployment(replicas: int) -> dict[str, Any]:
    """Return a Deployment that the `restricted` Pod Security level admits."""
    labels = {"app.kubernetes.io/name": NAME}
    container = {
        "name": "pause",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65535,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": labels},
            }
        ],
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _is_available(document: dict[str, Any], replicas: int) -> bool:
    status = document.get("status", {})
    is_current = status.get("observedGeneration") == document["metadata"].get("generation")
    return bool(is_current and status.get("availableReplicas", 0) >= replicas)


def place_probe(
    api: KubernetesApi, nodes: tuple[NodeFact, ...], timeout_seconds: float = AVAILABLE_SECONDS
) -> PlacementFacts:
    """Schedule the probe over the Nodes that take pods and return where its pods run.

    Raises:
        NotFound: the probe's namespace does not exist. Unreachable: the API does not serve.
    """
    takers = [node for node in nodes if node.is_ready and node.is_schedulable]
    replicas = min(len(takers), PODS_AT_MOST)
    if replicas == 0:
        return PlacementFacts(wanted=0, available=0, nodes=())
    remove_probe(api)
    try:
        api.apply(probe_deployment(replicas))
        # Too few pods is a finding; an API that is away shows itself in the next request.
        with suppress(Unreachable):
            api.wait_for(
                DEPLOYMENT,
                lambda document: _is_available(dict(document), replicas),
                "available",
                timeout_seconds,
            )
        status = api.get(DEPLOYMENT).get("status", {})
        pods = api.list("v1", "Pod", NAMESPACE, f"app.kubernetes.io/name={NAME}")
        ran_on = [str(pod["spec"]["nodeName"]) for pod in pods if pod["spec"].get("nodeName")]
        return PlacementFacts(
            wanted=replicas,
            available=int(status.get("availableReplicas", 0)),
            nodes=tuple(sorted(ran_on)),
        )
    finally:
        remove_probe(api)


def remove_probe(api: KubernetesApi) -> None:
    """Delete the Deployment with its pods and wait until it is gone; absent is fine."""
    if api.delete(DEPLOYMENT):
        api.wait_until_gone(DEPLOYMENT, GONE_SECONDS)
