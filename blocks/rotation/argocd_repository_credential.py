"""Credentials with which Argo CD reads Git repositories over HTTPS.

Why it exists: Argo CD takes them from labelled Secrets of its own namespace, and follows their
changes by itself. Promises the same as `kubernetes_secret` without a restart, and a test and a
proof at the Git server itself. The account is the `holder`'s.
API: https://argo-cd.readthedocs.io/en/stable/operator-manual/declarative-setup/#repositories

Parameters: `kubeconfig_path`, `namespace` (Argo CD's), `name`, `url` of the repository,
`ca_file` of its server; `holder`; `secret_type` is `repository` (default) or `repo-creds`.
"""

from __future__ import annotations

from blocks.rotation.classes import RotationClass
from blocks.rotation.git_references import references_status
from blocks.rotation.kubernetes_clusters import KubernetesClusters
from blocks.rotation.kubernetes_secret import KubernetesSecret, holders
from blocks.rotation.secret_parameters import parameters
from domain.errors import Unauthorized
from domain.rotation.contract import Proof, SecretRef, Values


class ArgocdRepositoryCredential(KubernetesSecret):
    """Repository Secrets of one Argo CD."""

    kind = "argocd-repository-credential"
    restarts_consumers = False

    def render(self, secret: SecretRef, values: Values) -> dict[str, str]:
        """Return what Argo CD reads."""
        (url,) = parameters(secret, "url")
        return {
            "type": "git",
            "url": url,
            "username": values["username"],
            "password": values["password"],
        }

    def labels(self, secret: SecretRef) -> dict[str, str]:
        """Return the label by which Argo CD finds the Secret."""
        kind = secret.parameters.get("secret_type", "repository")
        return {"argocd.argoproj.io/secret-type": kind}

    def test(self, secret: SecretRef, new: Values) -> None:
        """List the repository's references as Argo CD does."""
        super().test(secret, new)
        status = _references_status(secret, new)
        if status != 200:
            raise Unauthorized(
                f"Unable to read the repository of {secret.path} with the new credential: HTTP "
                f"{status}. Check the account's rights on it."
            )

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """See that no Secret carries it, and that the Git server refuses it."""
        proof = super().prove_dead(secret, old)
        if not proof.is_dead:
            return proof
        status = _references_status(secret, old)
        method = f"{proof.method}; reading the repository as {old['username']}"
        return Proof(status in (401, 403), method, f"{proof.answer}; HTTP {status}")


def _references_status(secret: SecretRef, values: Values) -> int:
    """Return the HTTP status of what every Git client asks first."""
    (url,) = parameters(secret, "url")
    return references_status(url, secret.parameters.get("ca_file"), values, secret.path)


CLASS = RotationClass(
    kind=ArgocdRepositoryCredential.kind,
    make=lambda site: ArgocdRepositoryCredential(KubernetesClusters(site.session), holders(site)),
    has_overlap=True,
    observed="the labelled Secret holds the new value; Argo CD follows it",
    proved_dead="reading the repository with the old credential: 401",
    parameters=("kubeconfig_path", "namespace", "name", "url"),
    optional=("holder", "ca_file", "secret_type"),
)
"""How the registry knows it."""
