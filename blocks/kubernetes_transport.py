"""Requests to a Kubernetes API server, with what a kubeconfig holds and nothing of the user's own.

Promises that the client's key is on a memory file system for the moment in which OpenSSL reads it
and never again, that certificates are always verified, and that an error tells the server's own
words, cut, and never a body that was sent. Refuses kubeconfigs that run programs, point to other
files or skip verification.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes.client import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.client.rest import RESTClientObject

from blocks.private_directory import private_directory, write_private
from domain.errors import (
    Conflict,
    InvalidSpec,
    LifecycleError,
    NotFound,
    PermanentError,
    QuotaExceeded,
    Unauthorized,
    Unreachable,
)

JSON = "application/json"
APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
REQUEST_TIMEOUT_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5.0
MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Credentials:
    """What a kubeconfig's current context says; never printed."""

    server: str
    ca_pem: str = field(repr=False)
    certificate_pem: str = field(default="", repr=False)
    key_pem: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def _named(entries: Any, name: str, part: str) -> Mapping[str, Any]:
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("name") == name:
            found = entry.get(part)
            if isinstance(found, Mapping):
                return found
    raise PermanentError(
        f"Unable to use the kubeconfig: it has no {part} of the name that its context gives. "
        "Store the server's kubeconfig again."
    )


def _decoded(section: Mapping[str, Any], name: str) -> str:
    try:
        return base64.b64decode(str(section.get(name, "")), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise PermanentError(
            f"Unable to use the kubeconfig: its {name} is not base64. Store it again."
        ) from None


def read_kubeconfig(text: str) -> Credentials:
    """Return the credentials of the current context.

    Raises:
        PermanentError: the text is no kubeconfig, or asks for what this product refuses.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        document = None
    if not isinstance(document, Mapping):
        raise PermanentError("Unable to use the kubeconfig: it is not YAML. Store it again.")
    context = _named(document.get("contexts"), document.get("current-context", ""), "context")
    cluster = _named(document.get("clusters"), context.get("cluster", ""), "cluster")
    user = _named(document.get("users"), context.get("user", ""), "user")
    refused = [key for key in ("exec", "auth-provider", "username", "tokenFile") if key in user]
    refused += [key for key in ("insecure-skip-tls-verify", "proxy-url") if cluster.get(key)]
    if refused:
        raise PermanentError(
            f"Unable to use the kubeconfig: {', '.join(refused)} is not allowed. "
            "Store one with certificates or a token."
        )
    found = Credentials(
        server=str(cluster.get("server", "")).rstrip("/"),
        ca_pem=_decoded(cluster, "certificate-authority-data"),
        certificate_pem=_decoded(user, "client-certificate-data"),
        key_pem=_decoded(user, "client-key-data"),
        token=str(user.get("token", "")),
    )
    is_complete = (found.certificate_pem and found.key_pem) or found.token
    if not (found.server.startswith("https://") and found.ca_pem and is_complete):
        raise PermanentError(
            "Unable to use the kubeconfig: it lacks the API's HTTPS address, the CA or the "
            "credentials. Store the server's kubeconfig again."
        )
    return found


def _tls_context(credentials: Credentials, is_anonymous: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=credentials.ca_pem)
        if credentials.key_pem and not is_anonymous:
            with private_directory("kube") as directory:
                certificate = write_private(directory / "crt", credentials.certificate_pem)
                key = write_private(directory / "key", credentials.key_pem)
                context.load_cert_chain(certificate, key)
    except ssl.SSLError:
        raise PermanentError(
            "Unable to use the kubeconfig: its certificates cannot be loaded. Store it again."
        ) from None
    return context


@dataclass(frozen=True)
class Answer:
    """A reply of the API server, whatever its status."""

    status: int
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as an object; empty when it is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def is_unknown_path(self) -> bool:
        """True when the API itself is absent, not merely the object: a definition is not served."""
        if self.status != 404:
            return False
        details = self.json.get("details")
        return not (isinstance(details, Mapping) and details.get("name"))


def error_of(answer: Answer, act: str, thing: str) -> LifecycleError:
    """Return the product's error for a refusal of the API server."""
    document = answer.json
    reason = str(document.get("reason", ""))
    said = " ".join(str(document.get("message", "")).split())[:MESSAGE_LENGTH]
    said = said.rstrip(".") or f"HTTP {answer.status}"
    failed = f"Unable to {act} {thing}: {said}."
    if answer.status == 404:
        return NotFound(failed + " Check that it was applied.")
    if answer.status == 403 and "exceeded quota" in said:
        return QuotaExceeded(failed + " Raise the namespace's quota.")
    if answer.status == 403 and "being terminated" in said:
        return Unreachable(failed + " Wait until the namespace is gone.")
    if answer.status in (401, 403):
        return Unauthorized(failed + " Store the cluster's kubeconfig again.")
    if answer.status in (408, 429) or answer.status >= 500 or reason == "Expired":
        return Unreachable(failed + " Look at the API server's log if it stays so.")
    if answer.status == 409:
        return Conflict(failed + " See which manager owns the field, then decide.")
    if answer.status == 422:
        return InvalidSpec(thing, [f"the API server refused it: {said}. Correct the manifest"])
    return PermanentError(failed + " Correct the manifest.")


class Transport:
    """Connections to one API server; closed by `close`."""

    def __init__(
        self, credentials: Credentials, connections: int = 8, *, is_anonymous: bool = False
    ) -> None:
        """Open a pool; `is_anonymous` leaves every credential out."""
        self.server = credentials.server
        configuration = Configuration(host=credentials.server)
        configuration.proxy = None
        self._rest = RESTClientObject(configuration)
        # Built here and not by the client, which wants certificate files that stay.
        self._rest.pool_manager = urllib3.PoolManager(
            ssl_context=_tls_context(credentials, is_anonymous), maxsize=connections, retries=False
        )
        self._headers: dict[str, str] = {"User-Agent": "infraflows"}
        if credentials.token and not is_anonymous:
            self._headers["Authorization"] = f"Bearer {credentials.token}"

    def close(self) -> None:
        """Close every connection."""
        self._rest.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> Answer:
        """Return the reply, whatever its status.

        Raises:
            Unreachable: there is no reply. PermanentError: its certificate is not the CA's.
        """
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        headers = {**self._headers, "Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        timeouts = (CONNECT_TIMEOUT_SECONDS, timeout_seconds)
        try:
            response = self._rest.request(  # type: ignore[no-untyped-call]  # vendor's own
                method,
                url,
                headers=headers,
                body=None if body is None else dict(body),
                _request_timeout=timeouts,
            )
            return Answer(int(response.status), bytes(response.read() or b""))
        except ApiException as error:
            raise self._untrusted(str(error.reason)) from None
        except urllib3.exceptions.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise self._untrusted(str(error)) from None
            raise Unreachable(
                f"Unable to reach the Kubernetes API at {self.server}: no answer "
                f"({type(error).__name__}). Check that the servers are up and hold the address."
            ) from None

    def _untrusted(self, reason: str) -> LifecycleError:
        if "EOF" in reason or "reset" in reason.lower():
            return Unreachable(
                f"Unable to reach the Kubernetes API at {self.server}: it closed the connection. "
                "Check that the servers are up."
            )
        return PermanentError(
            f"Unable to trust the Kubernetes API at {self.server}: its certificate is not of the "
            "kubeconfig's CA or lacks the address. Store the server's kubeconfig again."
        )
