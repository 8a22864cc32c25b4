"""What a run wants to know before it changes anything, gathered without changing anything.

Promises every fault at once: each system is asked on its own, and what it answers is a finding and
not an error. That a step can look at its system shows that address, certificate, credential and
rights are right: no second way of asking is needed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefect import task
from prefect.blocks.core import Block
from prefect.futures import PrefectFuture

from blocks.app_platform import AppPlatform, app_platform
from blocks.dns_zone import DnsZone
from blocks.documents import document
from blocks.git_repository import GitRepository
from blocks.gitlab_server import GitLabServer, gitlab_server
from blocks.harbor import HarborRegistry
from blocks.kubernetes_api import KubernetesApi
from blocks.ledger_file import LedgerDirectory
from blocks.openbao import OpenBaoServer, openbao
from domain.errors import LifecycleError, NotFound
from domain.findings import Finding, error, ok
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.saga import Journal
from domain.onboarding.tenant import Platform, Tenant
from domain.onboarding.things import Things
from tasks.onboarding.journal import all_journals
from tasks.onboarding.step import Step
from tasks.onboarding.steps.gitops import current_tags
from tasks.onboarding.tasks import look_at
from tasks.retry_rules import TEMPORARY

BLOCKS: tuple[type[Block], ...] = (
    OpenBaoServer,
    GitLabServer,
    HarborRegistry,
    DnsZone,
    LedgerDirectory,
    AppPlatform,
)
"""Named after the environment; the GitOps repository is `<environment>-gitops`."""


@dataclass
class Surroundings:
    """What was seen of the site."""

    findings: list[Finding] = field(default_factory=list)
    platform: Platform | None = None
    journals: Sequence[Journal] = ()


def found_error(subject: str, problem: BaseException) -> Finding:
    """Return a finding of an error that tells cause and mending itself."""
    text = str(problem) if isinstance(problem, LifecycleError) else type(problem).__name__
    return error(subject, text, "")


@task(name="look around", tags=["system:openbao"], **TEMPORARY)
def look_around(environment: str) -> Surroundings:
    """Load the blocks, and ask OpenBao and the clusters whether they can be used."""
    seen = Surroundings()
    named: list[tuple[type[Block], str]] = [(kind, environment) for kind in BLOCKS]
    named.append((GitRepository, f"{environment}-gitops"))
    for kind, name in named:
        try:
            document(kind, name)
        except LifecycleError as problem:
            seen.findings.append(found_error(f"block {kind.get_block_type_slug()}", problem))
    if seen.findings:
        return seen
    seen.findings.append(ok("blocks", f"{len(named)} blocks of {environment} are there"))
    seen.platform = app_platform(environment).platform()
    if _is_usable(environment, seen):
        _look_at_clusters(environment, seen.platform, seen)
        _read_journals(environment, seen)
    return seen


def _is_usable(environment: str, seen: Surroundings) -> bool:
    try:
        health = openbao(environment).health()
    except LifecycleError as problem:
        seen.findings.append(found_error("OpenBao", problem))
        return False
    if health.is_sealed or not health.is_initialized:
        fix = "Unseal it: bao operator unseal."
        seen.findings.append(error("OpenBao", "it is sealed or not initialised", fix))
        return False
    seen.findings.append(ok("OpenBao", f"{health.version}, unsealed"))
    return True


def _look_at_clusters(environment: str, platform: Platform, seen: Surroundings) -> None:
    stages: dict[str, list[Stage]] = {}
    for stage, cluster in platform.clusters.items():
        stages.setdefault(cluster, []).append(stage)
    for cluster, used_by in stages.items():
        subject = f"cluster {cluster}"
        try:
            with openbao(environment).session() as bao:
                text = bao.read(platform.kubeconfig_path(used_by[0]))["kubeconfig"]
            with KubernetesApi.from_kubeconfig(text) as api:
                version = api.version()
        except LifecycleError as problem:
            seen.findings.append(found_error(subject, problem))
        else:
            names = ", ".join(stage.value for stage in used_by)
            seen.findings.append(ok(subject, f"{version} answers; it runs {names}"))


def _read_journals(environment: str, seen: Surroundings) -> None:
    try:
        seen.journals = all_journals(environment)
    except LifecycleError as problem:
        seen.findings.append(found_error("journals", problem))


@task(name="find the GitLab project", tags=["system:gitlab"], **TEMPORARY)
def find_project(environment: str, app: AppSpec) -> int:
    """Return the id of the project that a spec names by its path.

    Raises:
        NotFound: GitLab has none of that path, or the token may not see it.
    """
    server = gitlab_server(environment)
    with openbao(environment).session() as bao:
        token = bao.read(server.credential)["token"]
    with server.session(token) as gitlab:
        try:
            return gitlab.project(app.repository).project_id
        except NotFound:
            raise NotFound(
                f"Unable to find the GitLab project {app.repository}: there is none of this path, "
                "or Infraflows may not see it. Create it, or make Infraflows a maintainer of it."
            ) from None


@task(name="read the present tags", tags=["system:git"], **TEMPORARY)
def present_tags(platform: Platform, name: str) -> dict[Stage, str]:
    """Return the image tag of each stage that was built and deployed, as Git says."""
    from domain.onboarding.manifests.conventions import UNBUILT_TAG

    tags = current_tags(platform, name)
    return {stage: tag for stage, tag in tags.items() if tag != UNBUILT_TAG}


def look_at_all(
    steps: Sequence[Step], tenant: Tenant
) -> tuple[dict[str, Things], list[tuple[str, BaseException]]]:
    """Return what each step finds, all asked at once, and what could not be asked."""
    started: dict[str, PrefectFuture[Things]] = {
        step.name: look_at.with_options(tags=[f"system:{step.system}"]).submit(step.name, tenant)
        for step in steps
    }
    found: dict[str, Things] = {}
    problems: list[tuple[str, BaseException]] = []
    for name, future in started.items():
        answer = future.result(raise_on_failure=False)
        if isinstance(answer, Mapping):
            found[name] = answer
        else:
            # A task that was cancelled leaves no exception.
            is_told = isinstance(answer, BaseException)
            problems.append((name, answer if is_told else RuntimeError("no answer")))
    return found, problems
