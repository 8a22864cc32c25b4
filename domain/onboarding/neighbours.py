"""What an application may not take because another one has it: name, project, host names.

Promises every conflict at once. What another application merely wants, because its attempt is
under way, counts as taken.
"""

from __future__ import annotations

from collections.abc import Iterable

from domain.findings import Finding, error
from domain.onboarding.saga import Journal, Version
from domain.onboarding.tenant import Platform, Tenant


def tenant_of(platform: Platform, version: Version) -> Tenant:
    """Return a version of an application on its platform."""
    return Tenant(platform, version.app, version.project_id, dict(version.tags))


def host_names(tenant: Tenant) -> list[str]:
    """Return every host name of an application, inside and outside, in the order of its stages."""
    found: list[str] = []
    for stage in tenant.app.stages:
        found += tenant.hostnames(stage)
        found += tenant.app.environments[stage].outside_hostnames
    return found


def conflicts(tenant: Tenant, own: Journal | None, others: Iterable[Journal]) -> list[Finding]:
    """Return what of `tenant` is taken: by another project under its own name, or by others."""
    found = []
    for version in own.versions if own else []:
        if tenant.project_id != version.project_id:
            found.append(
                error(
                    "name",
                    f"{tenant.name} is the application of GitLab project {version.project_id}, "
                    f"and this spec is of project {tenant.project_id}",
                    "Choose another name, or take the other application off first.",
                )
            )
            break
    wanted = set(host_names(tenant))
    namespaces = {tenant.scoped(stage) for stage in tenant.platform.clusters}
    for other in others:
        if other.name == tenant.name:
            continue
        for version in other.versions:
            found += _with_other(tenant, wanted, namespaces, tenant_of(tenant.platform, version))
    return list(dict.fromkeys(found))


def _with_other(
    tenant: Tenant, wanted: set[str], namespaces: set[str], other: Tenant
) -> list[Finding]:
    found = []
    for name in sorted(wanted & set(host_names(other))):
        found.append(
            error(
                "host name",
                f"{name} belongs to {other.name}",
                "Choose another host name, or take it from the other application first.",
            )
        )
    if tenant.project_id and tenant.project_id == other.project_id:
        found.append(
            error(
                "project",
                f"GitLab project {tenant.project_id} is the application {other.name}",
                f"Keep the name {other.name}: a name never changes.",
            )
        )
    theirs = {other.scoped(stage) for stage in tenant.platform.clusters}
    clash = sorted(namespaces & theirs | ({tenant.name} & theirs) | ({other.name} & namespaces))
    if clash:
        found.append(
            error(
                "name",
                f"{', '.join(clash)} would be of {tenant.name} and of {other.name}",
                "Choose another name.",
            )
        )
    return found
