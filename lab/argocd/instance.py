"""The Argo CD of one cluster: real programs that live and die with its simulated pods.

What it promises: a program runs while one of its pods does and was Ready a moment ago, with that
pod's arguments, environment, mounted ConfigMaps and ServiceAccount; when the pod goes, so does the
process, and the next Ready pod gets a new one. Only addresses differ: there is no cluster network
between pods that do not exist, so that the programs meet on the loop-back device.
What it refuses: the cluster administrator's rights; these are used to look at pods and to ask for
tokens, as a kubelet does, and never handed on.
"""

from __future__ import annotations

import base64
import logging
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from domain.errors import NotFound
from domain.manifest_order import ObjectKey
from lab.argocd.access import AccountAccess
from lab.argocd.child import Child, Command
from lab.argocd.container import (
    NamespaceReader,
    NotReadyToStart,
    arguments,
    environment,
    mount,
)
from lab.services.files import PRIVATE, private_directory, write_atomically
from lab.toolchain.paths import bin_dir, tool

NAMESPACE = "argocd"
PART_LABEL = "app.kubernetes.io/part-of=argocd"
NAME_LABEL = "app.kubernetes.io/name"
CONTROLLER, REPO_SERVER = "argocd-application-controller", "argocd-repo-server"
SERVER, REDIS = "argocd-server", "argocd-redis"
ORDER = (REDIS, REPO_SERVER, CONTROLLER, SERVER)
"""The order in which they are started, so that each finds what it needs."""

SERVER_TLS = "argocd-server-tls"
REDIS_PROGRAM = "/usr/bin/redis-server"
IMAGE_PROGRAMS = Path(__file__).parent / "bin"
"""What the programs call and their image brings."""
MOUNTS = {"tls": "argocd-tls-certs-cm", "ssh": "argocd-ssh-known-hosts-cm"}
SILENCE_SECONDS = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ports:
    """Where the programs of one cluster listen; all but the API on the loop-back device."""

    api_address: str
    api: int
    api_metrics: int
    repo: int
    repo_metrics: int
    controller_metrics: int
    redis: int


@dataclass(frozen=True)
class ServerCertificate:
    """What the site's certificate issuer would put into Secret `argocd-server-tls`."""

    certificate_file: Path
    key_file: Path


class ArgocdInstance:
    """Looks after the programs of one cluster; `step` is called again and again."""

    def __init__(
        self,
        kubeconfig: str,
        directory: Path,
        log_file: Callable[[str], Path],
        ports: Ports,
        certificate: ServerCertificate | None = None,
    ) -> None:
        self._api = KubernetesApi.from_kubeconfig(kubeconfig)
        self._admin = kubeconfig
        self._directory = private_directory(directory)
        self._log_file = log_file
        self._ports = ports
        self._certificate = certificate
        self._children: dict[str, Child] = {}
        self._access: dict[str, AccountAccess] = {}
        self._ready_at: dict[str, float] = {}
        self._said: dict[str, str] = {}
        for name in ("tmp", "home"):
            private_directory(self._directory / name)

    @property
    def pids(self) -> dict[str, int]:
        """The running programs."""
        return {name: child.pid for name, child in self._children.items() if child.is_running}

    def step(self) -> None:
        """Look at the pods once: end what lost its pod, start what has one."""
        pods = self._pods()
        for name, child in list(self._children.items()):
            if child.pod_uid not in pods.get(name, {}):
                self._children.pop(name).stop()
        if not any(pods.values()):
            return
        reader = NamespaceReader(self._api, NAMESPACE)
        self._provide(reader)
        for name in ORDER:
            if pods.get(name):
                self._look_after(name, pods[name], reader)

    def stop(self) -> None:
        """End all programs."""
        for name in reversed(ORDER):
            child = self._children.pop(name, None)
            if child is not None:
                child.stop()

    # --- pods --------------------------------------------------------------------------------

    def _pods(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The pods whose containers run, by program and uid."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        now = time.monotonic()
        for pod in sorted(
            self._api.list("v1", "Pod", NAMESPACE, PART_LABEL), key=lambda p: p["metadata"]["name"]
        ):
            name = (pod["metadata"].get("labels") or {}).get(NAME_LABEL)
            uid = str(pod["metadata"]["uid"])
            if name not in ORDER or not _is_running(pod):
                continue
            if _is_ready(pod):
                self._ready_at[uid] = now
            # A node that is not heard of for a moment still runs its containers.
            if now - self._ready_at.get(uid, -SILENCE_SECONDS) < SILENCE_SECONDS:
                found.setdefault(name, {})[uid] = pod
        return found

    def _provide(self, reader: NamespaceReader) -> None:
        """Renew what a kubelet keeps up to date in running containers."""
        for name, config_map in MOUNTS.items():
            mount(self._directory / "config" / name, reader.config_map(config_map))
        for access in self._access.values():
            access.renew(NAMESPACE)
        if self._certificate is not None and reader.secret(SERVER_TLS) is None:
            self._api.apply(_tls_secret(self._certificate), take_over=False)

    def _look_after(
        self, name: str, pods: Mapping[str, Mapping[str, Any]], reader: NamespaceReader
    ) -> None:
        child = self._children.get(name)
        if child is None:
            uid = next(iter(pods))
            child = self._children[name] = Child(name, uid, self._directory, self._log_file(name))
        if not child.is_due():
            return
        try:
            child.start(self._command(name, pods[child.pod_uid], reader))
        except NotReadyToStart as reason:
            if self._said.get(name) != str(reason):
                self._said[name] = str(reason)
                _log.info("%s waits: %s", name, reason)

    # --- commands ----------------------------------------------------------------------------

    def _command(self, name: str, pod: Mapping[str, Any], reader: NamespaceReader) -> Command:
        if name == REDIS:
            self._make_redis_password(pod)
            # It was looked for before it was made.
            reader = NamespaceReader(self._api, NAMESPACE)
        container = pod["spec"]["containers"][0]
        variables = environment(container, reader)
        given = arguments(container, variables)
        if name == REDIS:
            return self._redis_command(given)
        command = self._argocd_command(name, variables)
        return Command([*command.argv, *given[1:], *self._listening(name)], command.environment)

    def _argocd_command(self, name: str, variables: Mapping[str, str]) -> Command:
        peers = {
            "REDIS_SERVER": f"127.0.0.1:{self._ports.redis}",
            "ARGOCD_APPLICATION_CONTROLLER_REPO_SERVER": f"127.0.0.1:{self._ports.repo}",
            "ARGOCD_SERVER_REPO_SERVER": f"127.0.0.1:{self._ports.repo}",
        }
        found = {
            **variables,
            **{key: value for key, value in peers.items() if key in variables},
            "PATH": f"{bin_dir()}:{IMAGE_PROGRAMS}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._directory / "home"),
            "TMPDIR": str(self._directory / "tmp"),
            "LANG": "C.UTF-8",
            "GOMAXPROCS": "2",
            "ARGOCD_BINARY_NAME": name,
            "ARGOCD_TLS_DATA_PATH": str(self._directory / "config" / "tls"),
            "ARGOCD_SSH_DATA_PATH": str(self._directory / "config" / "ssh"),
            "ARGOCD_APP_CONF_PATH": str(self._directory / "config"),
            "ARGOCD_ASK_PASS_SOCK": str(self._directory / "ask-pass.sock"),
        }
        if name != REPO_SERVER:
            # The repository server's pod has no token either.
            found |= {
                "KUBECONFIG": str(self._account(name).kubeconfig),
                # `https://kubernetes.default.svc` is where this kubeconfig says.
                "ARGOCD_FAKE_IN_CLUSTER": "true",
            }
        return Command([str(tool("argocd"))], found)

    def _listening(self, name: str) -> list[str]:
        ports = self._ports
        if name == CONTROLLER:
            return [f"--metrics-port={ports.controller_metrics}"]
        if name == REPO_SERVER:
            return [
                "--address=127.0.0.1",
                f"--port={ports.repo}",
                "--metrics-address=127.0.0.1",
                f"--metrics-port={ports.repo_metrics}",
            ]
        return [
            f"--address={ports.api_address}",
            f"--port={ports.api}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={ports.api_metrics}",
            f"--staticassets={self._directory / 'home'}",
        ]

    def _redis_command(self, given: list[str]) -> Command:
        """Redis with the container's settings in a private file: an argument would be public."""
        settings = {
            given[i].removeprefix("--"): given[i + 1] or '""' for i in range(0, len(given) - 1, 2)
        }
        settings |= {"bind": "127.0.0.1", "port": str(self._ports.redis)}
        settings |= {"dir": str(self._directory / "tmp"), "daemonize": "no"}
        text = "".join(f"{key} {value}\n" for key, value in settings.items())
        file = self._directory / "redis.conf"
        write_atomically(file, text, PRIVATE)
        return Command([REDIS_PROGRAM, str(file)], {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})

    def _make_redis_password(self, pod: Mapping[str, Any]) -> None:
        """Run the pod's init container."""
        for container in pod["spec"].get("initContainers") or []:
            command = list(container["command"])
            environment_of = self._argocd_command(REDIS, {}).environment
            done = subprocess.run(
                [str(tool("argocd")), *command[1:]],
                env={**environment_of, "ARGOCD_BINARY_NAME": "argocd"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode != 0:
                raise NotReadyToStart(f"init container {container['name']}: {done.stderr[-300:]}")

    def _account(self, account: str) -> AccountAccess:
        if account not in self._access:
            access = AccountAccess(self._api, self._admin, self._directory, account)
            try:
                access.renew(NAMESPACE)
            except NotFound as error:
                raise NotReadyToStart(str(error)) from None
            self._access[account] = access
        return self._access[account]


def _is_running(pod: Mapping[str, Any]) -> bool:
    is_ending = bool(pod["metadata"].get("deletionTimestamp"))
    return not is_ending and (pod.get("status") or {}).get("phase") == "Running"


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _tls_secret(certificate: ServerCertificate) -> dict[str, Any]:
    key = ObjectKey("v1", "Secret", NAMESPACE, SERVER_TLS)
    files = {"tls.crt": certificate.certificate_file, "tls.key": certificate.key_file}
    return {
        "apiVersion": key.api_version,
        "kind": key.kind,
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            # Argo CD looks at what carries its label only.
            "labels": {"app.kubernetes.io/part-of": "argocd"},
        },
        "type": "kubernetes.io/tls",
        "data": {
            name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()
        },
    }
