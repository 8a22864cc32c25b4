"""One request to GitLab: over TLS that is verified, with a deadline, told in the product's words.

The only file that knows `python-gitlab`. Promises that a failure arrives as one of the product's
errors with the server's sentence cut short, and that the token goes to the block's server alone: a
redirect to another host is not followed. Refuses to repeat a request: tasks do, and they know
whether it may be. What asks with a secret in its body shows no sentence of the server at all.
API: https://docs.gitlab.com/api/rest/
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import gitlab
import gitlab.exceptions
import requests

from domain.errors import (
    Conflict,
    LifecycleError,
    NotFound,
    PermanentError,
    QuotaExceeded,
    TemporaryError,
    Unauthorized,
    Unreachable,
)

SHOWN_CHARACTERS = 240
PER_PAGE = 100

HIDDEN = "the reason is not shown, as it may repeat the value"

_OTHER_WRITER = (
    "has changed since you started editing it",
    "already exists",
    "does not exist",
    "Could not update",
    "Please refresh and try again",
    "has already been taken",
)
"""What GitLab answers with 400 when somebody else was first (lib/api/commits.rb: every failure of
the commit service is a 400)."""


class _OneServer(requests.Session):
    """Follows redirects on its own server only: a moved project is one, another host is not."""

    def __init__(self, url: str) -> None:
        super().__init__()
        # Neither a proxy nor a CA bundle nor a .netrc of the environment may come between.
        self.trust_env = False
        self._origin = _origin(url)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target and urlsplit(target).netloc and _origin(target) != self._origin:
            return None
        return target


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


class GitLabTransport:
    """Requests to one GitLab with one token."""

    def __init__(self, url: str, ca_file: str, token: str, timeout_seconds: float) -> None:
        """Prepare the client; nothing is sent yet."""
        if not token:
            raise Unauthorized(
                "Unable to log in to GitLab: the secret has no token. Write `token` to the path "
                "that the block names."
            )
        self._gitlab = gitlab.Gitlab(
            url,
            private_token=token,
            ssl_verify=ca_file or True,
            timeout=timeout_seconds,
            retry_transient_errors=False,
            keep_base_url=True,
            per_page=PER_PAGE,
            session=_OneServer(url),
        )

    def close(self) -> None:
        """Close the connections."""
        self._gitlab.session.close()

    # --- requests ----------------------------------------------------------------------------

    def get(self, act: str, path: str, /, **query: Any) -> Any:
        """Read one thing."""
        return self._once(act, lambda: self._decoded("get", path, query, None))

    def list_all(self, act: str, path: str, /, **query: Any) -> list[dict[str, Any]]:
        """Read a list to its end, page by page."""

        def read() -> Any:
            found = self._gitlab.http_list(
                path, query_data=query, get_all=True, obey_rate_limit=False
            )
            return list(found)

        answer: list[dict[str, Any]] = self._once(act, read)
        return answer

    def post(
        self, act: str, path: str, body: Mapping[str, Any], /, *, is_secret: bool = False
    ) -> Any:
        """Make a thing, or have something done."""
        return self._once(act, lambda: self._decoded("post", path, {}, body), is_secret=is_secret)

    def put(
        self,
        act: str,
        path: str,
        body: Mapping[str, Any],
        /,
        *,
        is_secret: bool = False,
        **query: Any,
    ) -> Any:
        """Change a thing."""
        return self._once(act, lambda: self._decoded("put", path, query, body), is_secret=is_secret)

    def patch(self, act: str, path: str, body: Mapping[str, Any], /) -> Any:
        """Change some of a thing."""
        return self._once(act, lambda: self._decoded("patch", path, {}, body))

    def delete(self, act: str, path: str, /, **query: Any) -> bool:
        """Remove a thing; false when it was gone already."""
        try:
            self._once(act, lambda: self._decoded("delete", path, query, None))
        except NotFound:
            return False
        return True

    # --- parts -------------------------------------------------------------------------------

    def _decoded(
        self, verb: str, path: str, query: Mapping[str, Any], body: Mapping[str, Any] | None
    ) -> Any:
        answer = self._gitlab.http_request(
            verb,
            path,
            query_data=dict(query),
            post_data=None if body is None else dict(body),
            obey_rate_limit=False,
        )
        if answer.status_code == 204 or not answer.content:
            return {}
        return answer.json()

    @staticmethod
    def _once(act: str, send: Callable[[], Any], *, is_secret: bool = False) -> Any:
        failed = f"Unable to {act}"
        try:
            return send()
        except gitlab.exceptions.RedirectError:
            raise PermanentError(
                f"{failed}: GitLab redirects elsewhere. Correct the address in the block, or use "
                "the project's id."
            ) from None
        except gitlab.exceptions.GitlabParsingError:
            raise _no_json(failed) from None
        except gitlab.exceptions.GitlabError as error:
            # The cause would show the body and the request: only what is told goes on.
            raise answer_error(
                failed, error.response_code or 0, error.error_message, is_hidden=is_secret
            ) from None
        except json.JSONDecodeError:
            # Also an error of requests; it is told apart from no answer at all.
            raise _no_json(failed) from None
        except requests.exceptions.RequestException as error:
            raise connection_error(failed, error) from None


def _no_json(failed: str) -> PermanentError:
    return PermanentError(
        f"{failed}: the answer is not JSON. Check that the address is GitLab's, not a proxy's."
    )


def part(name: str | int) -> str:
    """Return a name as one part of a path: a slash in it is no separator."""
    return quote(str(name), safe="")


def shortened(said: Any) -> str:
    """Return a server's sentence on one line and of bounded length."""
    text = said if isinstance(said, str) else json.dumps(said, default=str)
    line = " ".join(text.split()).rstrip(".") or "no reason given"
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def answer_error(failed: str, status: int, said: Any, *, is_hidden: bool = False) -> LifecycleError:
    """Return the error for an HTTP answer; `is_hidden` when the text may repeat a value."""
    text = HIDDEN if is_hidden else shortened(said)
    if status == 401:
        return Unauthorized(
            f"{failed}: the token was refused. Renew it and write it to the OpenBao path of the "
            "GitLab block."
        )
    if status == 403:
        return Unauthorized(f"{failed}: {text}. Give the token's user that right in the project.")
    if status == 404:
        return NotFound(f"{failed}: it does not exist, or the token cannot see it. Check its name.")
    if status == 409:
        return Conflict(f"{failed}: {text}. Look who else changes it, then run again.")
    if status == 429:
        return TemporaryError(f"{failed}: GitLab's rate limit is reached. Try again later.")
    if status in (400, 422) and any(phrase in shortened(said) for phrase in _OTHER_WRITER):
        return Conflict(f"{failed}: {text}. Look who else changes it, then run again.")
    if status == 413:
        return QuotaExceeded(f"{failed}: it is too large for GitLab. Make it smaller.")
    if status == 501:
        return PermanentError(f"{failed}: {text}. This GitLab does not offer it.")
    if status >= 500:
        return Unreachable(f"{failed}: GitLab answered {status}. Look at its state.")
    if 300 <= status < 400:
        return PermanentError(
            f"{failed}: GitLab redirects to another server. Correct the address in the block."
        )
    return PermanentError(f"{failed}: {text} ({status}). Correct the request or the project.")


def connection_error(failed: str, error: requests.exceptions.RequestException) -> LifecycleError:
    """Return the error for a request that got no answer."""
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY" in str(error):
        return PermanentError(
            f"{failed}: the server's certificate is not signed by the CA of the block. "
            "Correct ca_file, or renew the certificate."
        )
    is_late = isinstance(error, requests.exceptions.Timeout)
    kind = "no answer in time" if is_late else "no connection"
    return Unreachable(f"{failed}: {kind}. Check the address and the network.")
