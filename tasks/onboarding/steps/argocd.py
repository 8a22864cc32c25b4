"""Argo CD of each cluster: the repository's login, the AppProject, one Application for a stage.

Promises that an application is delivered from its own directory of the GitOps repository into its
own namespaces, and that removing it waits until Argo CD has deleted all that it applied. Refuses
objects of the same name that belong to somebody else. The login goes from OpenBao to the cluster
and nowhere else; one that was rotated in OpenBao is seen, because both are compared.

Rights in OpenBao: read the clusters' kubeconfigs and the GitOps repository's login.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from blocks.argocd import ArgoCd
from blocks.git_repository import git_repository
from blocks.kubernetes_api import KubernetesApi
from blocks.openbao import OpenBaoSession, openbao
from domain.errors import Conflict, NotFound
from domain.manifest_order import Manifest, ObjectKey, key_of
from domain.onboarding.app_spec import Stage
from domain.onboarding.argocd_objects import (
    API_VERSION,
    application,
    clusters,
    is_ours,
    managed,
    project,
    repository,
    repository_name,
)
from domain.onboarding.tenant import APP_LABEL, Tenant
from domain.onboarding.things import PRESENT, Things, digest

GONE_SECONDS = 180.0
OUTDATED = "outdated"
"""A login that is not the one in OpenBao."""
LOGIN_KEYS = ("username", "password")
PLAIN_KEYS = ("type", "url", "project")


class ArgocdStep:
    """Converges what the Argo CDs of the tenant's clusters hold of it."""

    name: ClassVar[str] = "argocd"
    system: ClassVar[str] = "argocd"
    needs: ClassVar[tuple[str, ...]] = ("gitops", "kubernetes-tenancy", "kubernetes-secrets")
    holds_data: ClassVar[bool] = False

    def wanted(self, tenant: Tenant) -> Things:
        """Return project, repository and Applications of every cluster of the tenant."""
        things: dict[str, str] = {}
        for cluster, stages in clusters(tenant).items():
            for manifest in _manifests(tenant, stages):
                things[_thing(cluster, key_of(manifest))] = _declared_state(manifest)
        return things

    def found(self, tenant: Tenant) -> Things:
        """Return everything that carries the application's label, in all of the site's clusters."""
        things: dict[str, str] = {}
        with openbao(tenant.platform.environment).session() as bao:
            path = tenant.platform.gitops_credential
            login = bao.read(path) if bao.exists(path) else {}
            for cluster in _all_clusters(tenant):
                with _cluster_if_any(bao, tenant, cluster) as api:
                    if api is None:
                        continue
                    for document in _labelled(api, tenant):
                        things[_thing(cluster, key_of(document))] = _found_state(document, login)
        return things

    def apply(self, tenant: Tenant) -> None:
        """Write what is wanted, remove what is not, cluster by cluster.

        Raises:
            Conflict: an object of a wanted name belongs to somebody else.
        """
        by_cluster = clusters(tenant)
        with openbao(tenant.platform.environment).session() as bao:
            login = bao.read(tenant.platform.gitops_credential)
            for cluster, stages in by_cluster.items():
                with _cluster(bao, tenant, cluster) as api:
                    _apply_to(api, tenant, stages, login)
            for cluster in _all_clusters(tenant):
                if cluster not in by_cluster:
                    with _cluster_if_any(bao, tenant, cluster) as api:
                        if api is not None:
                            _remove_from(api, tenant, keep=set())

    def remove(self, tenant: Tenant) -> None:
        """Delete Applications with what they applied, then project and login."""
        with openbao(tenant.platform.environment).session() as bao:
            for cluster in _all_clusters(tenant):
                with _cluster_if_any(bao, tenant, cluster) as api:
                    if api is not None:
                        _remove_from(api, tenant, keep=set())


# --- clusters --------------------------------------------------------------------------------


def _all_clusters(tenant: Tenant) -> list[str]:
    return sorted(set(tenant.platform.clusters.values()))


def _kubeconfig_path(tenant: Tenant, cluster: str) -> str:
    stage = next(s for s, name in tenant.platform.clusters.items() if name == cluster)
    return tenant.platform.kubeconfig_path(stage)


@contextmanager
def _cluster(bao: OpenBaoSession, tenant: Tenant, cluster: str) -> Iterator[KubernetesApi]:
    kubeconfig = bao.read(_kubeconfig_path(tenant, cluster))["kubeconfig"]
    with KubernetesApi.from_kubeconfig(kubeconfig) as api:
        yield api


@contextmanager
def _cluster_if_any(
    bao: OpenBaoSession, tenant: Tenant, cluster: str
) -> Iterator[KubernetesApi | None]:
    """Yield a client, or nothing where the cluster was taken down: nothing is left there."""
    if not bao.exists(_kubeconfig_path(tenant, cluster)):
        yield None
        return
    with _cluster(bao, tenant, cluster) as api:
        yield api


# --- objects ---------------------------------------------------------------------------------


def _manifests(tenant: Tenant, stages: list[Stage]) -> list[dict[str, Any]]:
    applications = [application(tenant, stage) for stage in stages]
    return [repository(tenant), project(tenant, stages), *applications]


def _thing(cluster: str, key: ObjectKey) -> str:
    return f"{key.kind} {key.name} in {cluster}"


def _declared_state(manifest: Mapping[str, Any]) -> str:
    values = dict(manifest.get("stringData") or {})
    if manifest["kind"] == "Secret":
        values |= {"login": PRESENT}
    return digest(managed(manifest, values))


def _found_state(document: Mapping[str, Any], login: Mapping[str, str]) -> str:
    data = document.get("data") or {}
    values = {k: base64.b64decode(data[k]).decode() for k in PLAIN_KEYS if k in data}
    if document["kind"] == "Secret":
        stored = {k: base64.b64decode(data.get(k, "")).decode() for k in LOGIN_KEYS}
        is_current = stored == {key: login.get(key) for key in LOGIN_KEYS}
        values["login"] = PRESENT if is_current else OUTDATED
    return digest(managed(document, values))


def _labelled(api: KubernetesApi, tenant: Tenant) -> list[dict[str, Any]]:
    """Return the objects in Argo CD's namespace that carry the application's label."""
    namespace, selector = tenant.platform.argocd_namespace, f"{APP_LABEL}={tenant.name}"
    found: list[dict[str, Any]] = []
    for version, kind in (
        (API_VERSION, "Application"),
        (API_VERSION, "AppProject"),
        ("v1", "Secret"),
    ):
        try:
            listed = api.list(version, kind, namespace, selector)
        except NotFound:
            # A cluster without Argo CD does not serve its kinds.
            continue
        found += [{"apiVersion": version, "kind": kind, **item} for item in listed]
    return found


def _apply_to(
    api: KubernetesApi, tenant: Tenant, stages: list[Stage], login: Mapping[str, str]
) -> None:
    manifests = _manifests(tenant, stages)
    _check_owner(api, tenant, manifests)
    _trust_git_server(api, tenant)
    # Before the project is narrowed: Argo CD deletes only where the project still allows it.
    _remove_from(api, tenant, keep={key_of(manifest) for manifest in manifests})
    for manifest in manifests:
        api.apply(_with_login(manifest, login))


def _check_owner(api: KubernetesApi, tenant: Tenant, manifests: list[dict[str, Any]]) -> None:
    """Refuse to take over what somebody else made."""
    foreign = []
    for manifest in manifests:
        key = key_of(manifest)
        try:
            document = api.get(key)
        except NotFound:
            continue
        labels = document["metadata"].get("labels") or {}
        if labels.get(APP_LABEL) != tenant.name or not is_ours(document):
            foreign.append(key.text)
    if foreign:
        raise Conflict(
            f"Unable to deliver {tenant.name} by Argo CD: {', '.join(foreign)} exists and belongs "
            "to somebody else. Rename the application, or remove the object."
        )


def _trust_git_server(api: KubernetesApi, tenant: Tenant) -> None:
    """Give Argo CD the CA of the GitOps server, where the site has one of its own."""
    server = git_repository(f"{tenant.platform.environment}-gitops")
    host = urlsplit(tenant.platform.gitops_url).hostname
    if server.ca_file and host:
        ca_pem = Path(server.ca_file).read_text(encoding="ascii")
        ArgoCd(api, tenant.platform.argocd_namespace).trust_server(host, ca_pem)


def _with_login(manifest: Manifest, login: Mapping[str, str]) -> dict[str, Any]:
    """Return a Secret with its login, in the form in which it is stored; others as they are."""
    if manifest["kind"] != "Secret":
        return dict(manifest)
    values = {**manifest["stringData"], **{key: login[key] for key in LOGIN_KEYS}}
    document = {key: value for key, value in manifest.items() if key != "stringData"}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {**document, "data": encoded}


def _remove_from(api: KubernetesApi, tenant: Tenant, keep: set[ObjectKey]) -> None:
    """Delete what is labelled and not kept: Applications first, for they need their project."""
    argocd = ArgoCd(api, tenant.platform.argocd_namespace)
    labelled = _labelled(api, tenant)
    doomed = [key_of(item) for item in labelled if key_of(item) not in keep]
    applications = [key.name for key in doomed if key.kind == "Application"]
    for name in applications:
        argocd.delete_application(name)
    # What a killed run began to delete cannot be kept: it is made anew.
    ending = [
        item["metadata"]["name"]
        for item in labelled
        if item["kind"] == "Application" and item["metadata"].get("deletionTimestamp")
    ]
    argocd.wait_until_gone({*applications, *ending}, GONE_SECONDS)
    for key in doomed:
        if key.kind != "Application":
            api.delete(key, is_foreground=False)


__all__ = ["ArgocdStep", "repository_name"]
