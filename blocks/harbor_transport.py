"""One request to Harbor: over TLS that is verified, with a deadline, told in the product's words.

Promises that a failure arrives as one of the product's errors with Harbor's own sentence cut short,
and that a login goes to the block's server alone: no redirect is followed. Refuses to repeat a
request: tasks do, and they know whether it may be. What carries a secret in its body or its answer
shows no sentence of the server at all.
API: https://goharbor.io/docs/main/build-customize-contribute/configure-swagger/
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from domain.errors import (
    Conflict,
    LifecycleError,
    NotFound,
    PermanentError,
    QuotaExceeded,
    Unauthorized,
    Unreachable,
)

API = "/api/v2.0"
TIMEOUT_SECONDS = 20.0
SHOWN_CHARACTERS = 240
PER_PAGE = 100
DENIED = "DENIED"
"""Code of the registry's answer to a push over the quota."""


class HarborTransport:
    """Requests to one Harbor with one login."""

    def __init__(self, url: str, ca_file: str, username: str, password: str) -> None:
        """Prepare the client; nothing is sent yet."""
        if not username or not password:
            raise Unauthorized(
                "Unable to log in to Harbor: the secret has no username and password. Write both "
                "to the path that the block names."
            )
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.url,
            auth=httpx.BasicAuth(username, password),
            verify=ssl.create_default_context(cafile=ca_file or None),
            timeout=TIMEOUT_SECONDS,
            # Neither a proxy nor a .netrc of the environment may come between.
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send(
        self,
        act: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | int] | None = None,
        is_secret: bool = False,
    ) -> httpx.Response:
        """Send one request; `act` says what for, as `make the project shop`.

        Raises:
            NotFound, Conflict, Unauthorized, QuotaExceeded, PermanentError, Unreachable.
        """
        try:
            answer = self._client.request(
                method, f"{API}{path}", json=body, params=dict(query or {})
            )
        except httpx.HTTPError as error:
            raise Unreachable(
                f"Unable to {act}: Harbor at {self.url} does not answer ({type(error).__name__}). "
                "Check its address, CA file and network."
            ) from None
        if answer.is_success:
            return answer
        raise _error(act, self.url, answer, is_secret=is_secret)

    def list_all(
        self, act: str, path: str, query: Mapping[str, str | int] | None = None
    ) -> list[dict[str, Any]]:
        """Return every page of a list."""
        found: list[dict[str, Any]] = []
        page = 1
        while True:
            wanted = {"page": page, "page_size": PER_PAGE} | dict(query or {})
            part = self.send(act, "GET", path, query=wanted).json()
            found += part
            if len(part) < PER_PAGE:
                return found
            page += 1

    def registry_status(self, act: str) -> int:
        """Return the status that the registry answers this login with.

        Raises:
            Unreachable: it does not answer, or cannot now.
        """
        try:
            answer = self._client.get("/v2/")
        except httpx.HTTPError as error:
            raise Unreachable(
                f"Unable to {act}: the registry at {self.url} does not answer "
                f"({type(error).__name__}). Check its address, CA file and network."
            ) from None
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Unreachable(f"Unable to {act}: the registry answers {answer.status_code}.")
        return answer.status_code


def _sentence(answer: httpx.Response) -> tuple[str, str]:
    """Return the code and the words of Harbor's error, cut to one short line."""
    try:
        error = answer.json()["errors"][0]
        code, text = str(error.get("code", "")), str(error.get("message", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "", ""
    return code, " ".join(text.split())[:SHOWN_CHARACTERS].rstrip(".")


def _error(act: str, url: str, answer: httpx.Response, *, is_secret: bool) -> LifecycleError:
    status = answer.status_code
    code, text = _sentence(answer)
    told = f"HTTP {status}" if is_secret or not text else text
    failed = f"Unable to {act}: {told}."
    if status == 401:
        return Unauthorized(f"{failed} Renew the login that the block names in OpenBao.")
    if status == 403 and code == DENIED:
        return QuotaExceeded(f"{failed} Raise the project's quota or delete images.")
    if status == 403:
        return Unauthorized(f"{failed} Give the login the right that it lacks.")
    if status == 404:
        return NotFound(f"{failed} Look at Harbor.")
    if status in (409, 412):
        return Conflict(f"{failed} Look at it in Harbor, then run again.")
    if status == 429 or status >= 500:
        return Unreachable(f"{failed} Look at the health of Harbor at {url}.")
    return PermanentError(f"{failed} Look at Harbor's log.")
