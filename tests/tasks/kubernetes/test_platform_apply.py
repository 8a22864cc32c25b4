"""The whole platform on a real API server, with real controllers and scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from blocks.kubernetes_api import KubernetesApi, has_condition
from blocks.kubernetes_transport import APPLY_PATCH
from domain.apply_reports import ApplyReport
from domain.cluster_checks import Outcome, check_cluster
from domain.errors import InvalidSpec, NotFound, PermanentError
from domain.machines import machines
from domain.manifest_order import ObjectKey, key_of
from domain.repository_layout import RepositoryLocation
from domain.specs import EXAMPLE, parse_spec
from lab.bare_control_plane import BareControlPlane, node_manifest
from tasks.kubernetes.platform_apply import apply_manifests
from tasks.kubernetes.render import objects_of, platform_files
from tasks.kubernetes.scheduling_probe import DEPLOYMENT, place_probe
from tasks.kubernetes.tasks import gather_cluster_facts

SPEC = parse_spec(EXAMPLE)
REPOSITORY = RepositoryLocation("https://git.example.org/infrastructure.git", "main")


@pytest.fixture(scope="module")
def api(control_plane: BareControlPlane) -> Iterator[KubernetesApi]:
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as client:
        yield client


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return objects_of(platform_files(SPEC, REPOSITORY))


@pytest.fixture(scope="module")
def first(api: KubernetesApi, manifests: list[dict[str, Any]]) -> ApplyReport:
    return apply_manifests(api, manifests, "a" * 40)


@pytest.fixture(scope="module")
def nodes(api: KubernetesApi) -> None:
    for machine in machines(SPEC):
        manifest: Any = node_manifest(machine.name, SPEC.kubernetes.version, machine.address)
        key = key_of(manifest)
        api.apply(manifest)
        answer = api._transport.send(
            "PATCH",
            api._path(key) + "/status",
            query={"fieldManager": "kubelet", "force": "true"},
            body=manifest,
            content_type=APPLY_PATCH,
        )
        assert answer.status == 200
    for machine in machines(SPEC):
        key = ObjectKey("v1", "Node", "", machine.name)
        api.wait_for(key, has_condition("Ready"), "ready", 60)


def test_an_empty_cluster_gets_everything(
    first: ApplyReport, manifests: list[dict[str, Any]]
) -> None:
    # `default` and its like are there before us.
    assert first.created >= len(manifests) - 1
    assert len(first.objects) == len(manifests)
    assert first.rows()[0]["result"] == "created"


def test_a_second_apply_changes_nothing(
    api: KubernetesApi, manifests: list[dict[str, Any]], first: ApplyReport
) -> None:
    second = apply_manifests(api, manifests)

    assert [item for item in second.objects if item.change != "unchanged"] == []
    assert second.is_noop


def test_what_a_person_removed_comes_back_and_is_all_that_changes(
    api: KubernetesApi, manifests: list[dict[str, Any]], first: ApplyReport
) -> None:
    key = ObjectKey("networking.k8s.io/v1", "NetworkPolicy", "argocd", "default-deny")
    api.delete(key)
    api.wait_until_gone(key, 30)
    seen: list[tuple[int, int]] = []

    report = apply_manifests(api, manifests, on_progress=lambda *step: seen.append(step))

    assert [(item.key, item.change.value) for item in report.objects if item.change != "unchanged"]
    assert (report.created, report.changed) == (1, 0)
    assert seen[-1] == (len(manifests), len(manifests))


def test_manifests_that_are_wrong_in_themselves_touch_nothing(api: KubernetesApi) -> None:
    good = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "never-made"}}

    with pytest.raises(InvalidSpec):
        apply_manifests(api, [good, {"kind": "ConfigMap"}])
    with pytest.raises(NotFound):
        api.get(key_of(good))


def test_every_refused_object_is_named_and_later_waves_do_not_begin(
    api: KubernetesApi, first: ApplyReport
) -> None:
    def broken(name: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "infraflows-probe"}
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata,
            "spec": {"podSelector": {}, "policyTypes": ["Sideways"]},
        }

    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "late", "namespace": "monitoring"},
        "spec": {"ports": [{"port": 80}]},
    }

    with pytest.raises(PermanentError, match="Unable to apply 2 objects") as caught:
        apply_manifests(api, [broken("one"), broken("two"), service])
    assert "infraflows-probe/one" in str(caught.value)
    assert "infraflows-probe/two" in str(caught.value)
    with pytest.raises(NotFound):
        api.get(key_of(service))


@pytest.mark.usefixtures("nodes", "first")
def test_the_probe_runs_on_every_node_and_leaves_nothing(api: KubernetesApi) -> None:
    placed = place_probe(api, api.nodes())

    assert placed.nodes == tuple(sorted(machine.name for machine in machines(SPEC)))
    assert (placed.available, placed.wanted) == (5, 5)
    with pytest.raises(NotFound):
        api.get(DEPLOYMENT)
    assert api.list("v1", "Pod", DEPLOYMENT.namespace) == []


@pytest.mark.usefixtures("nodes", "first")
def test_a_probe_that_cannot_be_placed_is_a_finding_and_leaves_nothing(
    api: KubernetesApi,
) -> None:
    key = ObjectKey("v1", "ResourceQuota", DEPLOYMENT.namespace, "none")
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "spec": {"hard": {"pods": "0"}},
        }
    )
    api.wait_for(key, lambda d: "hard" in d.get("status", {}), "counted", 30)
    try:
        placed = place_probe(api, api.nodes(), timeout_seconds=2)
    finally:
        api.delete(key)

    assert (placed.wanted, placed.available, placed.nodes) == (5, 0, ())
    with pytest.raises(NotFound):
        api.get(DEPLOYMENT)


@pytest.mark.usefixtures("nodes", "first")
def test_a_real_cluster_is_judged_and_what_no_server_told_is_unknown(api: KubernetesApi) -> None:
    began = time.monotonic()
    results = {r.name: r for r in check_cluster(SPEC, gather_cluster_facts(api, {}))}

    unknown = {name for name, result in results.items() if result.outcome is Outcome.UNKNOWN}
    assert unknown == {"etcd members", "encryption at rest", "audit log"}
    assert all(r.is_passed for name, r in results.items() if name not in unknown), results
    assert time.monotonic() - began < 90
