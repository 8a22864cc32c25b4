"""Every class of secrets that can be rotated, by name.

Promises that an unknown class and a missing parameter are told before anything is touched, all at
once. A class joins by being named in `CLASSES`.
"""

from __future__ import annotations

from collections.abc import Iterable

from blocks.rotation import (
    argocd_repository_credential,
    gitlab_ci_variable,
    gitlab_deploy_token,
    gitlab_project_access_token,
    gitlab_webhook_signing_key,
    harbor_robot,
    http_basic_user,
    kubernetes_registry_credential,
    kubernetes_secret,
    kubernetes_service_account_token,
    openbao_approle,
    openbao_token,
    openbao_unseal,
    pki_certificate,
    postgresql_static_role,
    postgresql_users,
    proxmox_api_token,
    redis_acl,
    rke2_secrets_encryption,
    rke2_server_token,
    s3_access_key,
    ssh_host_certificate,
    ssh_user_ca,
)
from blocks.rotation.classes import RotationClass
from blocks.rotation.readers import ObservedByReads
from blocks.rotation.site import RotationSite
from domain.errors import InvalidSpec, PolicyViolation
from domain.rotation.contract import Adapter, SecretRef

CLASSES: tuple[RotationClass, ...] = (
    openbao_approle.CLASS,
    openbao_token.CLASS,
    openbao_unseal.CLASS,
    postgresql_users.CLASS,
    postgresql_static_role.CLASS,
    redis_acl.CLASS,
    kubernetes_service_account_token.CLASS,
    kubernetes_secret.CLASS,
    kubernetes_registry_credential.CLASS,
    argocd_repository_credential.CLASS,
    proxmox_api_token.CLASS,
    pki_certificate.CLASS,
    http_basic_user.CLASS,
    harbor_robot.CLASS,
    ssh_host_certificate.CLASS,
    ssh_user_ca.CLASS,
    rke2_server_token.CLASS,
    rke2_secrets_encryption.CLASS,
    gitlab_project_access_token.CLASS,
    gitlab_deploy_token.CLASS,
    gitlab_ci_variable.CLASS,
    gitlab_webhook_signing_key.CLASS,
    s3_access_key.CLASS,
)

_BY_KIND = {each.kind: each for each in CLASSES}


def rotation_class(kind: str) -> RotationClass:
    """Return what is known about a class.

    Raises:
        InvalidSpec: there is no such class.
    """
    if kind not in _BY_KIND:
        raise InvalidSpec(
            "the rotation policy",
            [f"kind: there is no class {kind!r}. Known: {', '.join(sorted(_BY_KIND))}"],
        )
    return _BY_KIND[kind]


def check_secrets(secrets: Iterable[SecretRef]) -> None:
    """Look whether every secret has a class and what its class needs.

    Raises:
        InvalidSpec: naming every problem of every secret.
    """
    problems = [problem for secret in secrets for problem in _problems(secret)]
    if problems:
        raise InvalidSpec("the rotation policy", problems)


def _problems(secret: SecretRef) -> list[str]:
    found = _BY_KIND.get(secret.kind)
    if found is None:
        known = ", ".join(sorted(_BY_KIND))
        return [f"{secret.path}: there is no class {secret.kind!r}. Known: {known}"]
    given = secret.parameters
    where = f"{secret.path} ({secret.kind})"
    wanted, optional = set(found.parameters), set(found.optional)
    if "holder" in optional and "holder" in given:
        holder = _BY_KIND.get(given["holder"])
        if holder is None or "holder" in holder.optional:
            return [f"{where}: there is no holder {given['holder']!r}. Name a class that is one"]
        # A value that is handed out by one class and accepted by another has both's parameters.
        wanted |= set(holder.parameters)
        optional |= set(holder.optional)
    missing = sorted(name for name in wanted if not given.get(name))
    unknown = sorted(set(given) - wanted - optional)
    return [f"{where}: the parameter {name} is missing. Add it" for name in missing] + [
        f"{where}: there is no parameter {name}. Remove it or correct its name" for name in unknown
    ]


def adapter_for(site: RotationSite, secret: SecretRef) -> Adapter:
    """Make the adapter of a secret's class against the systems of `site`.

    Raises:
        InvalidSpec: unknown class. PolicyViolation: a person must approve it and nobody has.
    """
    found = rotation_class(secret.kind)
    if found.needs_approval and not site.approvals.get(secret.secret_id):
        raise PolicyViolation(
            f"Unable to rotate {secret.path}: the class {secret.kind} needs a person's approval "
            "each time. Start it by hand and approve it when the run asks."
        )
    made = found.make(site)
    return ObservedByReads(made, site.session) if found.is_observed_by_reads else made


def table() -> list[dict[str, str]]:
    """Return the rows of the README's table of classes."""
    return [
        {
            "class": each.kind,
            "overlap": "yes" if each.has_overlap else "no",
            "observed": each.observed,
            "proved dead": each.proved_dead,
            "expected outage (s)": str(each.outage_seconds),
        }
        for each in CLASSES
    ]
