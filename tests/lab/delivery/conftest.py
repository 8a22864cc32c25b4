"""One control plane with the platform's Argo CD and its real programs, and a Git server."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from blocks.argocd import ArgoCd
from blocks.git_repository import GitRepository
from blocks.kubernetes_api import KubernetesApi, has_condition
from blocks.kubernetes_transport import APPLY_PATCH
from domain.errors import NotFound
from domain.manifest_order import ObjectKey, key_of
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.tenant import Platform, Tenant
from domain.repository_layout import RepositoryLocation
from domain.specs import EXAMPLE, parse_spec
from lab.bare_argocd import BareArgocd, BareGitServer, bare_argocd, bare_git_server
from lab.bare_control_plane import BareControlPlane, bare_control_plane, node_manifest
from lab.edge.view import ClusterView
from lab.toolchain.paths import NotBuiltError, tool
from tasks.kubernetes.platform_apply import apply_manifests
from tasks.kubernetes.render import objects_of, platform_files
from tasks.onboarding.steps import argocd as argocd_step

CLUSTER = "trial"
PARTS = {"metallb": None, "longhorn": False, "monitoring": False}


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareControlPlane]:
    try:
        for program in ("kube-apiserver", "argocd", "kustomize"):
            tool(program)
    except NotBuiltError as error:
        pytest.skip(str(error))
    with bare_control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


@pytest.fixture(scope="session")
def api(control_plane: BareControlPlane) -> Iterator[KubernetesApi]:
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as client:
        yield client


@pytest.fixture(scope="session")
def node(api: KubernetesApi) -> None:
    """A Node on which kwok makes every pod run."""
    manifest: Any = node_manifest("trial-worker-1", "v1.36.3+rke2r1", "10.90.0.61")
    key = key_of(manifest)
    api.apply(manifest)
    answer = api._transport.send(
        "PATCH",
        api._path(key) + "/status",
        query={"fieldManager": "kubelet", "force": "true"},
        body=manifest,
        content_type=APPLY_PATCH,
    )
    assert answer.status == 200
    api.wait_for(key, has_condition("Ready"), "ready", 60)


@pytest.fixture(scope="session")
def platform_objects(api: KubernetesApi, node: None) -> list[dict[str, Any]]:
    """The base, the ingress class and Argo CD, applied as a bootstrap applies them."""
    spec = parse_spec({**EXAMPLE, "platform": PARTS})
    location = RepositoryLocation("https://git.example.org/infrastructure.git", "main")
    found = objects_of(platform_files(spec, location))
    apply_manifests(api, found)
    return found


@pytest.fixture(scope="session")
def programs(
    platform_objects: list[dict[str, Any]],
    control_plane: BareControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BareArgocd]:
    with bare_argocd(tmp_path_factory.mktemp("argocd"), control_plane) as found:
        yield found


@pytest.fixture(scope="session")
def git_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareGitServer]:
    with bare_git_server(tmp_path_factory.mktemp("git"), "gitops.git") as found:
        yield found


@pytest.fixture(scope="session")
def gitops(git_server: BareGitServer) -> GitRepository:
    return GitRepository(
        url=git_server.url("gitops.git"), ca_file=str(git_server.ca_file), credential="gitops"
    )


@dataclass
class Secrets:
    """OpenBao, as far as the step sees it."""

    values: dict[str, dict[str, str]] = field(default_factory=dict)

    def read(self, path: str) -> dict[str, str]:
        if path not in self.values:
            raise NotFound(f"Unable to read the secret {path}: it does not exist. Create it.")
        return self.values[path]

    def exists(self, path: str) -> bool:
        return path in self.values

    @contextmanager
    def session(self) -> Iterator[Secrets]:
        yield self


@pytest.fixture(scope="session")
def secrets(control_plane: BareControlPlane, git_server: BareGitServer) -> Secrets:
    kubeconfig = {"kubeconfig": control_plane.kubeconfig}
    return Secrets({f"clusters/{CLUSTER}/kubeconfig": kubeconfig, "gitops": git_server.login})


@pytest.fixture(scope="module", autouse=True)
def blocks_of_the_site(secrets: Secrets, gitops: GitRepository) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argocd_step, "openbao", lambda _environment: secrets)
        patch.setattr(argocd_step, "git_repository", lambda _name: gitops)
        yield


@pytest.fixture(scope="session")
def argocd(api: KubernetesApi, programs: BareArgocd) -> ArgoCd:
    return ArgoCd(api)


@dataclass(frozen=True)
class Site:
    """What tests do with the GitOps repository and the cluster."""

    api: KubernetesApi
    argocd: ArgoCd
    gitops: GitRepository
    login: Mapping[str, str]

    def tenant(self, name: str, *stages: Stage) -> Tenant:
        spec = AppSpec.model_validate(
            {
                "name": name,
                "team": "storefront",
                "repository": f"storefront/{name}",
                "owners": ["team@example.org"],
                "kind": "python",
                "port": 8080,
                "environments": {stage.value: {} for stage in stages},
            }
        )
        fields: dict[str, Any] = dict.fromkeys(Platform.__dataclass_fields__, "")
        fields |= {
            "environment": "trial",
            "clusters": dict.fromkeys(Stage, CLUSTER),
            "gitops_url": self.gitops.url,
            "gitops_branch": "main",
            "gitops_credential": "gitops",
            "argocd_namespace": "argocd",
        }
        tenant = Tenant(Platform(**fields), spec, 1, dict.fromkeys(stages, "v1"))
        # Another step makes the namespaces.
        for namespace in tenant.namespaces:
            self.api.apply(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            )
        return tenant

    def commit(self, tenant: Tenant, stage: Stage, tag: str, **extra: str) -> str:
        """Commit an overlay: a Deployment, a Service and whatever else is given."""
        directory = tenant.overlay_directory(stage)
        found = {
            "deployment.yaml": _deployment(tenant.name, tag),
            "service.yaml": _service(tenant.name),
            **{f"{file}.yaml": textwrap.dedent(text) for file, text in extra.items()},
        }
        listed = "".join(f"  - {file}\n" for file in found)
        found["kustomization.yaml"] = f"namespace: {tenant.scoped(stage)}\nresources:\n{listed}"
        files = {f"{directory}/{file}": text for file, text in found.items()}
        return self._committed(files, [directory])

    def revert(self, tenant: Tenant, stage: Stage, revision: str) -> str:
        """Commit an overlay as it was at a commit."""
        directory = tenant.overlay_directory(stage)
        with self.gitops.session(self.login) as session:
            files = session.read_files(directory, revision)
        return self._committed(files, [directory])

    def _committed(self, files: Mapping[str, str], replaced: list[str]) -> str:
        with self.gitops.session(self.login) as session:
            return session.commit_files(
                files, "chore: a test's overlay", replaced_directories=replaced
            ).sha

    def image(self, tenant: Tenant, stage: Stage) -> str:
        found = self.api.get(self.deployment(tenant, stage))
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"])

    @staticmethod
    def deployment(tenant: Tenant, stage: Stage) -> ObjectKey:
        return ObjectKey("apps/v1", "Deployment", tenant.scoped(stage), tenant.name)


def _deployment(name: str, tag: str) -> str:
    return textwrap.dedent(f"""\
        apiVersion: apps/v1
        kind: Deployment
        metadata: {{name: {name}}}
        spec:
          replicas: 1
          selector: {{matchLabels: {{app.kubernetes.io/name: {name}}}}}
          template:
            metadata: {{labels: {{app.kubernetes.io/name: {name}}}}}
            spec:
              containers:
                - name: app
                  image: registry.example.org/team/{name}:{tag}
                  ports: [{{name: http, containerPort: 8080}}]
                  readinessProbe: {{httpGet: {{path: /healthz, port: http}}}}
                  resources: {{requests: {{cpu: 10m, memory: 16Mi}}}}
    """)


def _service(name: str) -> str:
    return textwrap.dedent(f"""\
        apiVersion: v1
        kind: Service
        metadata: {{name: {name}}}
        spec:
          selector: {{app.kubernetes.io/name: {name}}}
          ports: [{{name: http, port: 80, targetPort: http}}]
    """)


@pytest.fixture(scope="session")
def site(
    api: KubernetesApi, argocd: ArgoCd, gitops: GitRepository, git_server: BareGitServer
) -> Site:
    return Site(api, argocd, gitops, git_server.login)


@pytest.fixture
def show_ingresses(control_plane: BareControlPlane) -> Iterator[None]:
    """An ingress controller's word on every Ingress, which Argo CD waits for."""
    view, ending = ClusterView(control_plane.kubeconfig, "10.90.0.5"), threading.Event()

    def run() -> None:
        while not ending.wait(0.5):
            view.step()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    ending.set()
    thread.join(10)
