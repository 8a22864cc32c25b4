"""The rules that every object of an application keeps, judged on the rendered manifests.

Exists because a refusal by the cluster comes late, one at a time and in the middle of a run.
Promises every violation at once, each with the object, the reason and the fix, before anything is
made; and that what the cluster itself enforces (Pod Security, quota) is judged as it would be.
Refuses to look at a system: who else claims a host name is told to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from domain.findings import Finding, error
from domain.manifest_order import Manifest
from domain.onboarding.manifests.sizing import has_agent
from domain.onboarding.manifests.tenancy import POD_SECURITY_LEVEL, tenancy_objects
from domain.onboarding.manifests.workload import rendered
from domain.onboarding.pod_security import containers, pod_template, restricted_faults
from domain.onboarding.quantities import quantity
from domain.onboarding.tenant import APP_LABEL, MANAGED_BY, STAGE_LABEL, TEAM_LABEL, Tenant

PLATFORM_PROJECT = "platform"
"""Harbor project of images that the platform itself gives to applications."""

REQUIRED_LABELS = ("app.kubernetes.io/managed-by", APP_LABEL, TEAM_LABEL, STAGE_LABEL)
CEILING: Mapping[str, str] = {
    "limits.memory": "256Gi",
    "pods": "160",
    "requests.cpu": "64",
    "requests.memory": "256Gi",
}
"""The most that one stage of one application may reserve; more is a matter for people."""

CLUSTER_KINDS = frozenset(
    {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "PriorityClass"}
)
_RESERVED_FIELDS = ("requests.cpu", "requests.memory", "limits.memory")


@dataclass(frozen=True)
class Rules:
    """What the judge has to know of the platform and of the application."""

    app: str
    registry: str
    domain: str
    namespaces: frozenset[str]
    platform_hosts: frozenset[str] = frozenset()
    """Names of the platform's own servers."""
    outside_hosts: frozenset[str] = frozenset()
    """Names whose TLS ends at the server outside the cluster."""
    claimed: Mapping[str, str] = field(default_factory=dict)
    """Host names of other applications, with the application."""


def rules_of(tenant: Tenant, claimed: Mapping[str, str]) -> Rules:
    """Return the rules of one application."""
    platform = tenant.platform
    urls = [platform.gitlab_url, platform.gitops_url, platform.gateway_url, platform.openbao_url]
    urls.append(f"https://{platform.registry}")
    outside = [spec.outside_hostnames for spec in tenant.app.environments.values()]
    return Rules(
        app=tenant.name,
        registry=platform.registry,
        domain=platform.domain,
        namespaces=frozenset(tenant.namespaces),
        platform_hosts=frozenset(filter(None, (urlsplit(url).hostname for url in urls))),
        outside_hosts=frozenset(name for names in outside for name in names),
        claimed=claimed,
    )


def evaluate(tenant: Tenant, claimed: Mapping[str, str] | None = None) -> list[Finding]:
    """Return every violation of an application's manifests, of all of its stages.

    `claimed` are host names of other applications, each with that application's name.
    """
    objects: list[Manifest] = []
    for stage in tenant.app.stages:
        objects += [*tenancy_objects(tenant, stage), *rendered(tenant, stage)]
    return [*_platform(tenant), *judge(objects, rules_of(tenant, claimed or {}))]


def _platform(tenant: Tenant) -> Iterator[Finding]:
    """Tell what the platform does not have that the application wants."""
    if has_agent(tenant) and not tenant.platform.openbao_url:
        yield error(
            "secrets",
            f"{tenant.name} wants secrets or a database, and no address of OpenBao is known",
            "Set openbao_url of the platform.",
        )
    if tenant.app.database and not tenant.platform.database_address:
        yield error(
            "database",
            f"{tenant.name} wants a database, and no address of PostgreSQL is known",
            "Set database_address of the platform.",
        )
    if tenant.platform.outside_address == "":
        for stage, spec in tenant.app.environments.items():
            for name in spec.outside_hostnames:
                yield error(
                    f"host name {name}",
                    f"{stage.value} wants it outside the cluster, where no server is",
                    "Move it to hostnames, or set outside_address of the platform.",
                )


def judge(objects: Sequence[Manifest], rules: Rules) -> list[Finding]:
    """Return every violation of the rules by the objects."""
    found: list[Finding] = []
    for manifest in objects:
        found += _place_and_labels(manifest, rules)
        found += _pods(manifest, rules)
        found += _kinds(manifest)
        if manifest.get("kind") == "Ingress":
            found += _ingress(manifest, rules)
    return [*found, *_namespaces(objects, rules), *_quotas(objects)]


def _metadata(manifest: Manifest) -> Mapping[str, Any]:
    found = manifest.get("metadata")
    return found if isinstance(found, Mapping) else {}


def _subject(manifest: Manifest) -> str:
    metadata = _metadata(manifest)
    place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{manifest.get('kind')} {place}{metadata.get('name')}"


# --- every object ----------------------------------------------------------------------------


def _place_and_labels(manifest: Manifest, rules: Rules) -> Iterator[Finding]:
    metadata, subject = _metadata(manifest), _subject(manifest)
    kind = manifest.get("kind")
    place = metadata.get("name") if kind == "Namespace" else metadata.get("namespace")
    if kind in CLUSTER_KINDS:
        yield error(subject, "belongs to the whole cluster", "Ask the platform's owners for it.")
    elif place not in rules.namespaces:
        yield error(
            subject,
            f"is outside the application's namespaces {', '.join(sorted(rules.namespaces))}",
            "Put it into one of them.",
        )
    labels = metadata.get("labels") or {}
    missing = [label for label in REQUIRED_LABELS if not labels.get(label)]
    if missing:
        yield error(subject, f"has no label {', '.join(missing)}", "Add it.")
    wanted = {APP_LABEL: rules.app, REQUIRED_LABELS[0]: MANAGED_BY}
    for label, value in wanted.items():
        if labels.get(label) not in (None, "", value):
            yield error(subject, f"has the label {label}={labels[label]}", f"Set it to {value}.")


def _kinds(manifest: Manifest) -> Iterator[Finding]:
    kind, subject = manifest.get("kind"), _subject(manifest)
    spec = manifest.get("spec") or {}
    if kind == "Secret":
        yield error(subject, "would put a value into Git", "Keep it in OpenBao.")
    if kind == "Service":
        if spec.get("type", "ClusterIP") != "ClusterIP":
            yield error(
                subject, f"is of type {spec['type']}", "Use ClusterIP; an Ingress is the way in."
            )
        if spec.get("externalIPs"):
            yield error(subject, "takes externalIPs", "Remove them.")
    if kind == "RoleBinding" and (manifest.get("roleRef") or {}).get("kind") == "ClusterRole":
        yield error(subject, "binds a role of the whole cluster", "Bind a Role of the namespace.")


# --- pods ------------------------------------------------------------------------------------


def _pods(manifest: Manifest, rules: Rules) -> Iterator[Finding]:
    pod = pod_template(manifest)
    if pod is None:
        return
    subject = _subject(manifest)
    for fault in restricted_faults(pod):
        yield error(subject, fault.text, fault.fix)
    for container in containers(pod):
        whose = f"container {container.get('name')}"
        for text, fix in _image(str(container.get("image") or ""), rules):
            yield error(subject, f"{whose}: {text}", fix)
        for text, fix in _resources(container.get("resources") or {}):
            yield error(subject, f"{whose}: {text}", fix)


def _image(image: str, rules: Rules) -> Iterator[tuple[str, str]]:
    name, _, digest = image.partition("@")
    last = name.rpartition("/")[2]
    tag = last.partition(":")[2]
    if not image:
        yield "has no image", "Name one with its tag."
    elif not tag and not digest:
        yield f"the image {image} has neither tag nor digest", "Name a version."
    elif tag == "latest" and not digest:
        yield f"the image {image} has the tag latest, which changes", "Name a version."
    prefix = f"{rules.registry}/"
    if image.startswith(prefix):
        project = image.removeprefix(prefix).partition("/")[0]
        if project not in (rules.app, PLATFORM_PROJECT):
            yield (
                f"the image {image} is of the project {project}",
                f"Use an image of {rules.app}.",
            )


def _resources(resources: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    wanted = [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")]
    for group, name in wanted:
        if quantity((resources.get(group) or {}).get(name)) is None:
            yield f"has no {group}.{name}", f"Set resources.{group}.{name}."
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name, limit in limits.items():
        most, reserved = quantity(limit), quantity(requests.get(name))
        if most is not None and reserved is not None and most < reserved:
            yield f"reserves more {name} than its limit of {limit}", "Raise the limit."


# --- host names ------------------------------------------------------------------------------


def _ingress(manifest: Manifest, rules: Rules) -> Iterator[Finding]:
    subject, spec = _subject(manifest), manifest.get("spec") or {}
    tls = spec.get("tls") or []
    secured = {
        host for entry in tls if entry.get("secretName") for host in entry.get("hosts") or []
    }
    if spec.get("defaultBackend"):
        yield error(subject, "answers every host name", "Remove defaultBackend; name the hosts.")
    for rule in spec.get("rules") or []:
        host = str(rule.get("host") or "")
        for text, fix in _host_name(host, rules):
            yield error(subject, text, fix)
        if host and host not in secured | rules.outside_hosts:
            yield error(subject, f"{host} has no TLS", "Add it to spec.tls with its Secret.")


def _host_name(host: str, rules: Rules) -> Iterator[tuple[str, str]]:
    if not host:
        yield "a rule names no host, so it would answer all", "Name the host."
    elif "*" in host:
        yield f"{host} is a wildcard, which takes others' names", "Name each host."
    elif host == rules.domain or host in rules.platform_hosts:
        yield f"{host} is the platform's own", f"Use a name below {rules.domain}."
    elif host in rules.claimed:
        yield f"{host} belongs to {rules.claimed[host]}", "Choose another host name."


# --- namespaces and quotas -------------------------------------------------------------------


def _by_namespace(objects: Iterable[Manifest], kind: str) -> dict[str, list[Manifest]]:
    found: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in objects:
        if manifest.get("kind") == kind:
            found[str(_metadata(manifest).get("namespace") or "")].append(manifest)
    return found


def _namespaces(objects: Sequence[Manifest], rules: Rules) -> Iterator[Finding]:
    policies = _by_namespace(objects, "NetworkPolicy")
    quotas, limits = _by_namespace(objects, "ResourceQuota"), _by_namespace(objects, "LimitRange")
    made = {_metadata(m).get("name"): m for m in objects if m.get("kind") == "Namespace"}
    for name in sorted(rules.namespaces):
        subject = f"Namespace {name}"
        labels = _metadata(made.get(name, {})).get("labels") or {}
        if labels.get("pod-security.kubernetes.io/enforce") != POD_SECURITY_LEVEL:
            yield error(
                subject,
                f"does not enforce Pod Security {POD_SECURITY_LEVEL}",
                f"Set the label pod-security.kubernetes.io/enforce to {POD_SECURITY_LEVEL}.",
            )
        if not any(_denies_all(policy) for policy in policies[name]):
            yield error(subject, "has no NetworkPolicy that denies by default", "Add default-deny.")
        if not quotas[name]:
            yield error(subject, "has no ResourceQuota", "Add one.")
        if not limits[name]:
            yield error(subject, "has no LimitRange", "Add one.")


def _denies_all(policy: Manifest) -> bool:
    spec = policy.get("spec") or {}
    rules = [*(spec.get("ingress") or []), *(spec.get("egress") or [])]
    types = set(spec.get("policyTypes") or [])
    return spec.get("podSelector") == {} and types == {"Ingress", "Egress"} and not rules


def _quotas(objects: Sequence[Manifest]) -> Iterator[Finding]:
    most = {
        (namespace, (m["spec"].get("scaleTargetRef") or {}).get("name")): m["spec"]["maxReplicas"]
        for namespace, scalers in _by_namespace(objects, "HorizontalPodAutoscaler").items()
        for m in scalers
    }
    for namespace, quotas in _by_namespace(objects, "ResourceQuota").items():
        needed: dict[str, Decimal] = defaultdict(Decimal)
        for deployment in _by_namespace(objects, "Deployment")[namespace]:
            spec, name = deployment["spec"], _metadata(deployment).get("name")
            pods = most.get((namespace, name), spec.get("replicas", 1)) + _surge(spec)
            needed["pods"] += pods
            for field_name, amount in _reserved(spec["template"]["spec"]).items():
                needed[field_name] += amount * pods
        for quota in quotas:
            yield from _fits(_subject(quota), (quota.get("spec") or {}).get("hard") or {}, needed)


def _surge(spec: Mapping[str, Any]) -> int:
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge = rolling.get("maxSurge", 1)
    return surge if isinstance(surge, int) else max(1, int(spec.get("replicas", 1)))


def _reserved(pod: Mapping[str, Any]) -> dict[str, Decimal]:
    """Return what one pod reserves: its containers and the side cars that stay."""
    staying = [c for c in pod.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    found: dict[str, Decimal] = {}
    for field_name in _RESERVED_FIELDS:
        group, name = field_name.split(".")
        amounts = [
            quantity(((container.get("resources") or {}).get(group) or {}).get(name))
            for container in [*staying, *(pod.get("containers") or [])]
        ]
        found[field_name] = sum((amount for amount in amounts if amount), Decimal())
    return found


def _fits(
    subject: str, hard: Mapping[str, Any], needed: Mapping[str, Decimal]
) -> Iterator[Finding]:
    for name, limit in hard.items():
        amount = quantity(limit)
        if amount is None:
            yield error(subject, f"{name} is {limit!r}, which is no quantity", "Correct it.")
        elif needed.get(name, Decimal()) > amount:
            yield error(
                subject,
                f"{name} allows {limit}, and the application may need {needed[name]:f}",
                "Lower replicas or resources.",
            )
    for name, ceiling in CEILING.items():
        amount = quantity(hard.get(name))
        if amount is None or amount > (quantity(ceiling) or 0):
            yield error(
                subject,
                f"{name} is {hard.get(name, 'without limit')}, and one stage may have {ceiling}",
                "Lower replicas or resources, or speak to the platform's owners.",
            )
