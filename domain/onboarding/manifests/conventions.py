"""Names and labels of the platform's own parts that an application's objects refer to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain.manifest_order import Manifest
from domain.onboarding.app_spec import Stage
from domain.onboarding.tenant import APP_LABEL, STAGE_LABEL, Tenant

Object = dict[str, Any]

INGRESS_NAMESPACE = "ingress-nginx"
INGRESS_CLASS = "nginx"
MONITORING_NAMESPACE = "monitoring"
DNS_NAMESPACE = "kube-system"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
APP_CONTAINER = "app"
HTTP_PORT = "http"
UNBUILT_TAG = "unbuilt"
"""Tag of a stage before the first deployment: names no image, so nothing old can start."""

APP_USER = 10001
"""User and group of every application's processes; no image needs to name one of its own."""


def stage_labels(tenant: Tenant, stage: Stage) -> dict[str, str]:
    """Return the labels of an object of one stage."""
    return {**tenant.labels, STAGE_LABEL: stage.value}


def selector(tenant: Tenant) -> dict[str, str]:
    """Return what selects the application's pods in its namespace; must never change."""
    return {APP_LABEL: tenant.name}


def a_manifest(
    api_version: str,
    kind: str,
    name: str,
    labels: Mapping[str, str],
    namespace: str = "",
    **parts: Any,
) -> Object:
    """Return an object with its identity and labels."""
    metadata: Object = {"name": name, "labels": dict(labels)}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}


__all__ = ["Manifest", "Object"]
