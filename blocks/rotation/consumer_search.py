"""Who uses the secrets of a run: asked of every system that knows, and of none by hand.

Promises one list from the audit log, the Kubernetes clusters that the policy names and the
playbooks in the infrastructure repository; what could not be asked is named. Refuses to read any
value: names and references only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from blocks.openbao import OpenBaoSession
from domain.errors import LifecycleError, NotFound
from domain.rotation.consumers import (
    AuditRead,
    Consumer,
    by_path,
    from_kubernetes,
    from_reads,
    paths_in_ansible,
)
from domain.rotation.contract import SecretRef

KUBECONFIG = "kubeconfig_path"
DELIVERED = "kubernetes-secret"
_KINDS = (
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("batch/v1", "CronJob"),
    ("v1", "Pod"),
    ("v1", "ServiceAccount"),
    ("external-secrets.io/v1", "ExternalSecret"),
    ("external-secrets.io/v1", "ClusterExternalSecret"),
    ("external-secrets.io/v1beta1", "ExternalSecret"),
    ("secrets.hashicorp.com/v1beta1", "VaultStaticSecret"),
)


def consumers(
    session: OpenBaoSession,
    secrets: Sequence[SecretRef],
    reads: Iterable[AuditRead],
    since: datetime,
    repository: Mapping[str, str],
    unknown: list[str],
) -> dict[str, tuple[Consumer, ...]]:
    """Return path -> consumers. `repository` is file -> text; `unknown` takes what was not told."""
    found: list[Sequence[Consumer]] = [from_reads(reads, since=since)]
    mount = session.server.kv_mount
    found.append(
        [
            Consumer(path, "playbook", file, "read by Ansible")
            for file, text in repository.items()
            if file.endswith((".yaml", ".yml", ".j2"))
            for path in paths_in_ansible(text, mount)
        ]
    )
    paths = [secret.path for secret in secrets]
    for kubeconfig in sorted({s.parameters[KUBECONFIG] for s in secrets if _has_cluster(s)}):
        mine = [s for s in secrets if s.parameters.get(KUBECONFIG) == kubeconfig]
        try:
            objects = _objects(session, kubeconfig)
        except LifecycleError as error:
            unknown.append(str(error))
            continue
        delivered = {
            (s.parameters.get("namespace", ""), s.parameters.get("name", "")): s.path
            for s in mine
            if s.kind == DELIVERED
        }
        found.append(from_kubernetes(objects, mount=mount, known_paths=paths, delivered=delivered))
    return by_path(*found)


def _has_cluster(secret: SecretRef) -> bool:
    return bool(secret.parameters.get(KUBECONFIG))


def _objects(session: OpenBaoSession, kubeconfig: str) -> list[dict[str, Any]]:
    text = session.read(kubeconfig).get("kubeconfig", "")
    listed: list[dict[str, Any]] = []
    with KubernetesApi.from_kubeconfig(text) as api:
        for version, kind in _KINDS:
            # A cluster without an operator does not serve its kinds.
            with suppress(NotFound):
                # Items of a list do not say their kind.
                listed += [{**item, "kind": kind} for item in api.list(version, kind)]
    return listed
