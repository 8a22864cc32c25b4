"""Secrets of a real API server: tokens, and Secrets that Deployments take."""

from __future__ import annotations

import base64
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blocks.kubernetes_api import KubernetesApi, has_condition
from blocks.kubernetes_transport import APPLY_PATCH, Credentials, Transport, read_kubeconfig
from blocks.rotation.kubernetes_registry_credential import KubernetesRegistryCredential
from blocks.rotation.kubernetes_secret import KubernetesSecret, fingerprint
from blocks.rotation.kubernetes_service_account_token import KubernetesServiceAccountToken
from domain.errors import InvalidSpec, NotFound, PolicyViolation
from domain.manifest_order import ObjectKey, key_of
from domain.rotation.contract import SecretRef, Values
from lab.bare_control_plane import BareControlPlane, node_manifest


@pytest.fixture(scope="module")
def api(control_plane: BareControlPlane) -> Iterator[KubernetesApi]:
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as client:
        name = f"rotation-{secrets.token_hex(3)}"
        manifest: dict[str, Any] = dict(node_manifest(name, "v1.36.3+rke2r1", "10.0.0.7"))
        client.apply(manifest)
        client._transport.send(
            "PATCH",
            client._path(key_of(manifest)) + "/status",
            query={"fieldManager": "test", "force": "true"},
            body=manifest,
            content_type=APPLY_PATCH,
        )
        client.wait_for(ObjectKey("v1", "Node", "", name), has_condition("Ready"), "ready", 60)
        yield client
        client.delete(ObjectKey("v1", "Node", "", name))


@pytest.fixture
def namespace(api: KubernetesApi) -> Iterator[str]:
    name = f"rotate-{secrets.token_hex(4)}"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for account in ("default", "robot"):
        key = ObjectKey("v1", "ServiceAccount", name, account)
        if account == "robot":
            api.apply(
                {
                    "apiVersion": "v1",
                    "kind": "ServiceAccount",
                    "metadata": {"name": account, "namespace": name},
                }
            )
        api.wait_for(key, lambda _found: True, "made", 60)
    yield name
    api.delete(ObjectKey("v1", "Namespace", "", name), is_foreground=False)


def deployment(namespace: str, name: str, secret: str, way: str, replicas: int = 2) -> Any:
    container: dict[str, Any] = {"name": "app", "image": "registry.k8s.io/pause:3.10"}
    spec: dict[str, Any] = {"containers": [container], "terminationGracePeriodSeconds": 0}
    if way == "env":
        reference = {"secretKeyRef": {"name": secret, "key": "token"}}
        container["env"] = [{"name": "TOKEN", "valueFrom": reference}]
    elif way == "envFrom":
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    elif way == "volume":
        spec["volumes"] = [{"name": "s", "secret": {"secretName": secret}}]
    else:
        sources = [{"secret": {"name": secret}}]
        spec["volumes"] = [{"name": "s", "projected": {"sources": sources}}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    }


def deploy(api: KubernetesApi, manifest: Any) -> None:
    api.apply(manifest)
    api.wait_for(key_of(manifest), has_condition("Available"), "available", 120)


def secret_content(api: KubernetesApi, namespace: str, name: str) -> dict[str, str]:
    found = api.get(ObjectKey("v1", "Secret", namespace, name)).get("data") or {}
    return {key: base64.b64decode(text).decode() for key, text in found.items()}


class Pods:
    """The pods of a namespace, each with what its Secret held when the pod was first seen."""

    def __init__(self, api: KubernetesApi, namespace: str, name_of: Callable[[Any], str]) -> None:
        self.api, self.namespace, self.name_of = api, namespace, name_of
        self.held: dict[str, tuple[str, dict[str, str]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Pods:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _follow(self) -> None:
        while not self._stop.wait(0.15):
            self.look()

    def look(self) -> None:
        found = {}
        for pod in self.api.list("v1", "Pod", self.namespace):
            meta = pod["metadata"]
            held = self.held.get(meta["uid"])
            if held is None:
                try:
                    content = secret_content(self.api, self.namespace, self.name_of(pod))
                except NotFound:
                    continue
                held = (meta["name"], content)
            found[meta["uid"]] = held
        self.held = found

    def any(self) -> tuple[str, dict[str, str]]:
        return secrets.choice(list(self.held.values()))

    def is_gone(self, name: str) -> bool:
        try:
            self.api.get(ObjectKey("v1", "Pod", self.namespace, name))
        except NotFound:
            return True
        return False


# --- ServiceAccount tokens ---


def token_secret(namespace: str) -> SecretRef:
    return SecretRef(
        f"apps/{namespace}/token",
        KubernetesServiceAccountToken.kind,
        "test",
        {"namespace": namespace, "service_account": "robot"},
    )


def first_token(api: KubernetesApi, namespace: str) -> Values:
    """A token that somebody once made by hand; nothing but the token is known of it."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/service-account-token",
        "metadata": {
            "name": "robot-token",
            "namespace": namespace,
            "annotations": {"kubernetes.io/service-account.name": "robot"},
        },
    }
    api.apply(manifest)
    found = api.wait_for(
        key_of(manifest), lambda d: bool((d.get("data") or {}).get("token")), "filled", 60
    )
    return {"token": base64.b64decode(found["data"]["token"]).decode()}


def token_of_pod(pod: Any) -> str:
    container = pod["spec"]["containers"][0]
    for volume in pod["spec"].get("volumes") or []:
        if "secret" in volume:
            return str(volume["secret"]["secretName"])
    return str(container["env"][0]["valueFrom"]["secretKeyRef"]["name"])


def test_a_token_rotates_under_load_and_the_old_one_is_refused(
    api: KubernetesApi, namespace: str, control_plane: BareControlPlane, bench: Any, report: Any
) -> None:
    old = first_token(api, namespace)
    deploy(api, deployment(namespace, "by-env", "robot-token", "env"))
    deploy(api, deployment(namespace, "by-volume", "robot-token", "volume"))
    server = read_kubeconfig(control_plane.kubeconfig)
    holders: dict[str, Transport] = {}
    adapter = KubernetesServiceAccountToken(lambda _secret: api)

    def ask() -> str | None:
        name, content = pods.any()
        token = content["token"]
        if token not in holders:
            holders[token] = Transport(Credentials(server.server, server.ca_pem, token=token))
        status = holders[token].send("GET", "/api").status
        return None if status == 200 or pods.is_gone(name) else f"HTTP {status}"

    rotation = bench.rotation(adapter, token_secret(namespace), old)
    with Pods(api, namespace, token_of_pod) as pods, bench.load(ask) as counted:
        proof = rotation.run()
    report(adapter.kind, counted)

    assert proof.is_dead
    assert proof.answer == "HTTP 401"
    assert api.status_with_token(rotation.pending["token"], "/api") == 200
    names = {d["metadata"]["name"] for d in api.list("v1", "Secret", namespace)}
    assert names == {"robot-token-g1"}
    assert old["token"] not in repr(proof)


def test_a_token_survives_a_kill_at_every_edge(
    api: KubernetesApi, namespace: str, bench: Any
) -> None:
    old = first_token(api, namespace)
    deploy(api, deployment(namespace, "app", "robot-token", "volume", replicas=1))
    rotation = bench.rotation(
        KubernetesServiceAccountToken(lambda _secret: api), token_secret(namespace), old
    )

    def is_served() -> str | None:
        for pod in api.list("v1", "Pod", namespace):
            try:
                token = secret_content(api, namespace, token_of_pod(pod))["token"]
            except NotFound:
                return f"{pod['metadata']['name']} has no Secret"
            if (status := api.status_with_token(token, "/api")) != 200:
                return f"HTTP {status}"
        return None

    lines = bench.crash_matrix(rotation, is_served, bench.edges)

    assert len(lines) == len(bench.edges)
    tokens = [d for d in api.list("v1", "Secret", namespace) if d["type"].endswith("token")]
    assert len(tokens) == 1


def test_a_token_goes_back_when_the_rotation_is_given_up(
    api: KubernetesApi, namespace: str
) -> None:
    old = first_token(api, namespace)
    deploy(api, deployment(namespace, "app", "robot-token", "env"))
    adapter, secret = KubernetesServiceAccountToken(lambda _secret: api), token_secret(namespace)
    new = adapter.create(secret, 1, old)
    adapter.distribute(secret, new)

    adapter.rollback(secret, new, old)
    adapter.rollback(secret, new, old)

    assert api.status_with_token(old["token"], "/api") == 200
    assert {token_of_pod(pod) for pod in api.list("v1", "Pod", namespace)} == {"robot-token"}
    assert adapter.prove_dead(secret, new).is_dead


def test_a_secret_of_another_account_is_not_deleted(api: KubernetesApi, namespace: str) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "precious", "namespace": namespace},
    }
    api.apply(manifest)
    values = {"token": "x", "secret_name": "precious"}

    with pytest.raises(PolicyViolation, match="no token of the ServiceAccount robot"):
        KubernetesServiceAccountToken(lambda _secret: api).revoke(token_secret(namespace), values)
    assert api.get(key_of(manifest))


def test_missing_parameters_are_all_named(api: KubernetesApi) -> None:
    secret = SecretRef("a/b", KubernetesServiceAccountToken.kind, "test", {})

    with pytest.raises(InvalidSpec, match="2 problems found") as caught:
        KubernetesServiceAccountToken(lambda _secret: api).create(secret, 1, None)
    assert "service_account" in str(caught.value)


# --- Secrets with consumers ---


def opaque(api: KubernetesApi, namespace: str, values: Values) -> SecretRef:
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "session", "namespace": namespace},
            "stringData": dict(values),
        }
    )
    return SecretRef(
        f"apps/{namespace}/session",
        KubernetesSecret.kind,
        "test",
        {"namespace": namespace, "name": "session"},
    )


def test_a_secret_rotates_under_load_and_never_in_parts(
    api: KubernetesApi, namespace: str, bench: Any, report: Any
) -> None:
    old = {"token": "old-token-0123456789", "salt": "old-salt-0123456789"}
    secret = opaque(api, namespace, old)
    for way in ("env", "envFrom", "volume", "projected"):
        deploy(api, deployment(namespace, f"by-{way.lower()}", "session", way, replicas=1))
    deploy(api, deployment(namespace, "stranger", "other", "volume", replicas=0))
    rotation = bench.rotation(KubernetesSecret(lambda _secret: api), secret, old)

    def ask() -> str | None:
        _name, content = pods.any()
        if content not in (old, rotation.pending):
            return "a pod holds a mixture"
        now = secret_content(api, namespace, "session")
        return None if now in (old, rotation.pending) else "the Secret holds a mixture"

    with Pods(api, namespace, lambda _pod: "session") as pods, bench.load(ask) as counted:
        proof = rotation.run()
    report(KubernetesSecret.kind, counted)

    assert proof.is_dead, proof
    mark = fingerprint(secret, rotation.pending)
    found = api.list("v1", "Pod", namespace)
    assert len(found) == 4
    for pod in found:
        assert pod["metadata"]["annotations"]["infraflows.io/secret-session"] == mark
    stranger = api.get(ObjectKey("apps/v1", "Deployment", namespace, "stranger"))
    assert "annotations" not in stranger["spec"]["template"]["metadata"]


def test_a_secret_survives_a_kill_at_every_edge(
    api: KubernetesApi, namespace: str, bench: Any
) -> None:
    old = {"token": "old-token-0123456789"}
    rotation = bench.rotation(
        KubernetesSecret(lambda _secret: api), opaque(api, namespace, old), old
    )
    deploy(api, deployment(namespace, "app", "session", "env", replicas=1))

    def is_served() -> str | None:
        held = secret_content(api, namespace, "session")
        known = (rotation.current, rotation.pending)
        ready = [p for p in api.list("v1", "Pod", namespace) if has_condition("Ready")(p)]
        return None if held in known and ready else "the Secret or the pods are lost"

    bench.crash_matrix(rotation, is_served, bench.edges)

    assert secret_content(api, namespace, "session") == rotation.current


def test_a_pod_that_stands_alone_holds_the_rotation_up(api: KubernetesApi, namespace: str) -> None:
    old, new = {"token": "old-token-0123456789"}, {"token": "new-token-0123456789"}
    secret, adapter = opaque(api, namespace, old), KubernetesSecret(lambda _secret: api)
    template = deployment(namespace, "x", "session", "env")["spec"]["template"]
    lonely = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "lonely", "namespace": namespace},
        "spec": template["spec"],
    }
    api.apply(lonely)
    adapter.distribute(secret, new)

    seen = {one.consumer: one for one in adapter.observe(secret, new, old)}

    assert seen[f"Secret {namespace}/session"].is_on_new
    alone = seen[f"Pod {namespace}/lonely"]
    assert alone.is_on_new is False
    assert "made anew by hand" in alone.detail


def test_an_old_value_that_is_still_somewhere_is_not_dead(
    api: KubernetesApi, namespace: str
) -> None:
    old, new = {"token": "old-token-0123456789"}, {"token": "new-token-0123456789"}
    secret, adapter = opaque(api, namespace, old), KubernetesSecret(lambda _secret: api)
    assert not adapter.prove_dead(secret, old).is_dead
    adapter.distribute(secret, new)
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "copy", "namespace": namespace},
            "stringData": {"other": old["token"]},
        }
    )

    proof = adapter.prove_dead(secret, old)

    assert not proof.is_dead
    assert f"Secret {namespace}/copy" in proof.answer


def test_a_secret_that_an_operator_writes_is_left_to_it(api: KubernetesApi, namespace: str) -> None:
    define_external_secret(api)
    old, new = {"token": "old-token-0123456789"}, {"token": "new-token-0123456789"}
    secret, adapter = opaque(api, namespace, old), KubernetesSecret(lambda _secret: api)
    external = {
        "apiVersion": "external-secrets.io/v1",
        "kind": "ExternalSecret",
        "metadata": {"name": "session", "namespace": namespace},
    }
    api.apply(external)
    owner = {
        "apiVersion": external["apiVersion"],
        "kind": "ExternalSecret",
        "name": "session",
        "uid": api.get(key_of(external))["metadata"]["uid"],
    }
    key = ObjectKey("v1", "Secret", namespace, "session")
    api.merge(key, {"metadata": {"ownerReferences": [owner]}}, "operator")

    def operator() -> None:
        """What the operator does: it writes when it is asked to read anew."""
        api.wait_for(
            key_of(external),
            lambda d: "force-sync" in (d["metadata"].get("annotations") or {}),
            "asked",
            60,
        )
        time.sleep(0.5)
        data = {name: base64.b64encode(text.encode()).decode() for name, text in new.items()}
        api.merge(key, {"data": data}, "operator")

    thread = threading.Thread(target=operator)
    thread.start()
    adapter.distribute(secret, new)
    thread.join(60)

    assert secret_content(api, namespace, "session") == new
    writers = {entry["manager"] for entry in api.get(key)["metadata"]["managedFields"]}
    assert "infraflows-rotation" not in writers


def define_external_secret(api: KubernetesApi) -> None:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    api.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "externalsecrets.external-secrets.io"},
            "spec": {
                "group": "external-secrets.io",
                "scope": "Namespaced",
                "names": {"plural": "externalsecrets", "kind": "ExternalSecret"},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": schema},
                    }
                ],
            },
        }
    )
    api.wait_until_served("external-secrets.io/v1", "ExternalSecret", 60)


def test_a_pull_secret_is_written_as_kubelets_read_it(api: KubernetesApi, namespace: str) -> None:
    adapter = KubernetesRegistryCredential(lambda _secret: api)
    secret = SecretRef(
        "registry/pull",
        adapter.kind,
        "test",
        {"namespace": namespace, "name": "pull", "registry": "registry.test"},
    )
    old = {"username": "robot$a", "password": "old-password-0123456789"}
    new = {"username": "robot$b", "password": "new-password-0123456789"}
    adapter.distribute(secret, old)

    adapter.distribute(secret, new)

    found = api.get(ObjectKey("v1", "Secret", namespace, "pull"))
    assert found["type"] == "kubernetes.io/dockerconfigjson"
    assert "new-password" in secret_content(api, namespace, "pull")[".dockerconfigjson"]
    assert all(one.is_on_new for one in adapter.observe(secret, new, old))
    assert adapter.prove_dead(secret, old).is_dead
    assert not adapter.prove_dead(secret, new).is_dead


# --- through the engine ---


def test_the_engine_finishes_after_a_kill_at_each_edge(
    api: KubernetesApi, namespace: str, matrix: Any, engine_world: Any
) -> None:
    adapter = KubernetesServiceAccountToken(lambda _secret: api)
    number = itertools.count()

    def make() -> Any:
        name = f"engine{next(number)}"
        where = {"namespace": namespace, "service_account": "robot", "secret": name}
        secret = SecretRef(f"kubernetes/{namespace}-{name}", adapter.kind, "test", where)
        first = adapter.create(secret, 0, None)
        deploy(api, deployment(namespace, name, first["secret_name"], "volume", replicas=1))

        def holds_working() -> bool:
            pods = api.list("v1", "Pod", namespace, f"app={name}")
            held = [secret_content(api, namespace, token_of_pod(pod)) for pod in pods]
            return bool(held) and all(works(values) for values in held)

        return engine_world(adapter, secret, first, works, holds_working=holds_working)

    def works(values: Values) -> bool:
        return api.status_with_token(values["token"], "/api") == 200

    assert matrix.kill_everywhere(make, every=6) > 4
