"""In which order objects can be given to a Kubernetes API server.

Why it exists: an object that needs another is refused until that other is there: everything needs
its Namespace, a custom resource needs its definition, a binding its role. Promises waves that may
each be applied at once, the same for the same objects, whatever their order was. Refuses objects
without identity and an identity that is given twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from domain.errors import InvalidSpec

Manifest = Mapping[str, Any]

DEFINITION_KIND = "CustomResourceDefinition"

_WAVE_OF_KIND = {
    "Namespace": 0,
    DEFINITION_KIND: 0,
    "PriorityClass": 1,
    "StorageClass": 1,
    "IngressClass": 1,
    "ServiceAccount": 1,
    "ClusterRole": 1,
    "Role": 1,
    "NetworkPolicy": 1,
    "LimitRange": 1,
    "ResourceQuota": 1,
    "ConfigMap": 1,
    "Secret": 1,
    "ClusterRoleBinding": 2,
    "RoleBinding": 2,
    "Service": 2,
    "PersistentVolumeClaim": 2,
}
_WORKLOADS = 3
_CUSTOM_RESOURCES = 4
_NAMES_ANOTHER = {"L2Advertisement", "BGPAdvertisement", "Application", "ApplicationSet"}
"""Custom resources that name another one, which has to be there first."""

_BUILT_IN_GROUPS = frozenset(
    {
        "",
        "apps",
        "batch",
        "autoscaling",
        "policy",
        "apiextensions.k8s.io",
        "networking.k8s.io",
        "rbac.authorization.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "node.k8s.io",
        "admissionregistration.k8s.io",
        "apiregistration.k8s.io",
    }
)


@dataclass(frozen=True, order=True)
class ObjectKey:
    """What an object is called, in full."""

    api_version: str
    kind: str
    namespace: str
    """Empty for an object of the whole cluster."""
    name: str

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def text(self) -> str:
        """As people write it: `NetworkPolicy argocd/default-deny`."""
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True)
class Wave:
    """Objects that do not need each other."""

    number: int
    objects: tuple[Manifest, ...]


def key_of(manifest: Manifest) -> ObjectKey:
    """Return the identity of an object.

    Raises:
        InvalidSpec: it lacks a part of it.
    """
    metadata = manifest.get("metadata")
    found = metadata if isinstance(metadata, Mapping) else {}
    wanted = {
        "apiVersion": manifest.get("apiVersion"),
        "kind": manifest.get("kind"),
        "metadata.name": found.get("name"),
    }
    missing = [field for field, value in wanted.items() if not (isinstance(value, str) and value)]
    if missing:
        known = " ".join(str(value) for value in wanted.values() if value) or "an object"
        raise InvalidSpec(
            "the manifests", [f"{known}: has no {field}. Add it" for field in missing]
        )
    return ObjectKey(
        api_version=str(wanted["apiVersion"]),
        kind=str(wanted["kind"]),
        namespace=str(found.get("namespace") or ""),
        name=str(wanted["metadata.name"]),
    )


def wave_number(key: ObjectKey) -> int:
    """Return the wave of an object: lower ones are applied, and waited for, before."""
    if key.group not in _BUILT_IN_GROUPS:
        return _CUSTOM_RESOURCES + (1 if key.kind in _NAMES_ANOTHER else 0)
    return _WAVE_OF_KIND.get(key.kind, _WORKLOADS)


def waves(manifests: Iterable[Manifest]) -> tuple[Wave, ...]:
    """Return the objects in waves, sorted by identity within each.

    Raises:
        InvalidSpec: objects without identity or given twice, all of them at once.
    """
    problems: list[str] = []
    keyed: list[tuple[ObjectKey, Manifest]] = []
    for manifest in manifests:
        try:
            keyed.append((key_of(manifest), manifest))
        except InvalidSpec as error:
            problems += error.problems
    counted = Counter((key.group, key.kind, key.namespace, key.name) for key, _ in keyed)
    for (_, kind, namespace, name), count in sorted(counted.items()):
        if count > 1:
            place = f"{namespace}/{name}" if namespace else name
            problems.append(f"{kind} {place}: is given {count} times. Keep one of them")
    if problems:
        raise InvalidSpec("the manifests", problems)
    numbers = sorted({wave_number(key) for key, _ in keyed})
    ordered = sorted(keyed, key=lambda pair: pair[0])
    return tuple(
        Wave(number, tuple(m for key, m in ordered if wave_number(key) == number))
        for number in numbers
    )
