"""Asking an application for an answer as its users do: by its host name, over verified TLS.

Exists because "Healthy" is what a cluster says of itself. Promises a request to the address where
the ingress answers, with the host name in TLS and in the request, so that it does not depend on
who has seen the new DNS record yet; that the certificate is checked against one named CA; and that
the answer's body is not kept. Refuses plain HTTP and redirects to it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from domain.errors import LifecycleError, PermanentError, Unreachable

VERSION_HEADER = "X-App-Version"
VERSION_KEY = "version"
MOST_BYTES = 64 * 1024
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class WebAnswer:
    """What came back."""

    host: str
    status: int
    version: str
    """As the application tells it, in a header or a JSON field; empty where it does not."""
    certificate_names: tuple[str, ...]
    certificate_ends_at: datetime | None
    seconds: float


class WebProbe:
    """One address that answers for many host names."""

    def __init__(
        self, address: str, ca_pem: str, *, port: int = 443, timeout_seconds: float = 5.0
    ) -> None:
        """Send requests to `address` and trust the CA of `ca_pem` alone."""
        self._address, self._port = address, port
        context = ssl.create_default_context(cadata=ca_pem)
        # An issuing CA of the site is enough; its root need not be known here.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._client = httpx.Client(
            verify=context,
            timeout=timeout_seconds,
            follow_redirects=False,
            # A proxy of the worker's own surroundings would not be where users come from.
            trust_env=False,
        )

    def __enter__(self) -> WebProbe:
        """Use it as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, host: str, path: str = "/") -> WebAnswer:
        """Send one request.

        Raises:
            Unreachable: nobody answered. PermanentError: the certificate is not right.
        """
        address = f"[{self._address}]" if ":" in self._address else self._address
        url = f"https://{address}:{self._port}{path}"
        failed = f"Unable to open https://{host}{path} at {self._address}"
        began = time.monotonic()
        try:
            with self._client.stream(
                "GET", url, headers={"Host": host}, extensions={"sni_hostname": host}
            ) as answer:
                return self._answer(host, answer, began)
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error) or "certificate" in str(error).lower():
                said = str(error).split(":", 1)[-1].strip()[:200]
                raise PermanentError(
                    f"{failed}: its certificate is not right ({said}). Look at the Secret that "
                    "the ingress serves for this host name."
                ) from None
            raise Unreachable(
                f"{failed}: nobody accepts the connection. Check the ingress controller."
            ) from None
        except httpx.HTTPError as error:
            kind = type(error).__name__
            raise Unreachable(f"{failed}: no answer ({kind}). Check the ingress.") from None

    def _answer(self, host: str, answer: httpx.Response, began: float) -> WebAnswer:
        certificate = _certificate(answer)
        body = bytearray()
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > MOST_BYTES:
                break
        return WebAnswer(
            host=host,
            status=answer.status_code,
            version=answer.headers.get(VERSION_HEADER, "") or _told_version(answer, bytes(body)),
            certificate_names=tuple(
                str(value) for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"
            ),
            certificate_ends_at=_ends_at(certificate),
            seconds=time.monotonic() - began,
        )

    def wait_for(
        self, host: str, path: str, is_met: Callable[[WebAnswer], str], timeout_seconds: float
    ) -> WebAnswer:
        """Ask until `is_met` returns no objection, or the time is over.

        Raises:
            Unreachable: with the last objection. PermanentError: the certificate stays wrong.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            failure: LifecycleError
            try:
                answer = self.ask(host, path)
                objection = is_met(answer)
                if not objection:
                    return answer
                failure = Unreachable(
                    f"Unable to see https://{host}{path} answer as it should: {objection}. "
                    "Look at the application's pods and logs."
                )
            except (Unreachable, PermanentError) as error:
                failure = error
            if time.monotonic() > deadline:
                raise failure
            time.sleep(POLL_SECONDS)


def _certificate(answer: httpx.Response) -> dict[str, Any]:
    stream = answer.extensions.get("network_stream")
    secured = stream.get_extra_info("ssl_object") if stream is not None else None
    return dict(secured.getpeercert() or {}) if secured is not None else {}


def _ends_at(certificate: dict[str, Any]) -> datetime | None:
    text = certificate.get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC) if text else None


def _told_version(answer: httpx.Response, body: bytes) -> str:
    if "json" not in answer.headers.get("Content-Type", ""):
        return ""
    try:
        told = httpx.Response(200, content=body).json()
    except ValueError:
        return ""
    return str(told.get(VERSION_KEY) or "") if isinstance(told, dict) else ""
