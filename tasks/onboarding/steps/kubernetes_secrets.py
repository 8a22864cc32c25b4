"""Two Secrets in each namespace: the login that pulls images, and the certificate of the ingress.

Promises that a plan compares them without telling values: whether the pull login is the one that
OpenBao holds is found out in memory and told as yes or no; a certificate is judged by its names,
its life and whether key and chain belong together. It is renewed when a third of its life is left,
so that this step shows a difference from then on. The old certificate is not revoked at a renewal
(the ingress serves it for a moment longer) and revoked when the application goes.

Refuses Secrets of these names that do not bear the application's labels.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from blocks.kubernetes_api import KubernetesApi
from blocks.kubernetes_logins import cluster_api
from blocks.openbao import OpenBaoSession, openbao
from blocks.openbao_engines import CertificateEngine, certificate_facts, now
from domain.errors import Conflict, NotFound
from domain.manifest_order import ObjectKey
from domain.onboarding.app_spec import Stage
from domain.onboarding.tenant import (
    APP_LABEL,
    MANAGED_BY,
    PULL_SECRET,
    STAGE_LABEL,
    TLS_SECRET,
    Tenant,
)
from domain.onboarding.things import Things, digest

RENEWED_WITH_LEFT = 1 / 3
PULL_TYPE = "kubernetes.io/dockerconfigjson"
TLS_TYPE = "kubernetes.io/tls"
PULL_KEY = ".dockerconfigjson"


class KubernetesSecrets:
    """`registry-pull` and `ingress-tls`."""

    name: ClassVar[str] = "kubernetes-secrets"
    system: ClassVar[str] = "kubernetes"
    needs: ClassVar[tuple[str, ...]] = ("kubernetes-tenancy", "harbor-project")
    holds_data: ClassVar[bool] = False

    def wanted(self, tenant: Tenant) -> Things:
        """Return both Secrets of each namespace."""
        things: dict[str, str] = {}
        for stage in tenant.app.stages:
            cluster = tenant.platform.clusters[stage]
            labels = _labels(tenant, stage)
            pull = _pull_state(labels, is_current=True)
            things[_thing(cluster, tenant.scoped(stage), PULL_SECRET)] = pull
            tls = _tls_state(labels, tenant.hostnames(stage), is_good=True)
            things[_thing(cluster, tenant.scoped(stage), TLS_SECRET)] = tls
        return things

    def found(self, tenant: Tenant) -> Things:
        """Return those of the names that bear the application's labels, on every cluster."""
        with openbao(tenant.platform.environment).session() as bao:
            state = _State(bao, tenant)
            return {
                _thing(cluster, _namespace(secret), _name(secret)): state.state_of(secret)
                for cluster, api in state.clusters()
                for secret in state.secrets(api)
            }

    def apply(self, tenant: Tenant) -> None:
        """Write what differs, delete what is not wanted."""
        wanted = self.wanted(tenant)
        with openbao(tenant.platform.environment).session() as bao:
            state = _State(bao, tenant)
            for cluster, api in state.clusters():
                found = {_place(secret): secret for secret in state.secrets(api)}
                stages = [s for s in tenant.app.stages if tenant.platform.clusters[s] == cluster]
                places = [(s, n) for s in stages for n in (PULL_SECRET, TLS_SECRET)]
                state.refuse_foreign(api, places, found)
                for stage, name in places:
                    place = (tenant.scoped(stage), name)
                    there = found.pop(place, None)
                    thing = _thing(cluster, *place)
                    if there is None or state.state_of(there) != wanted[thing]:
                        state.write(api, stage, name, there)
                for secret in found.values():
                    state.delete(api, secret)

    def remove(self, tenant: Tenant) -> None:
        """Revoke the certificates and delete the Secrets."""
        with openbao(tenant.platform.environment).session() as bao:
            state = _State(bao, tenant)
            for _, api in state.clusters():
                for secret in state.secrets(api):
                    state.delete(api, secret)


def _thing(cluster: str, namespace: str, name: str) -> str:
    return f"secret {cluster}/{namespace}/{name}"


def _labels(tenant: Tenant, stage: Stage) -> dict[str, str]:
    return {**tenant.labels, STAGE_LABEL: stage.value}


def _pull_state(labels: dict[str, str], *, is_current: bool) -> str:
    return digest({"type": PULL_TYPE, "labels": labels, "is_current": is_current})


def _tls_state(labels: dict[str, str], names: list[str], *, is_good: bool) -> str:
    managed = {"type": TLS_TYPE, "labels": labels, "names": sorted(names), "is_good": is_good}
    return digest(managed)


def _namespace(secret: dict[str, Any]) -> str:
    return str(secret["metadata"]["namespace"])


def _name(secret: dict[str, Any]) -> str:
    return str(secret["metadata"]["name"])


def _place(secret: dict[str, Any]) -> tuple[str, str]:
    return _namespace(secret), _name(secret)


def _decoded(secret: dict[str, Any], key: str) -> bytes:
    try:
        return base64.b64decode(str((secret.get("data") or {}).get(key, "")), validate=True)
    except binascii.Error:
        return b""


class _State:
    """The clusters as one run of the step sees them."""

    def __init__(self, bao: OpenBaoSession, tenant: Tenant) -> None:
        self._bao = bao
        self._tenant = tenant
        platform = tenant.platform
        self._engine = CertificateEngine(bao, platform.pki_mount, platform.pki_role)

    # --- reading -----------------------------------------------------------------------------

    def clusters(self) -> Iterator[tuple[str, KubernetesApi]]:
        """Yield every cluster that applications land on; one that is gone holds nothing."""
        platform = self._tenant.platform
        paths = {name: platform.kubeconfig_path(stage) for stage, name in platform.clusters.items()}
        for name, path in paths.items():
            with self._opened(path) as api:
                if api is not None:
                    yield name, api

    @contextmanager
    def _opened(self, path: str) -> Iterator[KubernetesApi | None]:
        try:
            api = cluster_api(self._bao, path)
        except NotFound:
            yield None
            return
        with api:
            yield api

    def secrets(self, api: KubernetesApi) -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io/managed-by={MANAGED_BY},{APP_LABEL}={self._tenant.name}"
        found = api.list("v1", "Secret", label_selector=selector)
        return [secret for secret in found if _name(secret) in (PULL_SECRET, TLS_SECRET)]

    def state_of(self, secret: dict[str, Any]) -> str:
        managed = {"app.kubernetes.io/managed-by", *self._tenant.labels, STAGE_LABEL}
        labels = secret["metadata"].get("labels") or {}
        labels = {key: value for key, value in labels.items() if key in managed}
        kind = secret.get("type")
        if _name(secret) == PULL_SECRET:
            is_current = kind == PULL_TYPE and _decoded(secret, PULL_KEY) == self._pull_login()
            return _pull_state(labels, is_current=is_current)
        facts = certificate_facts(_decoded(secret, "tls.crt"), _decoded(secret, "tls.key"))
        if facts is None or kind != TLS_TYPE:
            return _tls_state(labels, [], is_good=False)
        is_good = facts.is_whole and facts.has_left(now()) > RENEWED_WITH_LEFT
        return _tls_state(labels, list(facts.names), is_good=is_good)

    def _pull_login(self) -> bytes | None:
        """Return what a kubelet reads; None while there is no robot."""
        try:
            robot = self._bao.read(self._tenant.pull_robot_path)
        except NotFound:
            return None
        user, password = robot["username"], robot["password"]
        entry = {
            "username": user,
            "password": password,
            "auth": base64.b64encode(f"{user}:{password}".encode()).decode(),
        }
        registry = self._tenant.platform.registry
        return json.dumps({"auths": {registry: entry}}, sort_keys=True).encode()

    # --- writing -----------------------------------------------------------------------------

    def refuse_foreign(
        self,
        api: KubernetesApi,
        places: list[tuple[Stage, str]],
        found: dict[tuple[str, str], dict[str, Any]],
    ) -> None:
        foreign = []
        for stage, name in places:
            place = (self._tenant.scoped(stage), name)
            if place not in found and _exists(api, ObjectKey("v1", "Secret", *place)):
                foreign.append("/".join(place))
        if foreign:
            raise Conflict(
                f"Unable to write the Secrets of {self._tenant.name}: without its labels there is "
                f"{', '.join(foreign)}. Delete or rename it."
            )

    def write(
        self, api: KubernetesApi, stage: Stage, name: str, there: dict[str, Any] | None
    ) -> None:
        is_pull = name == PULL_SECRET
        kind = PULL_TYPE if is_pull else TLS_TYPE
        values = self._pull_values() if is_pull else self._certificate_values(stage)
        if there is not None and there.get("type") != kind:
            # The type of a Secret cannot be changed.
            _delete(api, there)
        api.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "namespace": self._tenant.scoped(stage),
                    "labels": _labels(self._tenant, stage),
                },
                "type": kind,
                "data": {key: base64.b64encode(value).decode() for key, value in values.items()},
            }
        )

    def _pull_values(self) -> dict[str, bytes]:
        login = self._pull_login()
        if login is None:
            raise NotFound(
                f"Unable to let the cluster pull images of {self._tenant.name}: there is no robot "
                f"at {self._tenant.pull_robot_path}. Run the step harbor-project first."
            )
        return {PULL_KEY: login}

    def _certificate_values(self, stage: Stage) -> dict[str, bytes]:
        issued = self._engine.issue(self._tenant.hostnames(stage))
        return {"tls.crt": issued.chain.encode(), "tls.key": issued.key.encode()}

    def delete(self, api: KubernetesApi, secret: dict[str, Any]) -> None:
        if _name(secret) == TLS_SECRET:
            facts = certificate_facts(_decoded(secret, "tls.crt"), _decoded(secret, "tls.key"))
            if facts is not None:
                # Before the Secret: after it, nobody knows the serial number any more.
                self._engine.revoke(facts.serial)
        _delete(api, secret)


def _delete(api: KubernetesApi, secret: dict[str, Any]) -> None:
    # Nothing is owned by a Secret, and in the foreground it would be there for a moment longer.
    api.delete(ObjectKey("v1", "Secret", *_place(secret)), is_foreground=False)


def _exists(api: KubernetesApi, key: ObjectKey) -> bool:
    try:
        api.get(key)
    except NotFound:
        return False
    return True
