"""What one cluster says about who answers for a host: read when it is asked for.

What it promises: an answer is what the API server says now; Ingresses alone may be a second old.
Like an ingress controller it writes its address into their status, which is how others see that
they are served. What it refuses: to make up a pod that is not Ready.
"""

from __future__ import annotations

import base64
import logging
import ssl
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.kubernetes_api import KubernetesApi
from blocks.kubernetes_transport import MERGE_PATCH
from domain.errors import LifecycleError, NotFound
from domain.manifest_order import ObjectKey
from lab.edge.routing import Route, TlsName, routes, tls_names

FRESH_SECONDS = 1.0
CERTIFICATE_SECONDS = 2.0
INGRESS_VERSION = "networking.k8s.io/v1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """A Ready pod behind a Service, and what its container tells of itself."""

    namespace: str
    pod: str
    app: str
    image: str
    known_paths: frozenset[str]
    """Paths that the container's probes name."""

    @property
    def version(self) -> str:
        """The image's tag; of an image by digest, the digest."""
        _, at, image_digest = self.image.partition("@")
        if at:
            return image_digest
        name = self.image.rpartition("/")[2]
        return name.partition(":")[2] or "latest"


class ClusterView:
    """One cluster; its methods may be called by many threads."""

    def __init__(self, kubeconfig: str, address: str) -> None:
        self._api = KubernetesApi.from_kubeconfig(kubeconfig)
        self._address = address
        self._lock = threading.Lock()
        self._ingresses: list[dict[str, Any]] = []
        self._read_at = -FRESH_SECONDS
        self._contexts: dict[tuple[str, str], tuple[float, str, ssl.SSLContext]] = {}
        self._turn = 0

    def step(self) -> None:
        """Tell every Ingress who serves it."""
        for ingress in self._read_ingresses():
            shown = (ingress.get("status") or {}).get("loadBalancer", {}).get("ingress") or []
            if [entry.get("ip") for entry in shown] != [self._address]:
                self._show(ingress)

    def stop(self) -> None:
        with self._lock:
            self._ingresses = []

    def _show(self, ingress: Mapping[str, Any]) -> None:
        metadata = ingress["metadata"]
        key = ObjectKey(INGRESS_VERSION, "Ingress", metadata["namespace"], metadata["name"])
        status = {"loadBalancer": {"ingress": [{"ip": self._address}]}}
        # The product never writes a status; its connection can.
        self._api._transport.send(
            "PATCH",
            self._api._path(key) + "/status",
            query={"fieldManager": "lab-edge"},
            body={"status": status},
            content_type=MERGE_PATCH,
        )

    # --- reading -----------------------------------------------------------------------------

    def _read_ingresses(self) -> list[dict[str, Any]]:
        found = self._api.list(INGRESS_VERSION, "Ingress")
        with self._lock:
            self._ingresses, self._read_at = found, time.monotonic()
        return found

    def _known_ingresses(self) -> list[dict[str, Any]]:
        with self._lock:
            if time.monotonic() - self._read_at < FRESH_SECONDS:
                return self._ingresses
        return self._read_ingresses()

    def route(self, host: str, path: str) -> tuple[bool, Route | None]:
        """Whether the host is served, and by what at this path."""
        of_host = [route for route in routes(self._known_ingresses()) if route.host == host]
        return bool(of_host), next((route for route in of_host if route.matches(path)), None)

    def tls_name(self, host: str) -> TlsName | None:
        """The Secret with the host's certificate."""
        return tls_names(self._known_ingresses()).get(host)

    def endpoint(self, route: Route) -> Endpoint | None:
        """The next Ready pod of a route, in turn; None when there is none."""
        try:
            service = self._api.get(ObjectKey("v1", "Service", route.namespace, route.service))
        except NotFound:
            return None
        ports = service.get("spec", {}).get("ports") or []
        if not any(route.port in (p.get("name"), str(p.get("port"))) for p in ports):
            return None
        selector = f"kubernetes.io/service-name={route.service}"
        slices = self._api.list("discovery.k8s.io/v1", "EndpointSlice", route.namespace, selector)
        pods = sorted(
            {
                str(endpoint["targetRef"]["name"])
                for found in slices
                for endpoint in found.get("endpoints") or []
                if (endpoint.get("conditions") or {}).get("ready") and endpoint.get("targetRef")
            }
        )
        while pods:
            self._turn += 1
            name = pods.pop(self._turn % len(pods))
            try:
                pod = self._api.get(ObjectKey("v1", "Pod", route.namespace, name))
            except NotFound:
                continue
            return _endpoint(pod)
        return None

    # --- certificates ------------------------------------------------------------------------

    def tls_context(self, host: str) -> ssl.SSLContext | None:
        """The certificate of a host from its Secret; None if there is none that can be used."""
        name = self.tls_name(host)
        if name is None:
            return None
        place = (name.namespace, name.secret)
        now = time.monotonic()
        with self._lock:
            known = self._contexts.get(place)
        if known is not None and now - known[0] < CERTIFICATE_SECONDS:
            return known[2]
        try:
            secret = self._api.get(ObjectKey("v1", "Secret", *place))
            version = str(secret["metadata"]["resourceVersion"])
            context = known[2] if known and known[1] == version else _context(secret)
        except (LifecycleError, KeyError, ValueError, ssl.SSLError) as error:
            _log.warning("no certificate for %s (%s)", host, type(error).__name__)
            return None
        with self._lock:
            self._contexts[place] = (now, version, context)
        return context


def _endpoint(pod: Mapping[str, Any]) -> Endpoint:
    metadata, container = pod["metadata"], pod["spec"]["containers"][0]
    labels = metadata.get("labels") or {}
    probes = [container.get(f"{kind}Probe") or {} for kind in ("readiness", "liveness", "startup")]
    paths = {probe["httpGet"].get("path", "/") for probe in probes if probe.get("httpGet")}
    return Endpoint(
        namespace=str(metadata["namespace"]),
        pod=str(metadata["name"]),
        app=str(labels.get("infraflows.io/app") or labels.get("app.kubernetes.io/name") or ""),
        image=str(container.get("image", "")),
        known_paths=frozenset(paths),
    )


def _context(secret: Mapping[str, Any]) -> ssl.SSLContext:
    data = secret.get("data") or {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # OpenSSL reads files only; these are on a memory file system for a moment.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        certificate, key = Path(directory) / "tls.crt", Path(directory) / "tls.key"
        for file in (certificate, key):
            file.touch(mode=0o600)
            file.write_bytes(base64.b64decode(data[file.name]))
        context.load_cert_chain(certificate, key)
    return context
