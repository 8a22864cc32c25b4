"""What stands in for the ingress controller, in front of what Argo CD delivered."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.manifest_order import ObjectKey
from domain.onboarding.app_spec import Stage
from lab.bare_control_plane import BareControlPlane, free_ports
from lab.edge.routing import routes
from lab.edge.server import EdgeServer, serve
from lab.edge.view import ClusterView
from tasks.onboarding.steps.argocd import ArgocdStep

HOST = "window.example.org"
INGRESS = f"""\
    apiVersion: networking.k8s.io/v1
    kind: Ingress
    metadata: {{name: window}}
    spec:
      ingressClassName: nginx
      tls: [{{hosts: [{HOST}], secretName: ingress-tls}}]
      rules:
        - host: {HOST}
          http:
            paths:
              - path: /
                pathType: Prefix
                backend: {{service: {{name: window, port: {{name: http}}}}}}
"""


class Edge:
    """The two servers of a test, and a client that goes to them whatever the host is."""

    def __init__(self, ports: list[int], view: ClusterView) -> None:
        self.http, self.https = ports
        self.view = view

    def get(self, host: str, path: str = "/", method: str = "GET") -> httpx.Response:
        with httpx.Client(trust_env=False) as client:
            url = f"http://127.0.0.1:{self.http}{path}"
            return client.request(method, url, headers={"Host": host})

    def get_tls(self, host: str, path: str = "/", ca: str = "") -> httpx.Response:
        context = ssl.create_default_context(cadata=ca) if ca else trusting()
        with httpx.Client(verify=context, trust_env=False) as client:
            return client.get(
                f"https://127.0.0.1:{self.https}{path}",
                headers={"Host": host},
                extensions={"sni_hostname": host},
            )

    def certificate(self, host: str) -> bytes:
        context = trusting()
        with (
            socket.create_connection(("127.0.0.1", self.https), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as found,
        ):
            return found.getpeercert(binary_form=True) or b""


def trusting() -> ssl.SSLContext:
    """For looking at a certificate of whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def certificate(directory: Path, host: str) -> tuple[str, str]:
    """A certificate that signs itself, and its key."""
    files = directory / f"{host}.crt", directory / f"{host}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}",
         "-out", str(files[0]), "-keyout", str(files[1])],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return files[0].read_text(), files[1].read_text()


def tls_secret(namespace: str, pair: tuple[str, str]) -> dict[str, Any]:
    data = dict(zip(("tls.crt", "tls.key"), pair, strict=True))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "ingress-tls", "namespace": namespace},
        "type": "kubernetes.io/tls",
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
    }


def eventually(is_met: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_met():
        assert time.monotonic() < deadline, f"not seen in {seconds} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def edge(
    control_plane: BareControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Edge]:
    view = ClusterView(control_plane.kubeconfig, "10.90.0.5")
    directory = tmp_path_factory.mktemp("edge")
    certificate(directory, "nobody.example.org")
    default = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    default.load_cert_chain(
        directory / "nobody.example.org.crt", directory / "nobody.example.org.key"
    )
    ports = free_ports(2)
    servers = [
        EdgeServer(("127.0.0.1", port), lambda: [view], tls)
        for port, tls in zip(ports, (None, default), strict=True)
    ]
    for server in servers:
        serve(server)
    yield Edge(ports, view)
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def window(site: Any, edge: Edge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An application that Argo CD delivered, with an Ingress and its certificate."""
    tenant = site.tenant("window", Stage.STAGING)
    pair = certificate(tmp_path_factory.mktemp("window"), HOST)
    site.api.apply(tls_secret("window-staging", pair))
    revision = site.commit(tenant, Stage.STAGING, "v1", ingress=INGRESS)
    ArgocdStep().apply(tenant)
    eventually(
        lambda: site.api.list("networking.k8s.io/v1", "Ingress", "window-staging"), "Ingress"
    )
    edge.view.step()
    state = site.argocd.wait_until_synced("window-staging", revision, 60)
    assert state.health == "Healthy"
    yield tenant
    ArgocdStep().remove(tenant)


def test_an_application_answers_with_what_its_pod_is(edge: Edge, site: Any, window: Any) -> None:
    secret = site.api.get(ObjectKey("v1", "Secret", "window-staging", "ingress-tls"))
    ca = base64.b64decode(secret["data"]["tls.crt"]).decode()

    for path in ("/", "/healthz", "/healthz?x=1"):
        answer = edge.get_tls(HOST, path, ca)
        assert answer.status_code == 200
        told = json.loads(answer.text)
        assert (told["app"], told["namespace"]) == ("window", "window-staging")
        assert told["version"] == "v1"
        assert told["image"] == "registry.example.org/team/window:v1"
        assert told["pod"].startswith("window-")
    assert edge.get_tls(HOST, "/no-such-page", ca).status_code == 404


def test_a_host_with_a_certificate_is_not_served_in_clear(edge: Edge, window: Any) -> None:
    answer = edge.get(HOST, "/healthz?a=b")

    assert answer.status_code == 308
    assert answer.headers["Location"] == f"https://{HOST}/healthz?a=b"


def test_an_unknown_host_gets_404_and_the_default_certificate(edge: Edge, window: Any) -> None:
    assert edge.get("stranger.example.org").status_code == 404
    assert edge.get_tls("stranger.example.org").status_code == 404
    assert edge.certificate("stranger.example.org") != edge.certificate(HOST)


def test_a_renewed_certificate_is_served_soon(
    edge: Edge, site: Any, window: Any, tmp_path: Path
) -> None:
    before = edge.certificate(HOST)
    site.api.apply(tls_secret("window-staging", certificate(tmp_path, HOST)))

    eventually(lambda: edge.certificate(HOST) != before, "the new certificate", 15)


def test_the_ingress_shows_who_serves_it(site: Any, window: Any) -> None:
    (ingress,) = site.api.list("networking.k8s.io/v1", "Ingress", "window-staging")

    assert ingress["status"]["loadBalancer"]["ingress"] == [{"ip": "10.90.0.5"}]


def test_a_delivered_version_is_the_one_that_answers(edge: Edge, site: Any, window: Any) -> None:
    revision = site.commit(window, Stage.STAGING, "v2", ingress=INGRESS)
    site.argocd.wait_until_synced("window-staging", revision, 60)

    eventually(lambda: edge.get_tls(HOST).json()["version"] == "v2", "the new version", 20)


def test_without_a_ready_pod_nobody_answers(edge: Edge, site: Any, window: Any) -> None:
    service = ObjectKey("v1", "Service", "window-staging", "window")
    nobody = {"spec": {"selector": {"app.kubernetes.io/name": "nobody"}}}
    application = site.argocd.application_key("window-staging")
    # A person stops Argo CD, or it would heal this at once.
    site.api.merge(application, {"spec": {"syncPolicy": {"automated": None}}}, "a-person")
    site.api.merge(service, nobody, "a-person")

    eventually(lambda: edge.get_tls(HOST).status_code == 503, "503", 20)
    ArgocdStep().apply(window)
    eventually(lambda: edge.get_tls(HOST).status_code == 200, "200 again", 60)


def test_what_changes_something_is_not_simulated(edge: Edge, window: Any) -> None:
    answer = edge.get(HOST, method="POST")

    assert answer.status_code == 501
    assert "POST" in answer.text


def test_the_longest_path_wins_and_a_prefix_ends_at_a_slash() -> None:
    def path(text: str, kind: str, service: str) -> dict[str, Any]:
        backend = {"service": {"name": service, "port": {"number": 80}}}
        return {"path": text, "pathType": kind, "backend": backend}

    paths = [
        path("/", "Prefix", "all"),
        path("/api", "Prefix", "api"),
        path("/api/v1", "Exact", "exact"),
    ]
    ingress = {
        "metadata": {"namespace": "x"},
        "spec": {"rules": [{"host": "h", "http": {"paths": paths}}]},
    }
    found = routes([ingress])

    def service(asked: str) -> str:
        return next(route.service for route in found if route.matches(asked))

    asked = ("/", "/apis", "/api", "/api/v1", "/api/v1/x")
    assert [service(each) for each in asked] == ["all", "all", "api", "exact", "api"]
