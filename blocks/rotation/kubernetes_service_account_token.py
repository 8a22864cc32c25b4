"""Long-lived tokens of Kubernetes ServiceAccounts, each the content of a Secret of its own.

Why it exists: such a token has no end; only the deletion of its Secret ends it. Promises a new
Secret beside the old one, workloads pointed to the new one by a rollout, and the old Secret deleted
only then. Refuses to delete a Secret that is no token of this ServiceAccount.
API: https://kubernetes.io/docs/concepts/configuration/secret/#serviceaccount-token-secrets

Parameters: `kubeconfig_path`, `namespace`, `service_account`; `secret` is the first name of the
token Secrets (default `<service_account>-token`; generations are `<secret>-g<n>`); `test_path` is
what a consumer may read.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blocks.rotation import kubernetes_workloads as workloads
from blocks.rotation.classes import RotationClass
from blocks.rotation.kubernetes_clusters import Cluster, KubernetesClusters
from blocks.rotation.secret_parameters import parameters
from domain.errors import NotFound, PolicyViolation, TemporaryError, Unauthorized, Unreachable
from domain.manifest_order import ObjectKey
from domain.rotation.contract import Proof, SecretRef, Seen, Values

TOKEN_TYPE = "kubernetes.io/service-account-token"  # noqa: S105 - a type's name
ACCOUNT_ANNOTATION = "kubernetes.io/service-account.name"
ISSUE_SECONDS = 60.0
ACCEPT_SECONDS = 20.0
DEATH_SECONDS = 45.0
"""API servers remember for ten seconds that a token was good; a busy one needs longer."""
RETURN_SECONDS = 300.0


class KubernetesServiceAccountToken:
    """Token Secrets of one cluster."""

    kind = "kubernetes-service-account-token"
    has_overlap = True

    def __init__(self, cluster: Cluster) -> None:
        """Take the way to a secret's cluster, as somebody who may write Secrets and workloads."""
        self._api = cluster

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make the token Secret of this generation and wait until the controller has filled it."""
        namespace, account = parameters(secret, "namespace", "service_account")
        name = f"{_first_name(secret)}-g{generation}"
        if current is not None and self._name_of(secret, current) == name:
            name += "b"
        key = ObjectKey("v1", "Secret", namespace, name)
        self._api(secret).apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": TOKEN_TYPE,
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "annotations": {ACCOUNT_ANNOTATION: account},
                },
            }
        )
        document = self._api(secret).wait_for(
            key, lambda found: bool((found.get("data") or {}).get("token")), "filled", ISSUE_SECONDS
        )
        token = _decoded(document, "token")
        return {"token": token, "secret_name": name, "namespace": namespace}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Nothing to do: a token is accepted from the moment at which it exists."""

    def test(self, secret: SecretRef, new: Values) -> None:
        """Read a path of the API with the new token."""
        path = secret.parameters.get("test_path", "/api")
        status = self._status_until(secret, new["token"], path, lambda s: s == 200, ACCEPT_SECONDS)
        if status != 200:
            raise Unauthorized(
                f"Unable to use the new token of {secret.path}: the API server answered {status} "
                f"to {path}. Check the ServiceAccount and its rights."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Point the workloads of the namespace from older token Secrets to the new one."""
        (namespace,) = parameters(secret, "namespace")
        target = new["secret_name"]
        is_ours = _family(secret)
        workloads.repoint(
            self._api(secret), namespace, lambda name: is_ours(name) and name != target, target
        )

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look whether every rollout is through and no pod holds an older token Secret."""
        return self._look(secret, new["secret_name"])

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Delete the old token's Secret."""
        namespace, account = parameters(secret, "namespace", "service_account")
        name = self._name_of(secret, old)
        if name is None:
            return
        key = ObjectKey("v1", "Secret", namespace, name)
        try:
            document = self._api(secret).get(key)
        except NotFound:
            return
        if not _is_token_of(document, account):
            raise PolicyViolation(
                f"Unable to delete the Secret {namespace}/{name}: it is no token of the "
                f"ServiceAccount {account}. Correct the parameters of {secret.path}."
            )
        self._api(secret).delete(key, is_foreground=False)
        self._api(secret).wait_until_gone(key, ISSUE_SECONDS)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Ask the API with the old token and nothing else, until it is refused."""
        path = secret.parameters.get("test_path", "/api")
        status = self._status_until(secret, old["token"], path, lambda s: s == 401, DEATH_SECONDS)
        return Proof(status == 401, f"GET {path} with the old token", f"HTTP {status}")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Point the workloads back, wait until their pods are, and delete the new Secret."""
        (namespace,) = parameters(secret, "namespace")
        target, name = new["secret_name"], None
        if current is not None:
            name = self._name_of(secret, current)
        if name is not None:
            workloads.repoint(self._api(secret), namespace, lambda found: found == target, name)
            workloads.wait_until_all(lambda: self._look(secret, name, target), RETURN_SECONDS)
        self.revoke(secret, new)

    def _look(self, secret: SecretRef, wanted: str, unwanted: str = "") -> list[Seen]:
        (namespace,) = parameters(secret, "namespace")
        is_ours = _family(secret)

        def names(name: str) -> bool:
            return is_ours(name) or name in (wanted, unwanted)

        def has_only_wanted(spec: Mapping[str, Any]) -> bool:
            return {name for name in workloads.secrets_of(spec) if names(name)} <= {wanted}

        return workloads.look(
            self._api(secret),
            namespace,
            names,
            lambda pod: has_only_wanted(pod["spec"]),
            lambda workload: has_only_wanted(workload.pod_spec),
        )

    def _name_of(self, secret: SecretRef, values: Values) -> str | None:
        """Return the Secret that holds a token; an adopted value knows its token only."""
        if values.get("secret_name"):
            return values["secret_name"]
        namespace, account = parameters(secret, "namespace", "service_account")
        for document in self._api(secret).list("v1", "Secret", namespace):
            is_it = _is_token_of(document, account)
            if is_it and _decoded(document, "token") == values.get("token"):
                return str(document["metadata"]["name"])
        return None

    def _status_until(
        self,
        secret: SecretRef,
        token: str,
        path: str,
        is_met: Callable[[int], bool],
        timeout_seconds: float,
    ) -> int:
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                status = self._api(secret).status_with_token(token, path)
            except TemporaryError:
                status = 0
            if is_met(status):
                return status
            if time.monotonic() > deadline:
                if status == 0:
                    server = self._api(secret).server
                    raise Unreachable(
                        f"Unable to reach the Kubernetes API at {server}: no answer. "
                        "Check that the servers are up."
                    )
                return status
            time.sleep(0.5)


def _first_name(secret: SecretRef) -> str:
    (account,) = parameters(secret, "service_account")
    return secret.parameters.get("secret") or f"{account}-token"


def _family(secret: SecretRef) -> Callable[[str], bool]:
    pattern = re.compile(re.escape(_first_name(secret)) + r"(-g\d+b?)?")
    return lambda name: pattern.fullmatch(name) is not None


def _is_token_of(document: Mapping[str, Any], account: str) -> bool:
    annotations = document["metadata"].get("annotations") or {}
    return document.get("type") == TOKEN_TYPE and annotations.get(ACCOUNT_ANNOTATION) == account


def _decoded(document: Mapping[str, Any], name: str) -> str:
    try:
        return base64.b64decode((document.get("data") or {}).get(name, "")).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


CLASS = RotationClass(
    kind=KubernetesServiceAccountToken.kind,
    make=lambda site: KubernetesServiceAccountToken(KubernetesClusters(site.session)),
    has_overlap=True,
    observed="rollouts are through and no pod holds an older token Secret",
    proved_dead="GET of the API with the old token: 401",
    parameters=("kubeconfig_path", "namespace", "service_account"),
    optional=("secret", "test_path"),
)
"""How the registry knows it."""
