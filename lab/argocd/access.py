"""How a process speaks to the cluster's API: as its pod's ServiceAccount, and as nobody else.

What it promises: the token is one of the TokenRequest API, as a kubelet mounts it, and is renewed
long before its end; the programs read the file anew by themselves.
"""

from __future__ import annotations

import base64
import time
from pathlib import Path

import yaml

from blocks.kubernetes_api import KubernetesApi
from blocks.kubernetes_transport import error_of, read_kubeconfig
from lab.services.files import PRIVATE, write_atomically, write_if_changed

LIFETIME_SECONDS = 3600
RENEW_SECONDS = LIFETIME_SECONDS / 2


class AccountAccess:
    """The kubeconfig of one ServiceAccount, with its token in a file beside it."""

    def __init__(
        self, api: KubernetesApi, admin_kubeconfig: str, directory: Path, account: str
    ) -> None:
        self._api = api
        self._account = account
        self._directory = directory
        self._renewed_at: float | None = None
        self._admin = read_kubeconfig(admin_kubeconfig)

    @property
    def kubeconfig(self) -> Path:
        return self._directory / f"{self._account}.kubeconfig"

    def renew(self, namespace: str) -> None:
        """Write the kubeconfig, and a token when the last one is past half of its life."""
        now = time.monotonic()
        if self._renewed_at is not None and now - self._renewed_at < RENEW_SECONDS:
            return
        token_file = self._directory / f"{self._account}.token"
        write_atomically(token_file, self._token(namespace), PRIVATE)
        write_if_changed(self.kubeconfig, self._document(namespace, token_file), PRIVATE)
        self._renewed_at = now

    def _token(self, namespace: str) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{self._account}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFETIME_SECONDS},
        }
        # The product has no need of this call; its connection has.
        answer = self._api._transport.send("POST", path, body=body)
        if answer.status != 201:
            raise error_of(answer, "request a token of", f"ServiceAccount {self._account}")
        return str(answer.json["status"]["token"])

    def _document(self, namespace: str, token_file: Path) -> str:
        ca_data = base64.b64encode(self._admin.ca_pem.encode()).decode()
        cluster = {"server": self._admin.server, "certificate-authority-data": ca_data}
        context = {"cluster": "lab", "user": self._account, "namespace": namespace}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "lab",
                "clusters": [{"name": "lab", "cluster": cluster}],
                "contexts": [{"name": "lab", "context": context}],
                "users": [{"name": self._account, "user": {"tokenFile": str(token_file)}}],
            }
        )
