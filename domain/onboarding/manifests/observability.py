"""What is watched of an application, and who is told: by its service level.

Bronze problems become tickets, silver ones warn in working hours, gold ones wake somebody. Alerts
rest on what the platform measures of every application (kube-state-metrics, the ingress controller,
the kubelet), so that they work for applications without metrics of their own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from domain.onboarding.app_spec import ServiceLevel, Stage
from domain.onboarding.manifests.conventions import HTTP_PORT, Object, a_manifest, selector
from domain.onboarding.tenant import STAGE_LABEL, Tenant

DASHBOARD_LABEL = "grafana_dashboard"
"""What Grafana's side car looks for."""


@dataclass(frozen=True)
class Attention:
    """How an alert of a service level is treated."""

    severity: str
    patience: str
    """How long something is wrong before anybody is told."""
    error_percent: int


ATTENTION = {
    ServiceLevel.BRONZE: Attention("info", "30m", 10),
    ServiceLevel.SILVER: Attention("warning", "10m", 5),
    ServiceLevel.GOLD: Attention("critical", "3m", 1),
}
OUTSIDE_PRODUCTION = Attention("info", "30m", 10)


def attention_of(tenant: Tenant, stage: Stage) -> Attention:
    """Return how alerts of a stage are treated: nobody is woken for staging."""
    if stage is not Stage.PRODUCTION:
        return OUTSIDE_PRODUCTION
    return ATTENTION[tenant.app.service_level]


def service_monitor(tenant: Tenant) -> Object:
    """Return what makes Prometheus read the application's own metrics."""
    endpoint = {"port": HTTP_PORT, "path": tenant.app.metrics_path, "interval": "30s"}
    spec = {"selector": {"matchLabels": selector(tenant)}, "endpoints": [endpoint]}
    return a_manifest(
        "monitoring.coreos.com/v1", "ServiceMonitor", tenant.name, tenant.labels, spec=spec
    )


def _queries(tenant: Tenant, stage: Stage) -> dict[str, str]:
    here = f'namespace="{tenant.scoped(stage)}"'
    deployment = f'{here},deployment="{tenant.name}"'
    requests = f'nginx_ingress_controller_requests{{exported_{here},ingress="{tenant.name}"'
    return {
        "available": f"kube_deployment_status_replicas_available{{{deployment}}}",
        "wanted": f"kube_deployment_spec_replicas{{{deployment}}}",
        "restarts": f"sum(increase(kube_pod_container_status_restarts_total{{{here}}}[15m]))",
        "requests": f"sum(rate({requests}}}[5m]))",
        "errors": f'sum(rate({requests},status=~"5.."}}[5m])) / sum(rate({requests}}}[5m]))',
        "memory": f'max(container_memory_working_set_bytes{{{here},container="app"}}) / '
        f'max(kube_pod_container_resource_limits{{{here},container="app",resource="memory"}})',
        "processor": f'sum(rate(container_cpu_usage_seconds_total{{{here},container="app"}}[5m]))',
    }


def alert_rules(tenant: Tenant, stage: Stage) -> Object:
    """Return the alerts of one stage."""
    query, how = _queries(tenant, stage), attention_of(tenant, stage)
    what = f"{tenant.name} in {stage.value}"
    rules = [
        ("AppDown", f"{query['available']} == 0", f"{what} has no replica that answers"),
        (
            "AppReplicasMissing",
            f"{query['available']} < {query['wanted']}",
            f"{what} has only {{{{ $value }}}} replicas that answer",
        ),
        (
            "AppErrors",
            f"{query['errors']} > {how.error_percent / 100}",
            f"{what} fails {{{{ $value | humanizePercentage }}}} of its requests",
        ),
        ("AppRestarts", f"{query['restarts']} > 3", f"{what} restarts again and again"),
        ("AppMemory", f"{query['memory']} > 0.9", f"{what} is close to its limit of memory"),
    ]
    labels = {
        "severity": how.severity,
        "app": tenant.name,
        "team": tenant.app.team,
        "stage": stage.value,
        "service_level": tenant.app.service_level.value,
    }
    made = [
        {
            "alert": name,
            "expr": expression,
            "for": how.patience,
            "labels": labels,
            "annotations": {"summary": summary},
        }
        for name, expression, summary in rules
    ]
    spec = {"groups": [{"name": f"{tenant.scoped(stage)}", "rules": made}]}
    return a_manifest(
        "monitoring.coreos.com/v1", "PrometheusRule", tenant.name, tenant.labels, spec=spec
    )


def dashboard(tenant: Tenant, stage: Stage) -> Object:
    """Return the application's Grafana dashboard."""
    query = _queries(tenant, stage)
    panels = [
        ("Requests per second", query["requests"], "reqps"),
        ("Share of failed requests", query["errors"], "percentunit"),
        ("Replicas that answer", query["available"], "none"),
        ("Restarts in 15 minutes", query["restarts"], "none"),
        ("Processor, in cores", query["processor"], "none"),
        ("Memory, of its limit", query["memory"], "percentunit"),
    ]
    content = {
        "uid": f"app-{tenant.scoped(stage)}",
        "title": f"{tenant.name} · {stage.value}",
        "tags": ["infraflows", f"team:{tenant.app.team}", f"{STAGE_LABEL}:{stage.value}"],
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "schemaVersion": 39,
        "panels": [_panel(number, *panel) for number, panel in enumerate(panels)],
    }
    labels = {**tenant.labels, DASHBOARD_LABEL: "1"}
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    name = f"{tenant.name}-dashboard"
    return a_manifest("v1", "ConfigMap", name, labels, data={f"{tenant.scoped(stage)}.json": text})


def _panel(number: int, title: str, expression: str, unit: str) -> Object:
    return {
        "id": number + 1,
        "title": title,
        "type": "timeseries",
        "datasource": {"type": "prometheus"},
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}},
        "targets": [{"refId": "A", "expr": expression}],
    }
