"""One request to Proxmox VE: over TLS that is verified, with a deadline, to a node that answers.

Promises that a failure arrives as one of the product's errors, with the server's own sentence and
never a header or a body, and that reading goes on by another node when one is down. Refuses to
repeat a change whose outcome is unknown: it may have happened.
API: https://pve.proxmox.com/pve-docs/api-viewer/
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests
from proxmoxer import ProxmoxAPI
from proxmoxer.core import ResourceException

from domain.errors import (
    Conflict,
    InvalidSpec,
    LifecycleError,
    NotFound,
    PermanentError,
    QuotaExceeded,
    TemporaryError,
    Unauthorized,
    Unreachable,
)

CONNECT_TIMEOUT_SECONDS = 4.0
SHOWN_CHARACTERS = 240
PROXY_FAILURES = range(595, 600)
"""What a node answers when it could not hand the request to the node that owns the thing."""

_PHRASES: tuple[tuple[str, type[LifecycleError], str], ...] = (
    (r"does not exist|no such (?:task|resource|pool|token|user)", NotFound, "Check its name"),
    (r"already (?:exists|defined)|\bexists\b", Conflict, "Choose another name or remove it"),
    (
        r"is locked|got timeout|can't lock|no quorum|not ready|guest agent is not running",
        TemporaryError,
        "It may pass: try again",
    ),
    (
        r"no space left|out of (?:space|memory)|not enough (?:free )?(?:space|memory)|quota"
        r"|storage \S+ is full",
        QuotaExceeded,
        "Free space or choose another storage",
    ),
    (r"is running|is not empty|not running|no qemu guest agent", Conflict, "Look at its state"),
    (r"permission|not allowed|only root", Unauthorized, "Grant the token's role that privilege"),
)


def sentence_error(failed: str, text: str) -> LifecycleError | None:
    """Return the error that a sentence of Proxmox VE stands for; None when it tells no kind.

    Only this vendor says "does not exist" with code 500, so the text is matched here alone.
    """
    for pattern, kind, advice in _PHRASES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(f"{failed}: {shortened(text)}. {advice}.")
    return None


def shortened(text: str) -> str:
    """Return the first line of a server's sentence, without its end and of bounded length."""
    line = (text.strip().splitlines() or ["no reason given"])[0].strip().rstrip(".")
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def answer_error(failed: str, status: int, text: str, errors: Any) -> LifecycleError:
    """Return the error for an HTTP answer."""
    if status == 401:
        return Unauthorized(
            f"{failed}: the API token was refused. Renew it and write it to OpenBao."
        )
    if status == 403:
        return Unauthorized(f"{failed}: {shortened(text)}. Grant that privilege to the token.")
    if status == 404:
        return NotFound(f"{failed}: it does not exist. Check its name.")
    if status == 400 and isinstance(errors, Mapping) and errors:
        return InvalidSpec(
            f"the parameters ({failed.lower()})",
            [f"{name}: {shortened(str(said))}" for name, said in errors.items()],
        )
    if status == 501:
        return PermanentError(f"{failed}: {shortened(text)}. This API does not offer it.")
    if status in PROXY_FAILURES:
        return Unreachable(f"{failed}: its hypervisor does not answer ({status}). Check the node.")
    told = sentence_error(failed, text)
    if told is not None:
        return told
    if status >= 500:
        return Unreachable(f"{failed}: {shortened(text)} ({status}). Check the hypervisor.")
    return PermanentError(f"{failed}: {shortened(text)} ({status}). Look at its log.")


def connection_error(failed: str, error: requests.exceptions.RequestException) -> LifecycleError:
    """Return the error for a request that got no answer."""
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY" in str(error):
        return PermanentError(
            f"{failed}: the server's certificate is not signed by the CA of the block. "
            "Correct ca_file, or renew the certificate."
        )
    kind = (
        "no answer in time" if isinstance(error, requests.exceptions.Timeout) else "no connection"
    )
    return Unreachable(f"{failed}: {kind}. Check the address and the network.")


def _keep_sentence(response: requests.Response, *_: Any, **__: Any) -> requests.Response:
    """Take the sentence from the body where a proxy or HTTP/2 has dropped the reason phrase."""
    if response.status_code >= 400:
        try:
            told = json.loads(response.text).get("message")
        except (ValueError, AttributeError):
            told = None
        if told:
            response.reason = str(told).strip()
    return response


class ProxmoxTransport:
    """Requests to any node of one cluster."""

    def __init__(
        self,
        urls: Sequence[str],
        ca_file: str,
        credential: Mapping[str, str],
        timeout_seconds: float,
    ) -> None:
        """Prepare a client for each address; nothing is sent yet."""
        user, _, token_name = credential.get("token_id", "").partition("!")
        secret = credential.get("token_secret", "")
        if not (user and token_name and secret):
            raise Unauthorized(
                "Unable to log in to Proxmox VE: the secret needs token_id (user@realm!name) and "
                "token_secret. Write both to the path that the block names."
            )
        self._clients: list[tuple[str, ProxmoxAPI]] = []
        for url in urls:
            parts = urlsplit(url)
            client = ProxmoxAPI(
                parts.hostname,
                port=parts.port or 8006,
                user=user,
                token_name=token_name,
                token_value=secret,
                verify_ssl=ca_file,
                timeout=(CONNECT_TIMEOUT_SECONDS, timeout_seconds),
            )
            session: requests.Session = client._store["session"]
            # Neither a proxy nor a CA bundle of the environment may come between.
            session.trust_env = False
            session.hooks["response"].append(_keep_sentence)
            self._clients.append((url.rstrip("/"), client))

    @property
    def endpoint(self) -> str:
        """The address that answered last; the first one before any answer."""
        return self._clients[0][0]

    def get(self, act: str, path: str, /, **parameters: Any) -> Any:
        """Read; goes through the addresses until one answers."""
        return self._through("GET", act, path, parameters)

    def post(self, act: str, path: str, /, **parameters: Any) -> Any:
        """Start a change."""
        return self._through("POST", act, path, parameters)

    def put(self, act: str, path: str, /, **parameters: Any) -> Any:
        """Change a configuration."""
        return self._through("PUT", act, path, parameters)

    def delete(self, act: str, path: str, /, **parameters: Any) -> Any:
        """Remove."""
        return self._through("DELETE", act, path, parameters)

    def _through(self, method: str, act: str, path: str, parameters: dict[str, Any]) -> Any:
        failed = f"Unable to {act}"
        last: LifecycleError | None = None
        for position, (url, client) in enumerate(list(self._clients)):
            try:
                answer = self._once(client, method, failed, path, parameters)
            except _NotSent as error:
                last = error.meaning
                continue
            except Unreachable as error:
                if method != "GET":
                    raise
                last = error
                continue
            if position:
                # The next request starts with the one that answers.
                self._clients.sort(key=lambda entry: entry[0] != url)
            return answer
        raise last or Unreachable(f"{failed}: no address is configured. Complete the block.")

    @staticmethod
    def _once(
        client: ProxmoxAPI, method: str, failed: str, path: str, parameters: dict[str, Any]
    ) -> Any:
        try:
            answer = getattr(client(path), method.lower())(**parameters)
        except ResourceException as error:
            text = str(error.content or error.status_message or "")
            raise answer_error(failed, error.status_code, text, error.errors) from None
        except requests.exceptions.RequestException as error:
            meaning = connection_error(failed, error)
            if isinstance(meaning, Unreachable) and _was_not_sent(error):
                raise _NotSent(meaning) from None
            raise meaning from None
        if isinstance(answer, dict) and isinstance(answer.get("errors"), bytes):
            raise Unreachable(f"{failed}: the answer is cut off. Try again.")
        return answer


class _NotSent(Exception):
    """The connection was never made, so another address may be tried even for a change."""

    def __init__(self, meaning: LifecycleError) -> None:
        super().__init__()
        self.meaning = meaning


def _was_not_sent(error: requests.exceptions.RequestException) -> bool:
    text = repr(error)
    return isinstance(error, requests.exceptions.ConnectTimeout) or "NewConnectionError" in text
