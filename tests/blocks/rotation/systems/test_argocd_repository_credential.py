"""A Git repository behind a real NGINX with a password file, read as Argo CD reads it."""

from __future__ import annotations

import base64
import secrets
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from blocks.kubernetes_api import KubernetesApi
from blocks.rotation.argocd_repository_credential import ArgocdRepositoryCredential
from blocks.rotation.hosts import local_host
from blocks.rotation.http_basic_user import HttpBasicUser
from blocks.rotation.registry import check_secrets
from domain.errors import InvalidSpec, NotFound, PolicyViolation
from domain.manifest_order import ObjectKey
from domain.rotation.contract import SecretRef, Values
from lab.bare_control_plane import Authority, BareControlPlane
from lab.bare_hosts import bare_nginx


@dataclass
class Git:
    url: str
    ca_file: str
    password_file: Path
    client: httpx.Client

    def status(self, values: Values) -> int:
        answer = self.client.get(
            f"{self.url}/info/refs",
            params={"service": "git-upload-pack"},
            auth=(values["username"], values["password"]),
        )
        return answer.status_code

    def references(self, values: Values) -> str:
        pair = f"{values['username']}:{values['password']}".encode()
        header = f"Authorization: Basic {base64.b64encode(pair).decode()}"
        command = [
            "git",
            "-c",
            f"http.sslCAInfo={self.ca_file}",
            "-c",
            f"http.extraHeader={header}",
        ]
        done = subprocess.run(
            [*command, "ls-remote", self.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": "/usr/bin:/bin", "GIT_TERMINAL_PROMPT": "0"},
        )
        return done.stdout


@pytest.fixture
def git(tmp_path: Path) -> Iterator[Git]:
    repository = tmp_path / "www" / "app.git"
    subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True)
    tree = subprocess.run(
        ["git", "--git-dir", str(repository), "mktree"], input=b"", capture_output=True, check=True
    ).stdout.strip()
    who = ["-c", "user.name=t", "-c", "user.email=t@test"]
    commit = subprocess.run(
        ["git", "--git-dir", str(repository), *who, "commit-tree", "-m", "first", tree.decode()],
        capture_output=True,
        check=True,
    ).stdout.strip()
    for command in (["update-ref", "refs/heads/main", commit.decode()], ["update-server-info"]):
        subprocess.run(["git", "--git-dir", str(repository), *command], check=True)
    Authority(tmp_path).issue("server", "127.0.0.1", "test")
    password_file = tmp_path / "passwords"
    password_file.write_text("somebody:$6$x$y\n")
    location = f'root {tmp_path}/www; auth_basic "git"; auth_basic_user_file {password_file};'
    with bare_nginx(tmp_path, tmp_path / "server.crt", tmp_path / "server.key", location) as nginx:
        url = f"https://127.0.0.1:{nginx.port}/app.git"
        ca_file = str(tmp_path / "ca.crt")
        context = ssl.create_default_context(cafile=ca_file)
        with httpx.Client(verify=context, timeout=30, trust_env=False) as client:
            yield Git(url, ca_file, password_file, client)


@pytest.fixture
def api(control_plane: BareControlPlane) -> Iterator[KubernetesApi]:
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as client:
        yield client


@pytest.fixture
def secret(api: KubernetesApi, git: Git) -> Iterator[SecretRef]:
    namespace = f"argocd-{secrets.token_hex(4)}"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    yield SecretRef(
        f"argocd/{namespace}",
        ArgocdRepositoryCredential.kind,
        "test",
        {
            "kubeconfig_path": "clusters/test/kubeconfig",
            "namespace": namespace,
            "name": "repository-app",
            "url": git.url,
            "ca_file": git.ca_file,
            "holder": HttpBasicUser.kind,
            "hosts": "local",
            "password_file": str(git.password_file),
            "user": "argocd",
            "test_url": f"{git.url}/info/refs",
        },
    )
    api.delete(ObjectKey("v1", "Namespace", "", namespace), is_foreground=False)


@pytest.fixture
def adapter(api: KubernetesApi) -> ArgocdRepositoryCredential:
    holder = HttpBasicUser(lambda _secret: [local_host()])
    return ArgocdRepositoryCredential(lambda _secret: api, lambda _secret: holder)


@pytest.fixture
def first(adapter: ArgocdRepositoryCredential, secret: SecretRef) -> Values:
    values = adapter.create(secret, 0, None)
    adapter.set(secret, values, None)
    adapter.distribute(secret, values)
    return values


def read_by_argocd(api: KubernetesApi, namespace: str) -> Values:
    """What Argo CD finds: the labelled Secrets of its namespace."""
    label = "argocd.argoproj.io/secret-type=repository"
    (found,) = api.list("v1", "Secret", namespace, label)
    return {key: base64.b64decode(text).decode() for key, text in found["data"].items()}


def test_a_repository_is_read_under_load_and_the_old_password_is_refused(
    api: KubernetesApi,
    git: Git,
    secret: SecretRef,
    adapter: ArgocdRepositoryCredential,
    first: Values,
    bench: Any,
    report: Any,
) -> None:
    namespace = secret.parameters["namespace"]
    rotation = bench.rotation(adapter, secret, first)

    def ask() -> str | None:
        # Argo CD follows the Secret: what it holds is read again for each request.
        values = read_by_argocd(api, namespace)
        status = git.status(values)
        if status == 401 and read_by_argocd(api, namespace) != values:
            status = git.status(read_by_argocd(api, namespace))
        return None if status == 200 else f"HTTP {status}"

    with bench.load(ask) as counted:
        for _turn in range(2):
            proof = rotation.run()
            assert proof.is_dead, proof
            assert proof.answer.endswith("HTTP 401")
            rotation.finish()
    report(adapter.kind, counted)

    assert git.status(first) == 401
    assert "refs/heads/main" in git.references(rotation.current)
    assert git.references(first) == ""
    lines = git.password_file.read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["somebody", rotation.current["username"]]


def test_a_repository_credential_survives_a_kill_at_every_edge(
    api: KubernetesApi,
    git: Git,
    secret: SecretRef,
    adapter: ArgocdRepositoryCredential,
    first: Values,
    bench: Any,
) -> None:
    rotation = bench.rotation(adapter, secret, first)

    def is_served() -> str | None:
        status = git.status(read_by_argocd(api, secret.parameters["namespace"]))
        return None if status == 200 else f"HTTP {status}"

    bench.crash_matrix(rotation, is_served, bench.edges)

    assert len(git.password_file.read_text().splitlines()) == 2


def test_a_rotation_that_is_given_up_leaves_the_former_user(
    api: KubernetesApi,
    git: Git,
    secret: SecretRef,
    adapter: ArgocdRepositoryCredential,
    first: Values,
) -> None:
    new = adapter.create(secret, 1, first)
    adapter.set(secret, new, first)
    adapter.distribute(secret, new)

    adapter.rollback(secret, new, first)

    assert read_by_argocd(api, secret.parameters["namespace"])["password"] == first["password"]
    assert git.status(first) == 200
    assert adapter.prove_dead(secret, new).is_dead


def test_the_password_never_goes_out_without_tls(secret: SecretRef) -> None:
    plain = SecretRef("a", HttpBasicUser.kind, "test", {"test_url": "http://127.0.0.1:1/"})

    with pytest.raises(PolicyViolation, match="it is not HTTPS"):
        HttpBasicUser(lambda _secret: []).test(plain, {"username": "a", "password": "b"})


def test_a_password_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    secret = SecretRef("a", HttpBasicUser.kind, "test", {"password_file": str(tmp_path / "none")})

    with pytest.raises(NotFound, match="Make it with the owner"):
        HttpBasicUser(lambda _secret: [local_host()]).revoke(secret, {"username": "a"})


def test_a_holders_parameters_are_checked_with_those_of_the_class(secret: SecretRef) -> None:
    check_secrets([secret])
    lacking = {k: v for k, v in secret.parameters.items() if k != "password_file"}

    with pytest.raises(InvalidSpec, match="password_file is missing"):
        check_secrets([SecretRef("a", secret.kind, "test", lacking)])
    with pytest.raises(InvalidSpec, match="no holder 'nobody'"):
        check_secrets(
            [SecretRef("a", secret.kind, "test", {**secret.parameters, "holder": "nobody"})]
        )
