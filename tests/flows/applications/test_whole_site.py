"""An application's whole life by the flows, on a site where every system is there.

Onboarded from its spec, built by its pipeline, deployed, rolled back and taken off; what is looked
at is what its users and the administrators see.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.flow_runs import resume_flow_run

from blocks.kubernetes_api import KubernetesApi
from blocks.ledger_file import LedgerFile
from blocks.web_probe import WebProbe
from domain.errors import PermanentError, Unreachable
from domain.onboarding.app_spec import AppSpec, Stage
from domain.repository_layout import RepositoryLocation
from domain.specs import EXAMPLE, parse_spec
from flows.deploy_app import deploy_app
from flows.gate import Approval
from flows.offboard_app import offboard_app
from flows.onboard_app import onboard_app
from flows.rollback_app import rollback_app
from lab.bare_gitlab import GROUP
from lab.bare_site import INGRESS, BareSite, bare_site
from lab.layout import ENVIRONMENT, ZONE
from lab.toolchain.paths import NotBuiltError, tool
from tasks.kubernetes.platform_apply import apply_manifests
from tasks.kubernetes.render import objects_of, platform_files

PARTS = {"metallb": None, "longhorn": False, "monitoring": True}
NAME = "shop"
TEAMS_FILE = "second"
HOST = f"shop-staging.apps.{ZONE}"


@pytest.fixture(scope="module")
def site() -> Iterator[BareSite]:
    try:
        for program in ("kube-apiserver", "argocd", "kustomize"):
            tool(program)
    except NotBuiltError as error:
        pytest.skip(str(error))
    location = RepositoryLocation("https://git.example.org/infrastructure.git", "main")
    cluster = parse_spec({**EXAMPLE, "platform": PARTS})
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() else Path("/var/tmp")
    directory = Path(tempfile.mkdtemp(dir=base, prefix="infraflows-site-"))
    directory.chmod(0o755)
    try:
        objects = objects_of(platform_files(cluster, location))
        with bare_site(directory, lambda api: _bootstrap(api, objects)) as found:
            for name, block in found.blocks():
                block.save(name, overwrite=True)
            yield found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _bootstrap(api: KubernetesApi, objects: list[dict[str, Any]]) -> None:
    apply_manifests(api, objects)


@pytest.fixture(scope="module")
def project(site: BareSite) -> Any:
    client = site.gitlab.client()
    group = client.groups.get(GROUP)
    settings = {"name": NAME, "namespace_id": group.id, "initialize_with_readme": True}
    return client.projects.create(settings)


def spec(**fields: Any) -> AppSpec:
    document = {
        "name": NAME,
        "team": "storefront",
        "repository": f"{GROUP}/{NAME}",
        "owners": ["jo@example.org"],
        "kind": "python",
        "port": 8080,
        "environments": {"staging": {"replicas": 2}, "production": {}},
        "secrets": [{"path": "payment", "keys": ["API_KEY"]}],
        "database": {"connections": 5},
        **fields,
    }
    return AppSpec.model_validate(document)


def served(site: BareSite, host: str = HOST) -> str:
    """The version that a user gets."""
    ca_pem = str(site.bao.client().read("pki/cert/ca")["data"]["certificate"])
    with WebProbe(INGRESS, ca_pem) as probe:
        answer = probe.ask(host, "/healthz")
    assert answer.status == 200
    return answer.version


def tags(site: BareSite) -> list[str]:
    with site.harbor.client() as client:
        path = f"/api/v2.0/projects/{NAME}/repositories/{NAME}/artifacts"
        answer = client.get(path)
        found = answer.json() if answer.status_code == 200 else []
    return [tag["name"] for each in found for tag in each.get("tags") or ()]


def push(project: Any, text: str) -> str:
    """Commit as the team does; returns the commit."""
    actions = [{"action": "create", "file_path": f"{text}.txt", "content": text}]
    data = {"branch": "main", "commit_message": f"feat: {text}", "actions": actions}
    return str(project.commits.create(data).id)


def commit_of(project: Any) -> str:
    return str(project.commits.list()[0].id)


def comments(project: Any, commit: str) -> list[str]:
    found = project.commits.get(commit).discussions.list()
    return [note["body"] for each in found for note in each.attributes["notes"]]


def inventory(site: BareSite, project: Any) -> dict[str, Any]:
    admin = site.bao.client()

    def listed(path: str) -> list[str]:
        answer = admin.list(path)
        return sorted(answer["data"]["keys"]) if answer else []

    paths = {each["path"] for each in project.repository_tree(recursive=True)}
    with site.harbor.client() as client:
        harbor = sorted(each["name"] for each in client.get("/api/v2.0/projects").json())
    with site.postgresql.connect() as connection:
        names = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles"
        database = sorted(row[0] for row in connection.execute(names).fetchall())
    return {
        "OpenBao": [listed(path) for path in ("sys/policies/acl", "kv/metadata", "database/roles")],
        "PostgreSQL": database,
        "Harbor": harbor,
        "GitLab": sorted(paths - {f"{TEAMS_FILE}.txt"}),
        "variables": sorted(each.key for each in project.variables.list(get_all=True)),
        "Git": _git(site, "ls-tree", "-r", "--name-only", "main").split(),
    }


def _git(site: BareSite, *arguments: str) -> str:
    command = ["git", "-C", str(site.gitops_directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _approve(run: Any) -> None:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    text = next(str(a.description) for a in found if (a.key or "").endswith("-plan"))
    answer = Approval(approve=True, plan_hash=text.split("`")[1], approved_by="Ada")
    resume_flow_run(run.id, run_input=answer.model_dump())


def test_the_whole_life_of_an_application(
    site: BareSite,
    project: Any,
    policy: Callable[[str], None],
    eventually: Any,
    run_named: Any,
    in_background: Any,
    artifacts_of: Any,
) -> None:
    policy("automatic")
    before = inventory(site, project)
    asked_for = commit_of(project)

    onboard_app(ENVIRONMENT, spec(), project_id=project.id, commit=asked_for)
    assert served(site) == "unbuilt"
    (comment,) = comments(project, asked_for)
    assert "shop: onboarded" in comment
    assert f"https://{HOST}/" in comment
    shown = artifacts_of(run_named("onboard shop"))
    rows = shown["app-shop-checks"][-1]
    assert [row for row in rows if not row["result"].startswith("✔")] == []

    # The pipeline builds what is pushed; the deploy job's webhook would start the deployment.
    first = eventually(lambda: tags(site), "an image of the pipeline")[0]
    deploy_app(ENVIRONMENT, NAME, Stage.STAGING, first)
    assert served(site) == first
    push(project, TEAMS_FILE)
    second = eventually(
        lambda: next((t for t in tags(site) if t != first and t != "unbuilt"), None), "a second"
    )
    deploy_app(ENVIRONMENT, NAME, Stage.STAGING, second)
    assert served(site) == second

    rollback_app(ENVIRONMENT, NAME, Stage.STAGING)
    assert served(site) == first

    changed = spec(environments={"staging": {"replicas": 3}, "production": {}})
    onboard_app(ENVIRONMENT, changed, project_id=project.id, commit=asked_for)
    assert served(site) == first, "a changed spec took the deployed version away"
    assert len(comments(project, asked_for)) == 1

    running = in_background(lambda: offboard_app(ENVIRONMENT, NAME))
    found = eventually(lambda: _paused(run_named("take shop off")), "the gate")
    _approve(found)
    running.join()
    assert inventory(site, project) == before
    with pytest.raises((PermanentError, Unreachable)):
        served(site)
    _assert_ledger(site)


def _paused(run: Any) -> Any:
    return run if run and run.state and run.state.name == "Paused" else None


def _assert_ledger(site: BareSite) -> None:
    path = site.directory / "home" / "ledger"
    (file,) = [found for found in path.rglob("app-shop*") if found.suffix == ".jsonl"]
    count, problems = LedgerFile(file).verify()
    assert problems == []
    steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
    assert count == len(steps)
    assert steps[-1] == "off-board"
    assert {"onboard", "deploy", "roll back", "apply argocd", "remove argocd"} <= set(steps)
