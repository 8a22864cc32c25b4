"""Who may speak to an application and to whom it may speak: nobody, but for what it needs."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any
from urllib.parse import urlsplit

from domain.onboarding.app_spec import Stage
from domain.onboarding.manifests.conventions import (
    DNS_NAMESPACE,
    INGRESS_NAMESPACE,
    MONITORING_NAMESPACE,
    NAMESPACE_NAME_LABEL,
    Object,
    a_manifest,
    selector,
    stage_labels,
)
from domain.onboarding.manifests.sizing import has_agent
from domain.onboarding.tenant import Tenant

DEFAULT_DENY = "default-deny"
OPENBAO_PORT = 8200
POSTGRESQL_PORT = 5432


def network_policies(tenant: Tenant, stage: Stage) -> list[Object]:
    """Return the network policies of a stage's namespace."""
    found = [
        _policy(
            tenant, stage, DEFAULT_DENY, {"policyTypes": ["Ingress", "Egress"]}, every_pod=True
        ),
        _policy(tenant, stage, "allow-dns", _egress(*_dns()), every_pod=True),
        _policy(tenant, stage, "allow-ingress-controller", _from(INGRESS_NAMESPACE, tenant)),
    ]
    if tenant.app.metrics_path:
        found.append(
            _policy(tenant, stage, "allow-monitoring", _from(MONITORING_NAMESPACE, tenant))
        )
    if has_agent(tenant):
        address = urlsplit(tenant.platform.openbao_url)
        rule = _to(address.hostname or "", address.port or OPENBAO_PORT)
        found.append(_policy(tenant, stage, "allow-openbao", _egress(rule)))
    if tenant.app.database:
        host, port = split_address(tenant.platform.database_address)
        found.append(_policy(tenant, stage, "allow-database", _egress(_to(host, port))))
    return found


def split_address(address: str) -> tuple[str, int]:
    """Return the host and port of PostgreSQL."""
    host, _, port = address.partition(":")
    return host, int(port) if port else POSTGRESQL_PORT


def _policy(
    tenant: Tenant, stage: Stage, name: str, spec: Object, *, every_pod: bool = False
) -> Object:
    pods: Object = {} if every_pod else {"matchLabels": selector(tenant)}
    return a_manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        name,
        stage_labels(tenant, stage),
        tenant.scoped(stage),
        spec={"podSelector": pods, **spec},
    )


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: name}}}


def _from(namespace: str, tenant: Tenant) -> Object:
    port = {"protocol": "TCP", "port": tenant.app.port}
    return {
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [_namespace(namespace)], "ports": [port]}],
    }


def _egress(*rules: Object) -> Object:
    return {"policyTypes": ["Egress"], "egress": list(rules)}


def _dns() -> list[Object]:
    server = {**_namespace(DNS_NAMESPACE), "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    ports = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    return [{"to": [server], "ports": ports}]


def _to(host: str, port: int) -> Object:
    """Return a rule to an address; a network policy knows no names, so a name opens the port."""
    rule: dict[str, Any] = {"ports": [{"protocol": "TCP", "port": port}]}
    try:
        return {"to": [{"ipBlock": {"cidr": f"{IPv4Address(host)}/32"}}], **rule}
    except ValueError:
        return rule
