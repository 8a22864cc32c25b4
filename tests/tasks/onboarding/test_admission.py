"""What the policies accept the API server accepts, and what they refuse it refuses."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.kubernetes_api import KubernetesApi
from blocks.kubernetes_transport import APPLY_PATCH, Answer, Transport, read_kubeconfig
from domain.manifest_order import ObjectKey
from domain.onboarding.app_spec import ServiceLevel, Stage
from domain.onboarding.manifests.sizing import size_of
from domain.onboarding.manifests.tenancy import tenancy_objects
from domain.onboarding.manifests.workload import rendered
from domain.onboarding.pod_security import restricted_faults
from domain.onboarding.policies import evaluate
from domain.onboarding.tenant import Tenant
from lab.bare_control_plane import BareControlPlane, node_manifest
from tasks.kubernetes.yaml_documents import load_documents

ROOT = Path(__file__).parents[3]
CASES: list[dict[str, Any]] = yaml.safe_load(
    (ROOT / "tests" / "cases" / "pod_security.yaml").read_text(encoding="utf-8")
)
NAMESPACE = "judged"
FULL = {
    "metrics_path": "/metrics",
    "database": {},
    "secrets": [{"path": "payment", "keys": ["API_KEY"]}],
    "environments": {"development": {}, "staging": {}, "production": {"replicas": 3}},
}


class Admission:
    """Asks the API server what it would say, without anything being made."""

    def __init__(self, kubeconfig: str) -> None:
        self._transport = Transport(read_kubeconfig(kubeconfig))

    def create_pod(self, pod: dict[str, Any]) -> Answer:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        return self._transport.send("POST", path, query={"dryRun": "All"}, body=pod)

    def apply(self, manifest: dict[str, Any], plural: str) -> Answer:
        version = manifest["apiVersion"]
        prefix = "/apis" if "/" in version else "/api"
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        return self._transport.send(
            "PATCH",
            f"{prefix}/{version}/namespaces/{namespace}/{plural}/{name}",
            query={"dryRun": "All", "fieldManager": "test", "fieldValidation": "Strict"},
            body=manifest,
            content_type=APPLY_PATCH,
        )


@pytest.fixture(scope="module")
def api(control_plane: BareControlPlane) -> Iterator[KubernetesApi]:
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as found:
        yield found


@pytest.fixture(scope="module")
def admission(control_plane: BareControlPlane, api: KubernetesApi) -> Admission:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": NAMESPACE, "labels": labels}
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    account = {"name": "default", "namespace": NAMESPACE}
    api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    return Admission(control_plane.kubeconfig)


def pod(base: dict[str, Any] | None = None) -> dict[str, Any]:
    security = {"runAsNonRoot": True, "runAsUser": 10001}
    container = {
        "name": "app",
        "image": "example.org/app:1",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return base or {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "case", "namespace": NAMESPACE},
        "spec": {
            "securityContext": {**security, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }


def changed(document: dict[str, Any], changes: list[dict[str, Any]]) -> dict[str, Any]:
    for change in changes:
        place: Any = document
        *way, last = change["at"]
        for part in way:
            place = place[part] if isinstance(part, int) else place.setdefault(part, {})
        if change["to"] == "__remove__":
            place.pop(last, None)
        else:
            place[last] = change["to"]
    return document


def is_accepted(answer: Answer) -> bool:
    """Tell whether Pod Security accepts; any other refusal is a mistake of the test."""
    if answer.status == 201:
        return True
    said = str(answer.json.get("message"))
    if "privileged: Forbidden: disallowed by cluster policy" in said:
        # This API server allows privileged containers at no level.
        return False
    assert answer.status == 403, said
    assert "violates PodSecurity" in said, said
    return False


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_the_api_server_gives_the_same_verdict(case: dict[str, Any], admission: Admission) -> None:
    answer = admission.create_pod(changed(pod(), case["changes"]))
    assert is_accepted(answer) is case["is_accepted"], answer.json.get("message")


OPTIONAL_FLAG = st.sampled_from([True, True, None, False])
PROFILES = st.sampled_from(
    [{"type": "RuntimeDefault"}, {"type": "RuntimeDefault"}, None, {"type": "Unconfined"}]
)
USERS = st.sampled_from([None, 1, 10001, 0])
CAPABILITIES = st.fixed_dictionaries(
    {},
    optional={
        "drop": st.lists(st.sampled_from(["ALL", "NET_RAW", "all"]), max_size=2),
        "add": st.lists(st.sampled_from(["NET_BIND_SERVICE", "CHOWN", "SYS_ADMIN"]), max_size=2),
    },
)
COMMON = {"runAsNonRoot": OPTIONAL_FLAG, "runAsUser": USERS, "seccompProfile": PROFILES}
OF_POD = st.fixed_dictionaries(COMMON)
OF_CONTAINER = st.fixed_dictionaries(
    {
        **COMMON,
        "allowPrivilegeEscalation": st.sampled_from([False, False, False, None, True]),
        "capabilities": st.one_of(st.just({"drop": ["ALL"]}), CAPABILITIES, st.none()),
    }
)


def without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in value.items() if part is not None}


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(OF_POD, st.lists(OF_CONTAINER, min_size=1, max_size=2), st.booleans())
def test_any_mixture_of_security_contexts_gets_the_same_verdict(
    admission: Admission, of_pod: Any, of_containers: Any, has_init: bool
) -> None:
    document = pod()
    document["spec"]["securityContext"] = without_none(of_pod)
    made = [
        {
            "name": f"c{number}",
            "image": "example.org/app:1",
            "securityContext": without_none(context),
        }
        for number, context in enumerate(of_containers)
    ]
    document["spec"]["containers"] = made[:1] if has_init else made
    if has_init:
        document["spec"]["initContainers"] = made[1:]
    assert is_accepted(admission.create_pod(document)) is (restricted_faults(document) == [])


PLURALS = {
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "Ingress": "ingresses",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PrometheusRule": "prometheusrules",
    "Service": "services",
    "ServiceMonitor": "servicemonitors",
}


@pytest.fixture(scope="module")
def monitoring(api: KubernetesApi) -> None:
    """The definitions that the platform brings to every cluster."""
    directory = ROOT / "tasks" / "kubernetes" / "manifests" / "40-monitoring" / "definitions"
    for name in ("prometheusrules", "servicemonitors"):
        file = directory / f"monitoring.coreos.com_{name}.yaml"
        for document in load_documents(file.read_text(encoding="utf-8"), file.name):
            api.apply(document)
    for kind in ("PrometheusRule", "ServiceMonitor"):
        api.wait_until_served("monitoring.coreos.com/v1", kind, 30.0)


NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def node(api: KubernetesApi) -> None:
    """A machine that kwok keeps alive, so that pods are scheduled and become ready."""
    manifest: Any = node_manifest("judge", "v1.36.3+rke2r1", "10.0.1.1")
    api.apply(manifest)
    answer = api._transport.send(
        "PATCH",
        "/api/v1/nodes/judge/status",
        query={"fieldManager": "kubelet", "force": "true"},
        body=manifest,
        content_type=APPLY_PATCH,
    )
    assert answer.status == 200


@pytest.fixture
def tenant(
    request: pytest.FixtureRequest, make_tenant: Callable[..., Tenant], api: KubernetesApi
) -> Iterator[Tenant]:
    made = make_tenant(name=f"judged{next(NUMBERS)}", service_level=request.param.value, **FULL)
    for stage in made.app.stages:
        for manifest in tenancy_objects(made, stage):
            api.apply(manifest)
    yield made
    for name in made.namespaces:
        api.delete(ObjectKey("v1", "Namespace", "", name))


@pytest.mark.parametrize("tenant", list(ServiceLevel), indirect=True)
def test_everything_that_is_rendered_is_accepted_and_runs_within_its_quota(
    tenant: Tenant, admission: Admission, api: KubernetesApi, monitoring: None, node: None
) -> None:
    assert evaluate(tenant) == []
    for stage in tenant.app.stages:
        for manifest in rendered(tenant, stage):
            answer = admission.apply(manifest, PLURALS[manifest["kind"]])
            assert answer.status == 201, answer.json.get("message")
    for manifest in rendered(tenant, Stage.PRODUCTION):
        if manifest["kind"] in ("Deployment", "ConfigMap"):
            api.apply(manifest)
    _scale_to(api, tenant, size_of(tenant, Stage.PRODUCTION).most_replicas)


def _scale_to(api: KubernetesApi, tenant: Tenant, replicas: int) -> None:
    """Run as many pods as the autoscaler may; a quota that is too small would refuse the last."""
    key = ObjectKey("apps/v1", "Deployment", tenant.scoped(Stage.PRODUCTION), tenant.name)
    api.merge(key, {"spec": {"replicas": replicas}}, "test")
    deadline = time.monotonic() + 40.0
    while True:
        status = api.get(key).get("status", {})
        failed = [c for c in status.get("conditions") or [] if c["type"] == "ReplicaFailure"]
        assert not failed, failed
        if status.get("availableReplicas") == replicas:
            return
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
