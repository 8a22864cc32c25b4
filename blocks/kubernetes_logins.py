"""OpenBao's login method of one Kubernetes cluster, set up from the cluster's kubeconfig.

Why it exists: a pod proves who it is with its ServiceAccount's token, and OpenBao must ask the
cluster whether that token is good. Who asks? Either each application's own token, or a reviewer of
its own. The reviewer it is: one ServiceAccount per cluster that may create TokenReviews and nothing
else. With self-review every application would need a right on the whole cluster, one more binding
to make and to take back for each, and a token that is good for the API server for longer than a
login needs. The price is one long-lived token per cluster, which OpenBao keeps and never shows.

Promises that a method is set up once and left alone while it fits; that a cluster which was built
anew, or a reviewer whose token was replaced, is seen. Refuses a method of the same name that
somebody else set up.
API: https://openbao.org/api-docs/auth/kubernetes/
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from blocks.kubernetes_transport import Credentials, read_kubeconfig
from blocks.openbao import OpenBaoSession
from blocks.openbao_access import ApplicationAccess
from domain.errors import Conflict, NotFound
from domain.manifest_order import ObjectKey

METHOD = "kubernetes"
NAMESPACE = "infraflows-system"
REVIEWER = "openbao-token-reviewer"
TOKEN_SECRET = f"{REVIEWER}-token"
TOKEN_SECONDS = 30.0
_RBAC = "rbac.authorization.k8s.io/v1"
_LABELS = {"app.kubernetes.io/managed-by": "infraflows"}
_SECRET = ObjectKey("v1", "Secret", NAMESPACE, TOKEN_SECRET)
_BINDING = ObjectKey(_RBAC, "ClusterRoleBinding", "", REVIEWER)


def cluster_api(session: OpenBaoSession, kubeconfig_path: str) -> KubernetesApi:
    """Return a client of the cluster whose kubeconfig lies under an OpenBao path.

    Raises:
        NotFound: there is none, as after a cluster's end.
    """
    return KubernetesApi.from_kubeconfig(_kubeconfig(session, kubeconfig_path))


def _kubeconfig(session: OpenBaoSession, path: str) -> str:
    text = session.read(path).get("kubeconfig")
    if not text:
        raise NotFound(
            f"Unable to reach the cluster of {path}: there is no kubeconfig. "
            "Write it there under that name."
        )
    return text


def _manifests() -> list[dict[str, Any]]:
    subject = {"kind": "ServiceAccount", "name": REVIEWER, "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": REVIEWER}
    rule = {
        "apiGroups": ["authentication.k8s.io"],
        "resources": ["tokenreviews"],
        "verbs": ["create"],
    }
    cluster_wide = {"name": REVIEWER, "labels": _LABELS}
    inside = {"namespace": NAMESPACE, "labels": _LABELS}
    return [
        _object("v1", "Namespace", {"name": NAMESPACE, "labels": _LABELS}),
        _object("v1", "ServiceAccount", {"name": REVIEWER, **inside})
        | {"automountServiceAccountToken": False},
        _object(_RBAC, "ClusterRole", cluster_wide) | {"rules": [rule]},
        _object(_RBAC, "ClusterRoleBinding", cluster_wide)
        | {"roleRef": role, "subjects": [subject]},
        _object(
            "v1",
            "Secret",
            {
                "name": TOKEN_SECRET,
                **inside,
                "annotations": {"kubernetes.io/service-account.name": REVIEWER},
            },
        )
        | {"type": "kubernetes.io/service-account-token"},
    ]


def _object(version: str, kind: str, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


class ClusterLogin:
    """The login method of one cluster, at one mount."""

    def __init__(
        self, session: OpenBaoSession, mount: str, cluster: str, kubeconfig_path: str
    ) -> None:
        """Look after `mount` for the cluster of this name."""
        self._session = session
        self._access = ApplicationAccess(session)
        self._mount = mount
        self._ours = f"infraflows cluster {cluster}"
        self._path = kubeconfig_path

    def problem(self) -> str:
        """Return why the mount cannot be ours; empty when it can."""
        method = self._access.methods().get(self._mount)
        if method is None or self._is_ours(method):
            return ""
        return (
            f"the login method {self._mount} is there and is not ours. Rename it, or describe it "
            f"as '{self._ours}' to have it set up anew"
        )

    def _is_ours(self, method: dict[str, Any]) -> bool:
        is_described = str(method.get("description", "")).startswith(self._ours)
        return method.get("type") == METHOD and is_described

    def is_set_up(self) -> bool:
        """True when the method fits the cluster as it is; False also when the cluster is gone."""
        method = self._access.methods().get(self._mount)
        settings = self._access.method_settings(self._mount) if method else None
        if not method or not settings or not self._is_ours(method):
            return False
        try:
            text = _kubeconfig(self._session, self._path)
        except NotFound:
            return False
        credentials = read_kubeconfig(text)
        differs = any(settings.get(key) != value for key, value in _settings(credentials).items())
        if differs or not settings.get("token_reviewer_jwt_set"):
            return False
        try:
            with KubernetesApi(credentials) as api:
                api.get(_BINDING)
                uid = str(api.get(_SECRET)["metadata"]["uid"])
        except NotFound:
            return False
        return str(method["description"]) == self._description(uid)

    def _description(self, reviewer: str) -> str:
        return f"{self._ours}, reviewer {reviewer}"

    def set_up(self) -> None:
        """Make the reviewer and the method; what is there already is left or corrected.

        Raises:
            Conflict: the mount is somebody else's.
        """
        if problem := self.problem():
            raise Conflict(f"Unable to let pods log in: {problem}.")
        credentials = read_kubeconfig(_kubeconfig(self._session, self._path))
        with KubernetesApi(credentials) as api:
            for manifest in _manifests():
                api.apply(manifest)
            secret = api.wait_for(_SECRET, _has_token, "filled with a token", TOKEN_SECONDS)
        if self._mount not in self._access.methods():
            self._access.enable(self._mount, METHOD, self._ours)
        token = base64.b64decode(secret["data"]["token"]).decode()
        self._access.set_method_settings(
            self._mount, {**_settings(credentials), "token_reviewer_jwt": token}
        )
        # Last: it says which reviewer's token the settings hold.
        self._access.describe(self._mount, self._description(str(secret["metadata"]["uid"])))


def _settings(credentials: Credentials) -> dict[str, Any]:
    return {
        "kubernetes_host": credentials.server,
        "kubernetes_ca_cert": credentials.ca_pem,
        # OpenBao is not in the cluster: it has no token and no CA of its own there.
        "disable_local_ca_jwt": True,
    }


def _has_token(secret: Mapping[str, Any]) -> bool:
    return bool((secret.get("data") or {}).get("token"))


__all__ = ["NAMESPACE", "REVIEWER", "ClusterLogin", "cluster_api"]
