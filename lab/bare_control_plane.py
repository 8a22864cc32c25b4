"""A Kubernetes control plane without machines, for tests that need a real API server and no lab.

Why it exists: what a server-side apply does can only be told by a real API server. Promises etcd,
kube-apiserver, kube-controller-manager, kube-scheduler and kwok on loop-back ports of their own,
in one directory, that end with the process that started them. Refuses to be anything more: there
is no second server, no encryption and no audit log here.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.toolchain.paths import tool

KWOK_STAGES = Path(__file__).parent / "rke2" / "internal" / "agent" / "kwok.yaml"
"""The same stand-in for kubelets as on the lab's machines."""

START_SECONDS = 90.0


@dataclass(frozen=True)
class BareControlPlane:
    """Where it runs and how to speak to it as its administrator."""

    directory: Path
    port: int
    etcd_url: str
    kubeconfig: str


class Authority:
    """A CA of one control plane."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = self._subject("bare-ca", "infraflows")
        self._certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        (directory / "ca.crt").write_bytes(self.pem)

    @staticmethod
    def _subject(common_name: str, organisation: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            ]
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name if hasattr(self, "_name") else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def issue(self, name: str, common_name: str, organisation: str) -> tuple[bytes, bytes]:
        """Write and return certificate and key, good for a server on loop-back and for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            self._builder(self._subject(common_name, organisation), key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)
        for suffix, content in zip(("crt", "key"), pair, strict=True):
            (self.directory / f"{name}.{suffix}").write_bytes(content)
        return pair


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def free_ports(count: int) -> list[int]:
    """Return ports of the loop-back device that nobody listened on a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for open_socket in sockets:
        open_socket.close()
    return ports


def _kubeconfig(port: int, authority: bytes, certificate: bytes, key: bytes) -> str:
    def encoded(content: bytes) -> str:
        return base64.b64encode(content).decode()

    return f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {encoded(authority)}
    server: https://127.0.0.1:{port}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {{}}
users:
- name: default
  user:
    client-certificate-data: {encoded(certificate)}
    client-key-data: {encoded(key)}
"""


def _commands(directory: Path, ports: Sequence[int]) -> dict[str, list[str]]:
    client, peer, api = (f"http://127.0.0.1:{port}" for port in ports)
    files = {name: str(directory / name) for name in ("ca.crt", "sa.key", "sa.pub", "kubeconfig")}
    with_kubeconfig = [f"--kubeconfig={files['kubeconfig']}"]
    return {
        "etcd": [
            f"--data-dir={directory}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        "kube-apiserver": [
            f"--etcd-servers={client}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={api.rpartition(':')[2]}",
            f"--tls-cert-file={directory}/server.crt",
            f"--tls-private-key-file={directory}/server.key",
            f"--client-ca-file={files['ca.crt']}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={files['sa.pub']}",
            f"--service-account-signing-key-file={files['sa.key']}",
            "--service-cluster-ip-range=10.43.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--anonymous-auth=false",
            "--endpoint-reconciler-type=none",
        ],
        "kube-controller-manager": [
            *with_kubeconfig,
            f"--service-account-private-key-file={files['sa.key']}",
            f"--root-ca-file={files['ca.crt']}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            "--concurrent-gc-syncs=4",
            "--horizontal-pod-autoscaler-sync-period=2s",
            # A machine that stands still for a while has not lost its nodes.
            "--node-monitor-grace-period=200s",
        ],
        "kube-scheduler": [*with_kubeconfig, "--leader-elect=false", "--secure-port=0"],
        "kwok": [
            *with_kubeconfig,
            f"--config={KWOK_STAGES}",
            "--manage-all-nodes=true",
            "--server-address=127.0.0.1:0",
            "--node-ip=127.0.0.1",
        ],
    }


def _is_ready(port: int, directory: Path) -> bool:
    context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    context.load_cert_chain(directory / "admin.crt", directory / "admin.key")
    try:
        url = f"https://127.0.0.1:{port}/readyz"
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, directory: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(port, directory):
        if process.poll() is not None or time.monotonic() > deadline:
            log = (directory / "kube-apiserver.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"Unable to start kube-apiserver: it is not ready.\n{log}")
        time.sleep(0.2)


def _start(name: str, arguments: Sequence[str], directory: Path) -> subprocess.Popen[bytes]:
    with (directory / f"{name}.log").open("wb") as log:
        # setpriv: the process must not outlive a test run that is killed.
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(tool(name)), *arguments],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=directory,
            env={"PATH": "/usr/bin:/bin", "HOME": str(directory), "GOMAXPROCS": "2"},
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    # Nothing of them is kept, and an API server that is asked to end waits for its last client.
    for process in reversed(processes):
        process.kill()
    for process in processes:
        process.wait()


def _write_credentials(directory: Path, port: int) -> str:
    authority = Authority(directory)
    authority.issue("server", "kube-apiserver", "infraflows")
    kubeconfig = _kubeconfig(
        port, authority.pem, *authority.issue("admin", "system:admin", "system:masters")
    )
    (directory / "kubeconfig").write_text(kubeconfig)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (directory / "sa.key").write_bytes(_private_pem(key))
    (directory / "sa.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return kubeconfig


def node_manifest(name: str, version: str, address: str) -> dict[str, object]:
    """Return a Node that kwok keeps alive."""
    sizes = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    return json.loads(  # type: ignore[no-any-return]
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": address}],
                    "allocatable": sizes,
                    "capacity": sizes,
                    "nodeInfo": {
                        "kubeletVersion": version,
                        "architecture": "amd64",
                        "operatingSystem": "linux",
                    },
                },
            }
        )
    )


@contextmanager
def bare_control_plane(directory: Path) -> Iterator[BareControlPlane]:
    """Run a control plane in `directory` and remove its data in the end."""
    ports = free_ports(3)
    kubeconfig = _write_credentials(directory, ports[2])
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, arguments in _commands(directory, ports).items():
            processes.append(_start(name, arguments, directory))
            if name == "kube-apiserver":
                _wait_until_ready(processes[-1], ports[2], directory)
        yield BareControlPlane(directory, ports[2], f"http://127.0.0.1:{ports[0]}", kubeconfig)
    finally:
        _stop(processes)
        shutil.rmtree(directory / "etcd", ignore_errors=True)
