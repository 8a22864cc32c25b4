"""Errors in the codes and words of Harbor.

Why: clients decide by the HTTP status and by `errors[0].code` whether something is absent, taken,
full or forbidden, so the lab must say them as Harbor does.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is answered with an HTTP error."""

    status = 500
    code = "UNKNOWN"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def document(self) -> dict[str, Any]:
        """The body, as Harbor and the OCI distribution specification have it."""
        return {"errors": [{"code": self.code, "message": self.message}]}


class BadRequest(ApiError):
    """400: a field or a parameter has no meaning."""

    status, code = 400, "BAD_REQUEST"


class Unauthorized(ApiError):
    """401: nobody, or at the registry somebody who may not."""

    status, code = 401, "UNAUTHORIZED"

    def __init__(self, message: str = "unauthorized", challenge: str = "") -> None:
        super().__init__(message)
        self.challenge = challenge


class Forbidden(ApiError):
    """403: the caller is known and lacks the right."""

    status, code = 403, "FORBIDDEN"

    def __init__(self, message: str = "forbidden") -> None:
        super().__init__(message)


class Denied(ApiError):
    """403 of the registry: a quota would be passed."""

    status, code = 403, "DENIED"


class NotFound(ApiError):
    """404."""

    status, code = 404, "NOT_FOUND"


class Conflict(ApiError):
    """409: the name is taken."""

    status, code = 409, "CONFLICT"


class PreconditionFailed(ApiError):
    """412: the thing is in use."""

    status, code = 412, "PRECONDITION"


class Unprocessable(ApiError):
    """422: the body does not fit the API's schema."""

    status, code = 422, "UNPROCESSABLE_ENTITY"


class NotSimulated(ApiError):
    """501: Harbor has it, the lab does not; it says so instead of pretending."""

    status, code = 501, "NOT_IMPLEMENTED"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not simulated by the lab's Harbor")


class BadGateway(ApiError):
    """502: the registry behind does not answer."""

    status, code = 502, "BAD_GATEWAY"

    def __init__(self) -> None:
        super().__init__("the registry behind Harbor does not answer")
