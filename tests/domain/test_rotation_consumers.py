"""Consumers are found wherever Kubernetes, Ansible and the audit log let a secret be used."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from domain.rotation.consumers import (
    Consumer,
    audit_reads,
    by_path,
    from_kubernetes,
    from_managed_files,
    from_reads,
    is_below,
    paths_in_ansible,
    secret_path,
)

SYNCED = """
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata: {name: database, namespace: shop}
spec:
  target: {name: database-login}
  data: [{secretKey: password, remoteRef: {key: kv/apps/shop/database, property: password}}]
---
apiVersion: secrets.hashicorp.com/v1beta1
kind: VaultStaticSecret
metadata: {name: cache, namespace: shop}
spec: {mount: kv, path: apps/shop/cache, destination: {name: cache-login}}
"""


def objects(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(SYNCED + "\n---\n" + text) if each]


def found(text: str, **more: Any) -> list[tuple[str, str, str, bool]]:
    return [
        (each.path, f"{each.kind} {each.name}", each.how, each.is_read_once)
        for each in from_kubernetes(objects(text), mount="kv", **more)
    ]


def deployment(pod: str, kind: str = "Deployment", notes: str = "{}") -> str:
    return f"""
kind: {kind}
metadata: {{name: web, namespace: shop}}
spec: {{template: {{metadata: {{annotations: {notes}}}, spec: {pod}}}}}
"""


DATABASE, CACHE = "apps/shop/database", "apps/shop/cache"
PLACES = [
    (
        "{containers: [{name: app, env: [{name: P, valueFrom: {secretKeyRef: "
        "{name: database-login, key: password}}}]}]}",
        (DATABASE, "Deployment shop/web", "env P of container app", True),
    ),
    (
        "{initContainers: [{name: migrate, envFrom: [{secretRef: {name: cache-login}}]}]}",
        (CACHE, "Deployment shop/web", "envFrom of container migrate", True),
    ),
    (
        "{volumes: [{name: creds, secret: {secretName: database-login}}]}",
        (DATABASE, "Deployment shop/web", "volume creds", False),
    ),
    (
        "{volumes: [{name: all, projected: {sources: [{secret: {name: cache-login}}]}}]}",
        (CACHE, "Deployment shop/web", "volume all", False),
    ),
    (
        "{volumes: [{name: creds, secret: {secretName: database-login}}], containers: "
        "[{name: app, volumeMounts: [{name: creds, mountPath: /p, subPath: password}]}]}",
        (DATABASE, "Deployment shop/web", "volume creds", True),
    ),
    (
        "{imagePullSecrets: [{name: cache-login}]}",
        (CACHE, "Deployment shop/web", "pull credential", False),
    ),
]


@pytest.mark.parametrize(("pod", "expected"), PLACES, ids=[place[1][2] for place in PLACES])
def test_a_secret_is_found_in_every_place_of_a_pod(
    pod: str, expected: tuple[str, str, str, bool]
) -> None:
    assert found(deployment(pod)) == [expected]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Job", "Rollout"])
def test_every_kind_of_workload_is_looked_into(kind: str) -> None:
    assert found(deployment(PLACES[0][0], kind)) == [
        (DATABASE, f"{kind} shop/web", "env P of container app", True)
    ]


def test_cron_jobs_single_pods_ingresses_accounts_and_the_agent_are_found() -> None:
    text = """
kind: CronJob
metadata: {name: night, namespace: shop}
spec: {jobTemplate: {spec: {template: {spec: {containers: [
  {name: job, envFrom: [{secretRef: {name: database-login}}]}]}}}}}
---
kind: Pod
metadata: {name: alone, namespace: shop}
spec: {serviceAccountName: puller}
---
kind: ServiceAccount
metadata: {name: puller, namespace: shop}
imagePullSecrets: [{name: cache-login}]
---
kind: Ingress
metadata: {name: front, namespace: shop}
spec: {tls: [{secretName: database-login}]}
"""
    notes = "{vault.hashicorp.com/agent-inject-secret-db.txt: kv/data/apps/shop/agent}"
    assert found(text + "---" + deployment("{}", notes=notes)) == [
        ("apps/shop/agent", "Deployment shop/web", "agent file db.txt", False),
        (CACHE, "Pod shop/alone", "pull credential of account puller", False),
        (DATABASE, "CronJob shop/night", "envFrom of container job", True),
        (DATABASE, "Ingress shop/front", "tls of the ingress", False),
    ]


def test_a_copy_that_another_workload_made_is_not_a_second_consumer() -> None:
    copy = """
kind: Pod
metadata: {name: web-1, namespace: shop, ownerReferences: [{kind: ReplicaSet, name: web-x}]}
spec: {containers: [{name: app, envFrom: [{secretRef: {name: database-login}}]}]}
"""
    assert len(found(deployment(PLACES[0][0]) + "---" + copy)) == 1


def test_a_secret_of_the_same_name_in_another_namespace_is_another_secret() -> None:
    assert found(deployment(PLACES[0][0]).replace("shop}", "other}")) == []


def test_external_secrets_that_search_or_extract_are_resolved() -> None:
    text = """
kind: ExternalSecret
metadata: {name: searched, namespace: shop}
spec: {dataFrom: [{find: {path: apps/shop, name: {regexp: "mail$"}}}, {extract: {key: apps/x}}]}
---
kind: ClusterExternalSecret
metadata: {name: wide}
spec: {namespaces: [shop], externalSecretName: wide, externalSecretSpec: {
  data: [{remoteRef: {key: platform/ca}}]}}
"""
    sources = "{secretRef: {name: searched}}, {secretRef: {name: wide}}"
    pod = f"{{containers: [{{name: a, envFrom: [{sources}]}}]}}"
    known = ["apps/shop/mail", "apps/shop/mail/old", "apps/shopping/mail", "apps/y"]
    paths = [each[0] for each in found(text + "---" + deployment(pod), known_paths=known)]
    assert paths == ["apps/shop/mail", "apps/x", "platform/ca"]


def test_a_secret_that_the_product_delivers_is_traced_to_its_path() -> None:
    pod = "{containers: [{name: a, envFrom: [{secretRef: {name: plain}}]}]}"
    paths = found(deployment(pod), delivered={("shop", "plain"): "apps/plain"})
    assert [each[0] for each in paths] == ["apps/plain"]


def test_objects_with_empty_fields_break_nothing() -> None:
    assert found("kind: Deployment\nmetadata: {name: x}\nspec: {template: null}") == []
    assert found("kind: ExternalSecret\nmetadata: {name: x}\nspec: null") == []
    assert found(deployment("{containers: null, volumes: [{name: v, emptyDir: {}}]}")) == []


def test_ansible_lookups_old_and_new_and_modules_are_found() -> None:
    text = """
a: "{{ lookup('community.hashi_vault.vault_kv2_get', 'apps/one', engine_mount_point='kv') }}"
b: "{{ lookup('hashi_vault', 'secret=kv/data/apps/two:password') }}"
- name: read
  community.hashi_vault.vault_kv2_get:
    engine_mount_point: kv
    path: apps/three
"""
    assert paths_in_ansible(text, "kv") == ["apps/one", "apps/three", "apps/two"]
    assert paths_in_ansible("path: apps/four", "kv") == []


def test_files_on_hosts_are_consumers_and_a_service_must_be_reloaded() -> None:
    entries = [
        {"host": "web-1", "file": "/etc/tls.key", "secret_path": "kv/tls", "service": "nginx"},
        {"host": "web-1", "file": "/root/.pgpass", "secret_path": "kv/pg"},
    ]
    pg, tls = from_managed_files(entries, mount="kv")
    assert (pg.path, pg.is_read_once, pg.label) == ("pg", False, "file web-1:/root/.pgpass")
    assert (tls.path, tls.is_read_once, tls.how) == ("tls", True, "read by nginx")


def entry(path: str = "kv/data/apps/a", **more: Any) -> dict[str, Any]:
    return {
        "type": more.get("type", "response"),
        "time": more.get("time", "2026-03-04T02:00:00.123456789Z"),
        "error": more.get("error", ""),
        "auth": {"display_name": more.get("name", "approle-ci"), "accessor": "hmac-sha256:1"},
        "request": {
            "operation": more.get("operation", "read"),
            "path": path,
            "remote_address": "10.0.0.9",
        },
    }


def test_only_reads_that_were_answered_with_a_value_count() -> None:
    entries = [
        entry(),
        entry(type="request"),
        entry(error="permission denied"),
        entry(operation="update"),
        entry("kv/metadata/apps/a"),
        entry("other/data/apps/a"),
        {"type": "response", "request": None, "auth": None},
    ]
    (read,) = audit_reads(entries, mount="kv")
    assert (read.path, read.entity, read.host) == ("apps/a", "approle-ci", "10.0.0.9")


def test_who_read_lately_is_a_consumer_and_the_rotating_worker_is_not() -> None:
    entries = [
        entry(name="app"),
        entry(name="worker"),
        entry(name="long-gone", time="2025-01-01T00:00:00Z"),
        entry(name="strange", time="yesterday"),
    ]
    reads = audit_reads(entries, mount="kv")
    since = datetime(2026, 3, 1, tzinfo=UTC)
    consumers = from_reads(reads, since=since, own_entities=["worker"])
    assert [each.name for each in consumers] == ["app", "strange"]


def test_sources_are_brought_together_without_doubles() -> None:
    one, two = Consumer("a", "file", "/x", "h"), Consumer("b", "file", "/x", "h")
    assert by_path([two, one], [one]) == {"a": (one,), "b": (two,)}


@pytest.mark.parametrize("text", ["kv/data/a/b", "/kv/a/b", "a/b", "kv/metadata/a/b", "a/b/"])
def test_a_path_is_the_same_with_and_without_its_mount(text: str) -> None:
    assert secret_path(text, "kv") == "a/b"


def test_below_goes_by_whole_names() -> None:
    assert is_below("a/b", "a")
    assert is_below("a/b", "a/b/")
    assert is_below("a/b", "")
    assert not is_below("ab/c", "a")
