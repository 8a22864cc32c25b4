"""Where a Kubernetes object takes Secrets from, in every place that its schema allows.

Promises to find environment variables, whole-Secret environments, volumes (plain and projected),
pull credentials (the pod's and its account's), TLS of an Ingress, and the notes of OpenBao's agent.
A value in an environment is read once: the process must be restarted to see another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_WITH_TEMPLATE = frozenset(
    {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "Rollout"}
    | {"ReplicationController"}
)
_AGENT_NOTE = "vault.hashicorp.com/agent-inject-secret-"


@dataclass(frozen=True)
class Reference:
    """One place that takes a Secret, or that names OpenBao's path itself."""

    name: str
    how: str
    is_read_once: bool = False
    is_path: bool = False


def is_owned(item: Mapping[str, Any]) -> bool:
    """True when another workload made this one: its owner is the consumer, it is a copy."""
    owners = (item.get("metadata") or {}).get("ownerReferences") or []
    return any(owner.get("kind") in _WITH_TEMPLATE | {"CronJob"} for owner in owners)


def pod_references(
    item: Mapping[str, Any], accounts: Mapping[tuple[str, str], list[str]]
) -> Iterable[Reference]:
    """Yield what `item` refers to. `accounts`: (namespace, account) -> its pull credentials."""
    if item.get("kind") == "Ingress":
        for entry in (item.get("spec") or {}).get("tls") or []:
            if entry.get("secretName"):
                yield Reference(str(entry["secretName"]), "tls of the ingress")
        return
    template = _template(item)
    if template is None:
        return
    pod = template.get("spec") or {}
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(group) or []:
            yield from _environment(container)
    yield from _volumes(pod)
    for entry in pod.get("imagePullSecrets") or []:
        if entry.get("name"):
            yield Reference(str(entry["name"]), "pull credential")
    namespace = str((item.get("metadata") or {}).get("namespace") or "default")
    account = str(pod.get("serviceAccountName") or "default")
    for name in accounts.get((namespace, account), []):
        yield Reference(name, f"pull credential of account {account}")
    notes = (template.get("metadata") or {}).get("annotations") or {}
    for key, path in sorted(notes.items()):
        if key.startswith(_AGENT_NOTE):
            file = key.removeprefix(_AGENT_NOTE)
            yield Reference(str(path), f"agent file {file}", is_path=True)


def _template(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    kind, spec = item.get("kind"), item.get("spec") or {}
    if kind == "Pod":
        return item
    if kind == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    elif kind not in _WITH_TEMPLATE:
        return None
    template = spec.get("template")
    return template if isinstance(template, Mapping) else None


def _environment(container: Mapping[str, Any]) -> Iterable[Reference]:
    where = f"container {container.get('name')}"
    for entry in container.get("env") or []:
        source = (entry.get("valueFrom") or {}).get("secretKeyRef") or {}
        if source.get("name"):
            how = f"env {entry.get('name')} of {where}"
            yield Reference(str(source["name"]), how, is_read_once=True)
    for entry in container.get("envFrom") or []:
        source = entry.get("secretRef") or {}
        if source.get("name"):
            yield Reference(str(source["name"]), f"envFrom of {where}", is_read_once=True)


def _volumes(pod: Mapping[str, Any]) -> Iterable[Reference]:
    once = _mounted_by_sub_path(pod)
    for volume in pod.get("volumes") or []:
        label = str(volume.get("name"))
        names = [(volume.get("secret") or {}).get("secretName")]
        for source in (volume.get("projected") or {}).get("sources") or []:
            names.append((source.get("secret") or {}).get("name"))
        for name in names:
            if name:
                yield Reference(str(name), f"volume {label}", is_read_once=label in once)


def _mounted_by_sub_path(pod: Mapping[str, Any]) -> set[str]:
    """Volumes of which single files are mounted: the kubelet never updates those."""
    return {
        str(mount.get("name"))
        for group in ("initContainers", "containers")
        for container in pod.get(group) or []
        for mount in container.get("volumeMounts") or []
        if mount.get("subPath") or mount.get("subPathExpr")
    }
