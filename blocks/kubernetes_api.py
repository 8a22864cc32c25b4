"""A Kubernetes API server: apply, read, delete and wait, for objects of any kind.

Why it exists: flows speak of objects and conditions, not of HTTP. Promises server-side apply under
one field manager, that says by the resource version whether anything changed; deletes that succeed
on what is absent; waits with an end. Refuses to touch fields that a manifest does not name.
API: https://kubernetes.io/docs/reference/using-api/
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

from blocks.kubernetes_reading import Condition, has_condition, is_same, last_words, node_fact
from blocks.kubernetes_transport import (
    APPLY_PATCH,
    JSON,
    MERGE_PATCH,
    METADATA_ONLY,
    Answer,
    Credentials,
    Transport,
    error_of,
    read_kubeconfig,
)
from domain.apply_reports import Change
from domain.cluster_checks import NodeFact
from domain.errors import NotFound, TemporaryError, Unreachable
from domain.manifest_order import DEFINITION_KIND, Manifest, ObjectKey, key_of

FIELD_MANAGER = "infraflows"
POLL_SECONDS = 0.2
SETTLE_SECONDS = 30.0
"""How long a definition that was just established may take to be served."""

PAGE_SIZE = 500
_READY_LINE = re.compile(r"^\[([+-])\](\S+) ")


class KubernetesApi:
    """One API server, as the holder of a kubeconfig; safe for use by several threads."""

    def __init__(self, credentials: Credentials) -> None:
        """Prepare connections; nothing is sent yet."""
        self._credentials = credentials
        self._transport = Transport(credentials)
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_kubeconfig(cls, text: str) -> KubernetesApi:
        """Return a client for the current context of a kubeconfig.

        Raises:
            PermanentError: the text is no kubeconfig that can be used.
        """
        return cls(read_kubeconfig(text))

    def __enter__(self) -> KubernetesApi:
        """Return itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self._transport.close()

    @property
    def server(self) -> str:
        """Base URL of the API."""
        return self._transport.server

    # --- where objects lie -------------------------------------------------------------------

    def refresh_discovery(self) -> None:
        """Forget which kinds are served, so that fresh definitions are seen."""
        with self._lock:
            self._kinds.clear()

    def _served(self, api_version: str) -> dict[str, tuple[str, bool]]:
        """Return plural name and whether it is namespaced, by kind."""
        with self._lock:
            known = self._kinds.get(api_version)
        if known is not None:
            return known
        prefix = "/apis" if "/" in api_version else "/api"
        answer = self._transport.send("GET", f"{prefix}/{api_version}")
        if answer.status != 200:
            raise error_of(answer, "find the kinds of", api_version)
        found = {
            str(entry["kind"]): (str(entry["name"]), bool(entry["namespaced"]))
            for entry in answer.json.get("resources", [])
            if "/" not in entry["name"]
        }
        with self._lock:
            self._kinds[api_version] = found
        return found

    def _collection(self, api_version: str, kind: str, namespace: str) -> str:
        served = self._served(api_version)
        if kind not in served:
            self.refresh_discovery()
            raise NotFound(
                f"Unable to find the kind {kind} in {api_version}: the API server does not serve "
                "it. Apply its definition first."
            )
        plural, is_namespaced = served[kind]
        prefix = "/apis" if "/" in api_version else "/api"
        if is_namespaced and namespace:
            return f"{prefix}/{api_version}/namespaces/{quote(namespace, safe='')}/{plural}"
        return f"{prefix}/{api_version}/{plural}"

    def _path(self, key: ObjectKey) -> str:
        where = self._collection(key.api_version, key.kind, key.namespace)
        return f"{where}/{quote(key.name, safe='')}"

    # --- objects -----------------------------------------------------------------------------

    def apply(self, manifest: Manifest, *, take_over: bool = True) -> Change:
        """Make an object's fields what the manifest says, and tell whether that changed it.

        `take_over` takes the manifest's fields from other managers; fields that the manifest does
        not name are never touched.

        Raises:
            Conflict: another manager owns a field and `take_over` is off.
        """
        key = key_of(manifest)
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            answer = self._apply_once(key, manifest, take_over)
            if isinstance(answer, Change):
                return answer
            # A definition becomes served a moment after it is established, on each server alone.
            if not answer.is_unknown_path or time.monotonic() > deadline:
                raise error_of(answer, "apply", key.text)
            self.refresh_discovery()
            time.sleep(POLL_SECONDS)

    def _apply_once(self, key: ObjectKey, manifest: Manifest, take_over: bool) -> Change | Answer:
        try:
            path = self._path(key)
        except NotFound:
            return Answer(404, b"")
        # Definitions are large, and their generation tells of every change of their content.
        accept = METADATA_ONLY if key.kind == DEFINITION_KIND else JSON
        before = self._transport.send("GET", path, accept=accept)
        if before.status not in (200, 404):
            return before
        after = self._transport.send(
            "PATCH",
            path,
            query={"fieldManager": FIELD_MANAGER, "force": str(take_over).lower()},
            body=dict(manifest),
            content_type=APPLY_PATCH,
            accept=accept,
        )
        if after.status == 201:
            return Change.CREATED
        if after.status != 200:
            return after
        return Change.UNCHANGED if is_same(before, after) else Change.CHANGED

    def get(self, key: ObjectKey) -> dict[str, Any]:
        """Return an object.

        Raises:
            NotFound: it does not exist, or its kind is not served.
        """
        answer = self._transport.send("GET", self._path(key))
        if answer.status != 200:
            raise error_of(answer, "read", key.text)
        return answer.json

    def list(
        self, api_version: str, kind: str, namespace: str = "", label_selector: str = ""
    ) -> list[dict[str, Any]]:
        """Return all objects of a kind, of one namespace or of all of them."""
        query = {"limit": str(PAGE_SIZE)}
        if label_selector:
            query["labelSelector"] = label_selector
        found: list[dict[str, Any]] = []
        while True:
            path = self._collection(api_version, kind, namespace)
            answer = self._transport.send("GET", path, query=query)
            if answer.status != 200:
                raise error_of(answer, "list", f"{kind} objects")
            page = answer.json
            found += page.get("items") or []
            token = page.get("metadata", {}).get("continue")
            if not token:
                return found
            query["continue"] = str(token)

    def delete(self, key: ObjectKey, *, is_foreground: bool = True) -> bool:
        """Delete an object and, in the foreground, what it owns before it; False if absent."""
        try:
            path = self._path(key)
        except NotFound:
            return False
        policy = "Foreground" if is_foreground else "Background"
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": policy,
        }
        answer = self._transport.send("DELETE", path, body=options)
        if answer.status == 404:
            return False
        if answer.status not in (200, 202):
            raise error_of(answer, "delete", key.text)
        return True

    def merge(self, key: ObjectKey, patch: Mapping[str, Any], manager: str) -> dict[str, Any]:
        """Change single fields of an object that others own, and return it as it is then.

        A `resourceVersion` in the patch makes it a change of exactly what was read.

        Raises:
            NotFound: it does not exist. Conflict: it changed since that version was read.
        """
        answer = self._transport.send(
            "PATCH",
            self._path(key),
            query={"fieldManager": manager},
            body=patch,
            content_type=MERGE_PATCH,
        )
        if answer.status != 200:
            raise error_of(answer, "change", key.text)
        return answer.json

    # --- waiting -----------------------------------------------------------------------------

    def wait_for(
        self, key: ObjectKey, is_met: Condition, wanted: str, timeout_seconds: float
    ) -> dict[str, Any]:
        """Poll an object until it is as wanted; moments without an answer are lived through.

        Raises:
            Unreachable: it is not so in time.
        """
        deadline = time.monotonic() + timeout_seconds
        last = "it was not seen"
        while True:
            try:
                document = self.get(key)
                if is_met(document):
                    return document
                last = last_words(document)
            except (NotFound, TemporaryError) as error:
                last = "it does not exist" if isinstance(error, NotFound) else "no answer"
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"Unable to see {key.text} {wanted} within {timeout_seconds:.0f} s: {last}. "
                    "Look at its events and at the controllers' logs."
                )
            time.sleep(POLL_SECONDS)

    def wait_until_served(self, api_version: str, kind: str, timeout_seconds: float) -> None:
        """Poll discovery until a kind is served: its definition is established, and more.

        Raises:
            Unreachable: it is not served in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                if kind in self._served(api_version):
                    return
            except (NotFound, TemporaryError):
                pass
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"Unable to see {kind} of {api_version} served within {timeout_seconds:.0f} s. "
                    "Look at the conditions of its CustomResourceDefinition."
                )
            time.sleep(POLL_SECONDS)
            self.refresh_discovery()

    def wait_until_gone(self, key: ObjectKey, timeout_seconds: float) -> None:
        """Poll until an object does not exist.

        Raises:
            Unreachable: it is still there in the end.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                self.get(key)
            except NotFound:
                return
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"Unable to see the end of {key.text} within {timeout_seconds:.0f} s: "
                    "something holds it. Look at its finalizers."
                )
            time.sleep(POLL_SECONDS)

    # --- the cluster -------------------------------------------------------------------------

    def version(self) -> str:
        """Return the API server's version, as v1.36.3."""
        answer = self._transport.send("GET", "/version")
        if answer.status != 200:
            raise error_of(answer, "read", "the API server's version")
        return str(answer.json.get("gitVersion", ""))

    def readiness(self) -> dict[str, bool]:
        """Return the checks of `/readyz` and whether each passed."""
        answer = self._transport.send("GET", "/readyz", query={"verbose": ""}, accept="*/*")
        found = {
            match[2]: match[1] == "+"
            for line in answer.body.decode(errors="replace").splitlines()
            if (match := _READY_LINE.match(line))
        }
        if not found:
            raise error_of(answer, "read", "the API server's readiness")
        return found

    def etcd_is_healthy(self) -> bool:
        """Return whether the API server reaches etcd."""
        answer = self._transport.send("GET", "/readyz/etcd", accept="*/*")
        if answer.status in (401, 403):
            raise error_of(answer, "read", "etcd's readiness")
        return answer.status == 200

    def nodes(self) -> tuple[NodeFact, ...]:
        """Return the Nodes by name."""
        found = (node_fact(document) for document in self.list("v1", "Node"))
        return tuple(sorted(found, key=lambda node: node.name))

    def status_with_token(self, token: str, path: str) -> int:
        """Return the HTTP status of a path for the holder of a bearer token, and nobody else."""
        stranger = Credentials(self._credentials.server, self._credentials.ca_pem, token=token)
        transport = Transport(stranger, connections=1)
        try:
            return transport.send("GET", path).status
        finally:
            transport.close()

    def anonymous_statuses(self, paths: Iterable[str]) -> dict[str, int]:
        """Return the HTTP status of each path when it is asked for without any credential."""
        stranger = Transport(self._credentials, connections=1, is_anonymous=True)
        try:
            return {path: stranger.send("GET", path).status for path in paths}
        finally:
            stranger.close()


__all__ = ["Condition", "KubernetesApi", "has_condition"]
