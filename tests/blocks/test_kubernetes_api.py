"""Against a real etcd, kube-apiserver, controller manager, scheduler and kwok."""

from __future__ import annotations

import copy
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from blocks.kubernetes_api import KubernetesApi, has_condition
from blocks.kubernetes_transport import APPLY_PATCH, Answer, error_of, read_kubeconfig
from blocks.private_directory import base_directory
from domain.apply_reports import Change
from domain.errors import (
    Conflict,
    InvalidSpec,
    NotFound,
    PermanentError,
    QuotaExceeded,
    Unauthorized,
    Unreachable,
)
from domain.manifest_order import ObjectKey, key_of
from lab.bare_control_plane import Authority, BareControlPlane, node_manifest

Manifest = dict[str, Any]


@pytest.fixture
def api(control_plane: BareControlPlane) -> Iterator[KubernetesApi]:
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as client:
        yield client


@pytest.fixture
def namespace(api: KubernetesApi) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    api.delete(ObjectKey("v1", "Namespace", "", name), is_foreground=False)


def config_map(namespace: str, **data: str) -> Manifest:
    metadata = {"name": "settings", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def definition(plural: str, kind: str) -> Manifest:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.test.infraflows"},
        "spec": {
            "group": "test.infraflows",
            "scope": "Cluster",
            "names": {"plural": plural, "kind": kind},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {
                                    "type": "object",
                                    "properties": {"size": {"type": "integer"}},
                                }
                            },
                        }
                    },
                }
            ],
        },
    }


def as_another_manager(api: KubernetesApi, manifest: Manifest) -> None:
    """Do what a person with kubectl does: own the fields."""
    answer = api._transport.send(
        "PATCH",
        api._path(key_of(manifest)),
        query={"fieldManager": "a-person", "force": "true"},
        body=manifest,
        content_type=APPLY_PATCH,
    )
    assert answer.status == 200


def test_an_object_is_created_then_unchanged_then_changed(
    api: KubernetesApi, namespace: str
) -> None:
    assert api.apply(config_map(namespace, a="1")) is Change.CREATED
    assert api.apply(config_map(namespace, a="1")) is Change.UNCHANGED
    assert api.apply(config_map(namespace, a="2")) is Change.CHANGED
    assert api.get(key_of(config_map(namespace)))["data"] == {"a": "2"}


def test_a_field_that_left_the_manifest_leaves_the_object(
    api: KubernetesApi, namespace: str
) -> None:
    api.apply(config_map(namespace, a="1", b="1"))

    assert api.apply(config_map(namespace, a="1")) is Change.CHANGED
    assert api.get(key_of(config_map(namespace)))["data"] == {"a": "1"}


def test_fields_that_the_manifest_does_not_name_are_left_to_others(
    api: KubernetesApi, namespace: str
) -> None:
    api.apply(config_map(namespace, a="1"))
    as_another_manager(api, config_map(namespace, other="theirs"))

    assert api.apply(config_map(namespace, a="1")) is Change.UNCHANGED
    assert api.get(key_of(config_map(namespace)))["data"] == {"a": "1", "other": "theirs"}


def test_a_field_that_a_person_changed_is_taken_back(api: KubernetesApi, namespace: str) -> None:
    api.apply(config_map(namespace, a="1"))
    as_another_manager(api, config_map(namespace, a="drifted"))

    assert api.apply(config_map(namespace, a="1")) is Change.CHANGED
    assert api.get(key_of(config_map(namespace)))["data"] == {"a": "1"}


def test_a_field_of_another_manager_is_a_conflict_where_it_may_not_be_taken(
    api: KubernetesApi, namespace: str
) -> None:
    api.apply(config_map(namespace, a="1"))
    as_another_manager(api, config_map(namespace, a="theirs"))

    with pytest.raises(Conflict, match="a-person"):
        api.apply(config_map(namespace, a="1"), take_over=False)
    assert api.get(key_of(config_map(namespace)))["data"] == {"a": "theirs"}


def test_a_controller_that_writes_in_between_is_not_taken_for_our_change(
    api: KubernetesApi,
) -> None:
    manifest = definition(f"moons{secrets.token_hex(3)}", f"Moon{secrets.token_hex(3)}")
    try:
        # The controllers write the conditions while the second apply is under way.
        changes = [api.apply(manifest) for _ in range(6)]
    finally:
        api.delete(key_of(manifest), is_foreground=False)

    assert changes == [Change.CREATED] + [Change.UNCHANGED] * 5


def test_a_custom_resource_can_be_applied_at_once_after_its_definition(
    api: KubernetesApi,
) -> None:
    kind = f"Star{secrets.token_hex(3)}"
    manifest = definition(kind.lower() + "s", kind)
    star = {"apiVersion": "test.infraflows/v1", "kind": kind, "metadata": {"name": "sun"}}
    try:
        api.apply(manifest)
        assert api.apply({**star, "spec": {"size": 3}}) is Change.CREATED
        api.wait_until_served("test.infraflows/v1", kind, 5)
        assert has_condition("Established")(api.get(key_of(manifest)))
        assert [item["spec"] for item in api.list("test.infraflows/v1", kind)] == [{"size": 3}]
    finally:
        api.delete(key_of(manifest), is_foreground=False)


def test_a_kind_without_definition_is_not_found(
    api: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.kubernetes_api.SETTLE_SECONDS", 0.5)
    ghost = {"apiVersion": "no.such.group/v1", "kind": "Ghost", "metadata": {"name": "x"}}

    with pytest.raises(NotFound, match="Unable to apply Ghost x"):
        api.apply(ghost)
    assert api.delete(key_of(ghost)) is False


def test_a_manifest_that_breaks_its_schema_is_an_invalid_spec(
    api: KubernetesApi, namespace: str
) -> None:
    wrong = config_map(namespace)
    wrong["metadata"]["name"] = "Not A Name"

    with pytest.raises((InvalidSpec, PermanentError), match="Not A Name"):
        api.apply(wrong)


def test_an_object_in_a_namespace_that_is_absent_is_told_at_once(api: KubernetesApi) -> None:
    began = time.monotonic()

    with pytest.raises(NotFound, match='namespaces "nowhere" not found'):
        api.apply(config_map("nowhere"))
    assert time.monotonic() - began < 5


def test_a_quota_that_would_be_passed_is_a_quota_error(api: KubernetesApi, namespace: str) -> None:
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none", "namespace": namespace},
            "spec": {"hard": {"count/configmaps": "0"}},
        }
    )
    api.wait_for(
        ObjectKey("v1", "ResourceQuota", namespace, "none"),
        lambda document: "hard" in document.get("status", {}),
        "counted",
        20,
    )

    with pytest.raises(QuotaExceeded, match="exceeded quota"):
        api.apply(config_map(namespace))


def test_deleting_what_is_absent_succeeds(api: KubernetesApi, namespace: str) -> None:
    api.apply(config_map(namespace))
    key = key_of(config_map(namespace))

    assert api.delete(key) is True
    api.wait_until_gone(key, 10)
    assert api.delete(key) is False
    with pytest.raises(NotFound, match="settings"):
        api.get(key)


def test_a_list_goes_over_every_page(
    api: KubernetesApi, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.kubernetes_api.PAGE_SIZE", 2)
    for number in range(5):
        manifest = config_map(namespace)
        manifest["metadata"] |= {"name": f"c{number}", "labels": {"test": "pages"}}
        api.apply(manifest)

    found = api.list("v1", "ConfigMap", namespace, "test=pages")

    assert [item["metadata"]["name"] for item in found] == ["c0", "c1", "c2", "c3", "c4"]


def test_a_wait_ends_and_says_what_was_seen(api: KubernetesApi, namespace: str) -> None:
    began = time.monotonic()

    with pytest.raises(Unreachable, match=r"available within 1 s: it does not exist"):
        api.wait_for(
            ObjectKey("apps/v1", "Deployment", namespace, "ghost"),
            has_condition("Available"),
            "available",
            1,
        )
    assert time.monotonic() - began < 4


def test_the_server_tells_version_readiness_and_etcd(api: KubernetesApi) -> None:
    assert api.version().startswith("v1.")
    assert api.readiness()["etcd"] is True
    assert api.etcd_is_healthy() is True


def test_a_stranger_is_refused_on_every_path(api: KubernetesApi) -> None:
    assert api.anonymous_statuses(["/version", "/api/v1/secrets"]) == {
        "/version": 401,
        "/api/v1/secrets": 401,
    }


def test_nodes_are_read_with_version_address_and_whether_they_take_pods(
    api: KubernetesApi,
) -> None:
    name = f"node-{secrets.token_hex(3)}"
    manifest: Any = node_manifest(name, "v1.36.3+rke2r1", "10.0.0.9")
    manifest["spec"] = {"taints": [{"key": "only", "value": "us", "effect": "NoSchedule"}]}
    try:
        api.apply(manifest)
        as_status(api, manifest)
        api.wait_for(ObjectKey("v1", "Node", "", name), has_condition("Ready"), "ready", 60)
        found = {node.name: node for node in api.nodes()}[name]
    finally:
        api.delete(ObjectKey("v1", "Node", "", name))

    assert found.is_ready
    assert (found.version, found.address) == ("v1.36.3+rke2r1", "10.0.0.9")
    assert not found.is_schedulable


def as_status(api: KubernetesApi, manifest: Mapping[str, Any]) -> None:
    body = copy.deepcopy(dict(manifest))
    answer = api._transport.send(
        "PATCH",
        api._path(key_of(manifest)) + "/status",
        query={"fieldManager": "test", "force": "true"},
        body=body,
        content_type=APPLY_PATCH,
    )
    assert answer.status == 200


def test_no_certificate_or_key_stays_on_disk(control_plane: BareControlPlane) -> None:
    before = set(base_directory().glob("infraflows-private-kube-*"))
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as api:
        api.version()
        assert set(base_directory().glob("infraflows-private-kube-*")) <= before


def test_credentials_are_not_printed(control_plane: BareControlPlane) -> None:
    credentials = read_kubeconfig(control_plane.kubeconfig)

    assert "PRIVATE KEY" in credentials.key_pem
    assert "PRIVATE KEY" not in repr(credentials)
    assert "CERTIFICATE" not in repr(credentials)


def test_a_server_of_another_ca_is_not_trusted(
    control_plane: BareControlPlane, tmp_path: Path
) -> None:
    other = Authority(tmp_path).pem.decode()
    credentials = replace(read_kubeconfig(control_plane.kubeconfig), ca_pem=other)

    with pytest.raises(PermanentError, match="Unable to trust"), KubernetesApi(credentials) as api:
        api.version()


def test_a_server_that_is_away_is_unreachable(control_plane: BareControlPlane) -> None:
    credentials = replace(read_kubeconfig(control_plane.kubeconfig), server="https://127.0.0.1:9")

    with pytest.raises(Unreachable, match="no answer"), KubernetesApi(credentials) as api:
        api.version()


def changed_kubeconfig(text: str, part: str, **values: Any) -> str:
    document = yaml.safe_load(text)
    document[f"{part}s"][0][part].update(values)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("user", {"exec": {"command": "/bin/sh"}}, "exec is not allowed"),
        ("cluster", {"insecure-skip-tls-verify": True}, "insecure-skip-tls-verify is not allowed"),
        ("cluster", {"server": "http://127.0.0.1:1"}, "lacks the API's HTTPS address"),
        ("user", {"client-key-data": "%%%"}, "client-key-data is not base64"),
        ("context", {"cluster": "other"}, "has no cluster of the name"),
    ],
)
def test_a_kubeconfig_that_asks_for_more_is_refused(
    control_plane: BareControlPlane, part: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(PermanentError, match=words):
        read_kubeconfig(changed_kubeconfig(control_plane.kubeconfig, part, **values))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (409, Conflict),
        (422, InvalidSpec),
        (429, Unreachable),
        (500, Unreachable),
        (503, Unreachable),
    ],
)
def test_a_status_becomes_an_error_by_what_may_be_done(status: int, kind: type[Exception]) -> None:
    body = json.dumps({"message": "said " * 200}).encode()
    error = error_of(Answer(status, body), "apply", "ConfigMap a/b")

    assert type(error) is kind
    assert "said said" in str(error)
    assert len(str(error)) < 500
