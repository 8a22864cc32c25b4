"""The Kubernetes cluster of a secret, reached with a kubeconfig that lies in OpenBao.

Why it exists: one run rotates secrets of several clusters. Promises one client for each kubeconfig,
opened when the first secret of its cluster is rotated.
"""

from __future__ import annotations

from collections.abc import Callable

from blocks.kubernetes_api import KubernetesApi
from blocks.openbao import OpenBaoSession
from blocks.rotation.secret_parameters import parameters
from domain.errors import NotFound, PolicyViolation
from domain.rotation.contract import SecretRef

Cluster = Callable[[SecretRef], KubernetesApi]


class KubernetesClusters:
    """Clients by the path of their kubeconfig (the parameter `kubeconfig_path`)."""

    def __init__(self, session: OpenBaoSession) -> None:
        """Read kubeconfigs by `session`."""
        self._session = session
        self._clients: dict[str, KubernetesApi] = {}

    def __call__(self, secret: SecretRef) -> KubernetesApi:
        """Return the client of a secret's cluster."""
        (path,) = parameters(secret, "kubeconfig_path")
        if path == secret.path:
            raise PolicyViolation(
                f"Unable to rotate {secret.path}: this run reaches the cluster with it. Name "
                "another kubeconfig in kubeconfig_path."
            )
        if path not in self._clients:
            text = self._session.read(path).get("kubeconfig")
            if not text:
                raise NotFound(
                    f"Unable to reach the cluster of {secret.path}: {path} has no kubeconfig. "
                    "Write it there under that name."
                )
            self._clients[path] = KubernetesApi.from_kubeconfig(text)
        return self._clients[path]
