"""Tasks on a Kubernetes cluster: apply its platform from Git, verify it, forget lost machines.

Promises that the administrator's kubeconfig is read inside each task and dropped with it, and that
what is applied is what the infrastructure repository holds at one commit. Refuses to apply from
anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect import task
from prefect.logging import get_run_logger

from blocks.git_repository import git_repository
from blocks.kubernetes_api import KubernetesApi
from blocks.openbao import openbao
from domain.apply_reports import ApplyReport
from domain.cluster_checks import (
    CheckResult,
    ClusterFacts,
    NodeFact,
    ServerFacts,
    check_cluster,
    server_facts,
    stale_nodes,
)
from domain.errors import Conflict, InvalidSpec, LifecycleError
from domain.manifest_order import ObjectKey
from domain.repository_layout import RepositoryLocation, platform_directory
from domain.specs import ClusterSpec
from tasks.kubernetes.platform_apply import apply_manifests
from tasks.kubernetes.render import objects_of, platform_files
from tasks.kubernetes.scheduling_probe import place_probe
from tasks.retry_rules import TEMPORARY
from tasks.runs.progress import LiveArtifact

KUBECONFIG_KEY = "kubeconfig"
FORBIDDEN_TO_STRANGERS = ("/version", "/api/v1/namespaces", "/api/v1/secrets", "/apis", "/metrics")

Found = TypeVar("Found")


@contextmanager
def _cluster(environment: str, spec: ClusterSpec) -> Iterator[KubernetesApi]:
    path = f"{spec.secrets_path}/kubeconfig"
    with openbao(environment).session() as bao:
        values = bao.read(path)
    if not values.get(KUBECONFIG_KEY):
        raise InvalidSpec(
            f"the secret {path}", [f"{KUBECONFIG_KEY}: missing. Store the kubeconfig again"]
        )
    with KubernetesApi.from_kubeconfig(values[KUBECONFIG_KEY]) as api:
        yield api


def render_platform(spec: ClusterSpec, repository: RepositoryLocation) -> dict[str, str]:
    """Return the platform's files by their path in the infrastructure repository."""
    return platform_files(spec, repository)


def _committed(environment: str, spec: ClusterSpec, revision: str) -> dict[str, str]:
    repository = git_repository(environment)
    with openbao(environment).session() as bao:
        credential = bao.read(repository.credential)
    with repository.session(credential) as work:
        return work.read_files(platform_directory(spec.name), revision)


@task(name="apply the platform", tags=["system:kubernetes"], **TEMPORARY)
def apply_platform(
    environment: str,
    spec: ClusterSpec,
    files: dict[str, str],
    revision: str,
    on_progress: Callable[[float], None] | None = None,
) -> ApplyReport:
    """Apply what the infrastructure repository holds at `revision`.

    `on_progress` is told how much is done, from 0 to 1.

    Raises:
        Conflict: that is not `files`, which this run rendered.
    """
    committed = _committed(environment, spec, revision)
    if committed != files:
        differing = sorted(p for p in {*committed, *files} if committed.get(p) != files.get(p))
        raise Conflict(
            f"Unable to apply the platform of {spec.name}: {len(differing)} files at "
            f"{revision[:12]} are not what this run rendered, {differing[0]} for one. "
            "Find who else commits there, then run again."
        )
    bar = LiveArtifact(
        f"{spec.name}-platform-progress", "progress", f"Objects of {spec.name}'s platform"
    )

    def show(done: int, total: int) -> None:
        bar.show(round(100.0 * done / total, 1))
        if on_progress is not None:
            on_progress(done / total)

    with _cluster(environment, spec) as api:
        report = apply_manifests(api, objects_of(committed), revision, show)
    get_run_logger().info(
        "%d objects created, %d changed, %d unchanged in %.1f s from %s.",
        report.created,
        report.changed,
        report.unchanged,
        report.seconds,
        revision[:12],
    )
    return report


def gather_cluster_facts(api: KubernetesApi, servers: Mapping[str, ServerFacts]) -> ClusterFacts:
    """Look at everything that the checks need; what cannot be read is told and not raised."""
    unknown: dict[str, str] = {}

    def look(part: str, read: Callable[[], Found]) -> Found | None:
        try:
            return read()
        except LifecycleError as error:
            unknown[part] = str(error)
            return None

    nodes = look("nodes", api.nodes)
    return ClusterFacts(
        api_version=look("api_version", api.version),
        readiness=look("readiness", api.readiness),
        nodes=nodes,
        placement=None if nodes is None else look("placement", lambda: place_probe(api, nodes)),
        anonymous_statuses=look(
            "anonymous_statuses", lambda: api.anonymous_statuses(FORBIDDEN_TO_STRANGERS)
        ),
        server_facts=servers,
        unknown=unknown,
    )


@task(name="verify the cluster", tags=["system:kubernetes"], **TEMPORARY)
def verify_cluster(
    environment: str, spec: ClusterSpec, probes: dict[str, dict[str, Any]]
) -> tuple[list[CheckResult], tuple[NodeFact, ...]]:
    """Return the result of every check, and the Nodes; `probes` is what the machines told."""
    servers = {name: server_facts(probe) for name, probe in probes.items()}
    with _cluster(environment, spec) as api:
        facts = gather_cluster_facts(api, servers)
    results = check_cluster(spec, facts)
    logger = get_run_logger()
    for result in results:
        write = logger.info if result.is_passed else logger.error
        write("%s: %s: %s", result.name, result.outcome.value, result.detail)
    return results, facts.nodes or ()


@task(name="remove stale Nodes", tags=["system:kubernetes"], **TEMPORARY)
def remove_stale_nodes(environment: str, spec: ClusterSpec) -> list[str]:
    """Delete the Node objects of machines that the spec no longer has; returns their names."""
    with _cluster(environment, spec) as api:
        found = stale_nodes(spec, [node.name for node in api.nodes()])
        return [name for name in found if api.delete(ObjectKey("v1", "Node", "", name))]
