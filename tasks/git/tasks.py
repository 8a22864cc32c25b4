"""Tasks on the infrastructure repository: which machines and which manifests there are.

Promises one directory per cluster, commits that name the run that made them, and no commit when
nothing differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from prefect import task
from prefect.runtime import flow_run

from blocks.git_repository import CommitResult, GitSession, git_repository
from blocks.openbao import openbao
from domain.repository_layout import (
    RepositoryLocation,
    cluster_directory,
    inventory_path,
    platform_directory,
)
from domain.specs import ClusterSpec
from tasks.retry_rules import TEMPORARY


@contextmanager
def _work(environment: str) -> Iterator[GitSession]:
    repository = git_repository(environment)
    with openbao(environment).session() as bao:
        credential = bao.read(repository.credential)
    with repository.session(credential) as session:
        yield session


def _message(subject: str) -> str:
    """Return a commit message that leads back to the run."""
    name = flow_run.name or "none"
    return f"{subject}\n\nRun: {name}\nRun-Id: {flow_run.id or 'none'}\n"


@task(name="locate the repository", **TEMPORARY)
def repository_location(environment: str) -> RepositoryLocation:
    """Return the repository's address and branch."""
    return git_repository(environment).location


@task(name="commit the inventory", tags=["system:git"], **TEMPORARY)
def commit_inventory(
    environment: str, spec: ClusterSpec, inventory: dict[str, Any]
) -> CommitResult:
    """Write the cluster's Ansible inventory to the repository."""
    text = "# Written by infraflows; the cluster's spec is its source.\n" + yaml.safe_dump(
        inventory, sort_keys=True, allow_unicode=True, width=100
    )
    with _work(environment) as work:
        return work.commit_files(
            {inventory_path(spec.name): text}, _message(f"inventory: {spec.name}")
        )


@task(name="commit the platform", tags=["system:git"], **TEMPORARY)
def commit_platform(environment: str, spec: ClusterSpec, files: Mapping[str, str]) -> CommitResult:
    """Make the cluster's directory of manifests hold exactly `files`."""
    with _work(environment) as work:
        return work.commit_files(
            files,
            _message(f"platform: {spec.name}"),
            replaced_directories=[platform_directory(spec.name)],
        )


@task(name="remove the cluster's files", tags=["system:git"], **TEMPORARY)
def remove_cluster_files(environment: str, spec: ClusterSpec) -> CommitResult:
    """Remove everything about the cluster from the branch; its history stays."""
    with _work(environment) as work:
        return work.commit_files(
            {},
            _message(f"remove: {spec.name}"),
            replaced_directories=[cluster_directory(spec.name)],
        )


@task(name="find the cluster's files", tags=["system:git"], **TEMPORARY)
def cluster_files_left(environment: str, spec: ClusterSpec) -> list[str]:
    """Return the paths of the cluster's files that the branch still has."""
    with _work(environment) as work:
        return work.list_files(cluster_directory(spec.name))
