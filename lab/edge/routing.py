"""Which Service answers for a host and a path, as the Ingress objects say.

What it promises: the longest path wins, `Exact` before `Prefix`, and a prefix ends at a slash, as
the Ingress API says.
API: https://kubernetes.io/docs/concepts/services-networking/ingress/#path-types
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Route:
    """One path of one host."""

    host: str
    path: str
    is_exact: bool
    namespace: str
    service: str
    port: str
    """Name or number of the Service's port."""

    def matches(self, path: str) -> bool:
        if self.is_exact:
            return path == self.path
        prefix = self.path.rstrip("/")
        return path == prefix or path.startswith(f"{prefix}/")


@dataclass(frozen=True)
class TlsName:
    """A host whose certificate lies in a Secret."""

    host: str
    namespace: str
    secret: str


def routes(ingresses: Iterable[Mapping[str, Any]]) -> list[Route]:
    """Every route of the Ingresses, best match first."""
    found = []
    for ingress in ingresses:
        namespace = ingress["metadata"]["namespace"]
        for rule in ingress.get("spec", {}).get("rules") or []:
            for path in (rule.get("http") or {}).get("paths") or []:
                service = path.get("backend", {}).get("service")
                if not service:
                    continue
                port = service.get("port") or {}
                found.append(
                    Route(
                        host=str(rule.get("host", "")),
                        path=str(path.get("path") or "/"),
                        is_exact=path.get("pathType") == "Exact",
                        namespace=namespace,
                        service=str(service["name"]),
                        port=str(port.get("name") or port.get("number") or ""),
                    )
                )
    return sorted(found, key=lambda route: (-len(route.path), not route.is_exact))


def tls_names(ingresses: Iterable[Mapping[str, Any]]) -> dict[str, TlsName]:
    """The Secret of each host that is served by TLS."""
    return {
        host: TlsName(host, ingress["metadata"]["namespace"], entry["secretName"])
        for ingress in ingresses
        for entry in ingress.get("spec", {}).get("tls") or []
        if entry.get("secretName")
        for host in entry.get("hosts") or []
    }
