"""What really exists of applications in the lab's systems, read with its administrator's rights.

Why it exists: "nothing is left of it" is to be seen by an administrator who knows nothing of the
application: everything of a system is listed, before and after, and the lists are compared. What it
promises: nothing is changed and no secret's value is told. What it refuses: to use the product's
marks of ownership, which the product may have got wrong.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import httpx

from blocks.kubernetes_api import KubernetesApi
from lab.holdings import names_in_dns, secret_paths
from lab.layout import DEMO_CLUSTER, GIT_BRANCH, GITOPS_REPOSITORY, Layout
from lab.onboarding_demo import BRANCH, gitlab
from lab.services.credentials import credential
from lab.services.https_probe import request
from lab.services.namespace import inside
from lab.services.openbao_setup import KV_MOUNT, root_client
from lab.services.postgresql import BINARIES, USER

ARGOCD_NAMESPACE = "argocd"
IN_ARGOCD = (
    ("argoproj.io/v1alpha1", "Application"),
    ("argoproj.io/v1alpha1", "AppProject"),
    ("v1", "Secret"),
)
_DATABASE_QUERY = (
    "SELECT 'database ' || datname FROM pg_database "
    "UNION ALL SELECT 'role ' || rolname FROM pg_roles ORDER BY 1"
)
PROJECT_SETTINGS = (
    "merge_method",
    "only_allow_merge_if_pipeline_succeeds",
    "only_allow_merge_if_all_discussions_are_resolved",
    "remove_source_branch_after_merge",
    "squash_option",
)


class HarborRefused(Exception):
    """Harbor answered with an error."""


def application_lines(layout: Layout, project_id: int) -> list[str]:
    """One line for each thing of applications in every system, and in one GitLab project."""
    systems = {
        "GitLab": _in_gitlab(layout, project_id),
        "Harbor": _in_harbor(layout),
        "OpenBao": _in_openbao(layout),
        "PostgreSQL": _in_postgresql(layout),
        "DNS": iter(names_in_dns(layout)),
        "Kubernetes": _in_cluster(layout),
        "GitOps": _in_gitops(layout),
    }
    return [f"{system}: {thing}" for system, things in systems.items() for thing in sorted(things)]


def cluster_api(layout: Layout) -> KubernetesApi:
    """Return the API of the demo's cluster as its administrator; use it inside the network."""
    path = f"{KV_MOUNT}/data/clusters/{DEMO_CLUSTER}/kubeconfig"
    found = root_client(layout).call("GET", path)["data"]["data"]
    return KubernetesApi.from_kubeconfig(found["kubeconfig"])


def _in_gitlab(layout: Layout, project_id: int) -> Iterator[str]:
    def get(path: str) -> Any:
        return gitlab(layout, "GET", f"projects/{project_id}{path}")

    project = get("")
    yield from (f"setting {name} {project[name]}" for name in PROJECT_SETTINGS)
    yield from (f"variable {each['key']}" for each in get("/variables?per_page=100"))
    yield from (f"deploy token {t['name']}" for t in get("/deploy_tokens") if not t["revoked"])
    yield from (f"access token {t['name']}" for t in get("/access_tokens") if not t["revoked"])
    yield from (f"webhook to {each['url']}" for each in get("/hooks"))
    yield from (f"protected tags {each['name']}" for each in get("/protected_tags"))
    for branch in get("/protected_branches"):
        levels = [
            level["access_level"]
            for kind in ("push_access_levels", "merge_access_levels")
            for level in branch[kind]
        ]
        yield f"protected branch {branch['name']} {levels}"
    path = f"projects/{project_id}/repository/tree?recursive=true&per_page=100&ref={BRANCH}"
    tree = gitlab(layout, "GET", path, absent_is_none=True)  # nothing was pushed to it yet
    yield from (f"file {each['path']}" for each in tree or () if each["type"] == "blob")


def _in_harbor(layout: Layout) -> Iterator[str]:
    login = credential(layout, "harbor")
    basic = httpx.BasicAuth(login["username"], login["password"])
    header = next(basic.auth_flow(httpx.Request("GET", layout.harbor_url))).headers["authorization"]

    def get(path: str) -> Any:
        url = f"{layout.harbor_url}/api/v2.0/{path}"
        reply = request(layout, "GET", url, headers={"Authorization": header})
        if reply.status_code >= 400:
            raise HarborRefused(f"GET {path}: HTTP {reply.status_code} {reply.text[:300]}")
        return reply.json()

    for project in get("projects?page_size=100"):
        yield f"project {project['name']}"
        level = f"Level=project,ProjectID={project['project_id']}"
        for robot in get(f"robots?page_size=100&q={level}"):
            yield f"robot {robot['name']}"
        for repository in get(f"projects/{project['name']}/repositories?page_size=100"):
            yield f"repository {repository['name']}"
    yield from (f"robot {robot['name']}" for robot in get("robots?page_size=100"))


def _in_openbao(layout: Layout) -> Iterator[str]:
    bao = root_client(layout)

    def keys(path: str) -> list[str]:
        found = bao.call("GET", f"{path}?list=true", absent_is_none=True)
        return list(found["data"]["keys"]) if found else []

    yield from (f"path {path}" for path in secret_paths(layout, ""))
    yield from (f"policy {name}" for name in keys("sys/policies/acl"))
    yield from (f"database role {name}" for name in keys("database/roles"))
    for mount, method in bao.call("GET", "sys/auth")["data"].items():
        # A cluster's login method is of the cluster: only who may log in by it is of applications.
        if method["type"] in ("kubernetes", "approle"):
            yield from (f"login {mount}{name}" for name in keys(f"auth/{mount}role"))


def _in_postgresql(layout: Layout) -> Iterator[str]:
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--"]
    psql = [str(BINARIES / "psql"), "--no-psqlrc", "--tuples-only", "--no-align"]
    done = subprocess.run(
        [*drop, *psql, f"--host={layout.run_directory}/postgresql", "--command", _DATABASE_QUERY],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    # Users of applications' pods are OpenBao's, live for an hour and are nobody's trace.
    yield from (line for line in done.stdout.splitlines() if not line.startswith("role v-"))


def _in_cluster(layout: Layout) -> Iterator[str]:
    with inside(layout.namespace_path), cluster_api(layout) as api:
        for namespace in api.list("v1", "Namespace"):
            yield f"namespace {namespace['metadata']['name']}"
        for version, kind in IN_ARGOCD:
            for found in api.list(version, kind, ARGOCD_NAMESPACE):
                yield f"{kind} {found['metadata']['name']}"


def _in_gitops(layout: Layout) -> Iterator[str]:
    repository = layout.git_directory / GITOPS_REPOSITORY
    argv = ["git", "-c", "safe.directory=*", f"--git-dir={repository}", "ls-tree", "-r"]
    done = subprocess.run(
        [*argv, "--name-only", GIT_BRANCH], capture_output=True, text=True, check=False
    )
    # A repository without a commit has no branch, and no files.
    yield from done.stdout.splitlines() if done.returncode == 0 else []
