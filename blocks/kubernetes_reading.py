"""What objects of a Kubernetes API server say: conditions, nodes, and whether an apply changed one.

Why it exists: kept apart from the requests, so that both stay readable. Promises to read only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blocks.kubernetes_transport import Answer
from domain.cluster_checks import NodeFact

PASSING_TAINTS = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
"""Follow the Ready condition a moment later, which is told by itself."""

Condition = Callable[[Mapping[str, Any]], bool]


def has_condition(kind: str, status: str = "True") -> Condition:
    """Return a test for an object's condition of that type and status."""

    def test(document: Mapping[str, Any]) -> bool:
        conditions = document.get("status", {}).get("conditions") or []
        return any(c.get("type") == kind and c.get("status") == status for c in conditions)

    return test


def node_fact(document: Mapping[str, Any]) -> NodeFact:
    status, spec = document.get("status", {}), document.get("spec", {})
    addresses = {a["type"]: a["address"] for a in status.get("addresses") or []}
    blocking = [
        taint
        for taint in spec.get("taints") or []
        if taint.get("effect") != "PreferNoSchedule" and taint.get("key") not in PASSING_TAINTS
    ]
    return NodeFact(
        name=str(document["metadata"]["name"]),
        is_ready=has_condition("Ready")(document),
        version=str(status.get("nodeInfo", {}).get("kubeletVersion", "")),
        address=str(addresses.get("InternalIP", "")),
        is_schedulable=not spec.get("unschedulable") and not blocking,
    )


def _content(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an object is, without what is only noted about it."""
    metadata = {
        name: value
        for name, value in document.get("metadata", {}).items()
        if name not in ("resourceVersion", "managedFields")
    }
    return {**document, "metadata": metadata, "status": None}


def is_same(before: Answer, after: Answer) -> bool:
    """Tell whether an apply changed nothing, though a controller may have written in between."""
    first, second = before.json, after.json
    versions = [d.get("metadata", {}).get("resourceVersion") for d in (first, second)]
    return versions[0] == versions[1] or _content(first) == _content(second)


def last_words(document: Mapping[str, Any]) -> str:
    """Return why an object says that it is not well."""
    conditions = document.get("status", {}).get("conditions") or []
    said = [
        f"{c.get('type')} is {c.get('status')}"
        + (f" ({c['message'][:120]})" if c.get("message") else "")
        for c in conditions
    ]
    return ", ".join(said)[:300] or "it has no conditions yet"
