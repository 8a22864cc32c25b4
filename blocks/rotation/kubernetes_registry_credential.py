"""Credentials with which kubelets pull images.

Why it exists: a pull secret is a JSON text in a Secret of its own type. Promises the same as
`kubernetes_secret`, but restarts nobody: a kubelet reads the Secret at each pull. The registry's
account is the `holder`'s. API:
https://kubernetes.io/docs/tasks/configure-pod-container/pull-image-private-registry/

Parameters: `kubeconfig_path`, `namespace`, `name`, `registry` (as `registry.example.org`).
"""

from __future__ import annotations

import base64
import json

from blocks.rotation.classes import RotationClass
from blocks.rotation.kubernetes_clusters import KubernetesClusters
from blocks.rotation.kubernetes_secret import KubernetesSecret, holders
from blocks.rotation.secret_parameters import parameters
from domain.rotation.contract import SecretRef, Values


class KubernetesRegistryCredential(KubernetesSecret):
    """Pull secrets of one cluster."""

    kind = "kubernetes-registry-credential"
    type = "kubernetes.io/dockerconfigjson"
    restarts_consumers = False

    def render(self, secret: SecretRef, values: Values) -> dict[str, str]:
        """Return the one entry that a kubelet reads."""
        (registry,) = parameters(secret, "registry")
        user, password = values["username"], values["password"]
        entry = {
            "username": user,
            "password": password,
            "auth": base64.b64encode(f"{user}:{password}".encode()).decode(),
        }
        return {".dockerconfigjson": json.dumps({"auths": {registry: entry}}, sort_keys=True)}


CLASS = RotationClass(
    kind=KubernetesRegistryCredential.kind,
    make=lambda site: KubernetesRegistryCredential(KubernetesClusters(site.session), holders(site)),
    has_overlap=True,
    observed="the Secret holds the new value; kubelets read it at each pull",
    proved_dead="no Secret carries the old version; the holder's own proof",
    parameters=("kubeconfig_path", "namespace", "name", "registry"),
    optional=("holder",),
)
"""How the registry knows it."""
