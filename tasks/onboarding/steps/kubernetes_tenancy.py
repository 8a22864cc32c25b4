"""What an application gets in its clusters: namespaces with quota, limits, policies and rights.

Promises server-side apply under the platform's own field manager; what is found is what that
manager owns of each live object (`domain.onboarding.owned_fields`), so that a change by hand is
seen without any record of its own. Marks of ownership are the labels of `Tenant.labels`. Objects
that bear no mark of this application are never taken over, also not in its own namespace.

Deleting a namespace deletes all that is in it: it ends when everything in it has ended.

Needs: read of the platform's `kubeconfig_path` of every cluster in OpenBao.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from blocks.kubernetes_api import FIELD_MANAGER, KubernetesApi
from blocks.openbao import openbao
from domain.errors import Conflict, NotFound
from domain.manifest_order import Manifest, ObjectKey, key_of, waves
from domain.onboarding.manifests.tenancy import TENANCY_KINDS, tenancy_objects
from domain.onboarding.owned_fields import managed_part, owned_part
from domain.onboarding.tenant import APP_LABEL, MANAGED_BY, Tenant
from domain.onboarding.things import Things, digest

NAMESPACE_END_SECONDS = 120.0
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
ENDING = "ending"
"""State of a namespace that is being deleted."""


@contextmanager
def _cluster(tenant: Tenant, cluster: str) -> Iterator[KubernetesApi]:
    platform = tenant.platform
    stage = next(stage for stage, name in platform.clusters.items() if name == cluster)
    with openbao(platform.environment).session() as bao:
        kubeconfig = bao.read(platform.kubeconfig_path(stage)).get("kubeconfig", "")
    with KubernetesApi.from_kubeconfig(kubeconfig) as api:
        yield api


def _clusters(tenant: Tenant) -> list[str]:
    return sorted(set(tenant.platform.clusters.values()))


def _wanted_objects(tenant: Tenant, cluster: str) -> list[Manifest]:
    stages = [stage for stage in tenant.app.stages if tenant.platform.clusters[stage] == cluster]
    return [manifest for stage in stages for manifest in tenancy_objects(tenant, stage)]


def _thing(cluster: str, key: ObjectKey) -> str:
    return f"{key.text} in {cluster}"


def _selector(tenant: Tenant) -> str:
    return f"{APP_LABEL}={tenant.name},{MANAGED_BY_LABEL}={MANAGED_BY}"


def _is_own(live: Manifest, tenant: Tenant) -> bool:
    labels = live.get("metadata", {}).get("labels") or {}
    return labels.get(APP_LABEL) == tenant.name and labels.get(MANAGED_BY_LABEL) == MANAGED_BY


def _is_ending(live: Manifest) -> bool:
    return bool(live.get("metadata", {}).get("deletionTimestamp"))


def _live_objects(api: KubernetesApi, tenant: Tenant) -> dict[ObjectKey, dict[str, Any]]:
    """Return all that bears the application's marks: its namespaces and what is managed in them."""
    found: dict[ObjectKey, dict[str, Any]] = {}
    for api_version, kind in (("v1", "Namespace"), *TENANCY_KINDS):
        for live in api.list(api_version, kind, label_selector=_selector(tenant)):
            # Entries of a list do not say what they are.
            complete = {**live, "apiVersion": api_version, "kind": kind}
            found[key_of(complete)] = complete
    return found


class KubernetesTenancy:
    """The step of the saga."""

    name: ClassVar[str] = "kubernetes-tenancy"
    system: ClassVar[str] = "kubernetes"
    needs: ClassVar[tuple[str, ...]] = ()
    holds_data: ClassVar[bool] = True

    def wanted(self, tenant: Tenant) -> Things:
        """Return every object with the digest of its manifest."""
        return {
            _thing(cluster, key_of(manifest)): digest(managed_part(manifest))
            for cluster in _clusters(tenant)
            for manifest in _wanted_objects(tenant, cluster)
        }

    def found(self, tenant: Tenant) -> Things:
        """Return every object that bears the marks, with the digest of what the platform owns."""
        found: dict[str, str] = {}
        for cluster in _clusters(tenant):
            with _cluster(tenant, cluster) as api:
                for key, live in _live_objects(api, tenant).items():
                    state = ENDING if _is_ending(live) else digest(owned_part(live, FIELD_MANAGER))
                    found[_thing(cluster, key)] = state
        return found

    def apply(self, tenant: Tenant) -> None:
        """Apply what is wanted and delete what bears the marks and is not."""
        for cluster in _clusters(tenant):
            wanted = _wanted_objects(tenant, cluster)
            with _cluster(tenant, cluster) as api:
                _wait_for_ending(api, wanted)
                _refuse_foreign(api, tenant, wanted)
                for wave in waves(wanted):
                    for manifest in wave.objects:
                        api.apply(manifest)
                kept = {key_of(manifest) for manifest in wanted}
                _delete(api, [key for key in _live_objects(api, tenant) if key not in kept])

    def remove(self, tenant: Tenant) -> None:
        """Delete every object that bears the marks and wait until the namespaces are gone."""
        for cluster in _clusters(tenant):
            with _cluster(tenant, cluster) as api:
                _delete(api, list(_live_objects(api, tenant)))


def _wait_for_ending(api: KubernetesApi, wanted: list[Manifest]) -> None:
    """Live through the end of namespaces that an earlier run began to delete."""
    for manifest in wanted:
        key = key_of(manifest)
        if key.kind == "Namespace":
            try:
                is_ending = _is_ending(api.get(key))
            except NotFound:
                continue
            if is_ending:
                api.wait_until_gone(key, NAMESPACE_END_SECONDS)


def _refuse_foreign(api: KubernetesApi, tenant: Tenant, wanted: list[Manifest]) -> None:
    foreign = []
    for manifest in wanted:
        key = key_of(manifest)
        try:
            live = api.get(key)
        except NotFound:
            continue
        if not _is_own(live, tenant):
            foreign.append(key.text)
    if foreign:
        raise Conflict(
            f"Unable to make the tenancy of {tenant.name}: {', '.join(foreign)} is there and does "
            f"not bear the label {APP_LABEL}={tenant.name}. Remove it, or choose another name."
        )


def _delete(api: KubernetesApi, keys: list[ObjectKey]) -> None:
    namespaces = [key for key in keys if key.kind == "Namespace"]
    doomed = {key.name for key in namespaces}
    for key in keys:
        if key.kind != "Namespace" and key.namespace not in doomed:
            api.delete(key)
    for key in namespaces:
        api.delete(key)
    for key in namespaces:
        api.wait_until_gone(key, NAMESPACE_END_SECONDS)
