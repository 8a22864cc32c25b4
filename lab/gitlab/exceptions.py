"""Errors with the HTTP codes and the bodies of GitLab.

Why: clients (python-gitlab, @gitbeaker/rest, our own blocks) decide by them whether something is
gone, taken or forbidden, so the lab must say it as the real thing does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ApiError(Exception):
    """A request that is answered with an HTTP error and a JSON body."""

    def __init__(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {dict(body)}")
        self.status = status
        self.body = dict(body)
        self.headers = dict(headers or {})


class Message(ApiError):
    """The usual form: one message, or messages by field."""

    def __init__(self, status: int, message: str | Mapping[str, Any]) -> None:
        super().__init__(status, {"message": message})


class Unauthorized(Message):
    """401: who are you?"""

    def __init__(self) -> None:
        super().__init__(401, "401 Unauthorized")


class InvalidToken(ApiError):
    """401: the token was good once."""

    def __init__(self, description: str) -> None:
        super().__init__(401, {"error": "invalid_token", "error_description": description})


class InsufficientScope(ApiError):
    """403: the token's scopes do not reach so far."""

    def __init__(self, scopes: str) -> None:
        text = "The request requires higher privileges than provided by the access token."
        super().__init__(
            403, {"error": "insufficient_scope", "error_description": text, "scope": scopes}
        )


class Forbidden(Message):
    """403: the user's role does not reach so far."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(403, f"403 Forbidden - {reason}" if reason else "403 Forbidden")


class Missing(Message):
    """404: there is no such thing, or it is not for you to know."""

    def __init__(self, what: str = "") -> None:
        super().__init__(404, f"404 {what} Not Found" if what else "404 Not found")


class BadRequest(Message):
    """400: the request is understood and cannot be done."""

    def __init__(self, message: str | Mapping[str, Any]) -> None:
        super().__init__(400, message)


class ParameterErrors(ApiError):
    """400: parameters are missing or of the wrong form; all of them at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(400, {"error": ", ".join(problems)})


class Conflict(Message):
    """409: it exists already, or was changed meanwhile."""

    def __init__(self, message: str) -> None:
        super().__init__(409, message)


class Unprocessable(Message):
    """422."""

    def __init__(self, message: str | Mapping[str, Any]) -> None:
        super().__init__(422, message)


class NotSimulated(Message):
    """501: the real GitLab has it, the lab does not; it says so instead of pretending."""

    def __init__(self, what: str) -> None:
        super().__init__(501, f"501 {what} is not simulated by the lab's GitLab")
