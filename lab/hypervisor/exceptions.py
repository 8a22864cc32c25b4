"""Errors in the words and the HTTP codes of Proxmox VE.

Why: clients (proxmoxer, the OpenTofu provider, our own blocks) decide by these very texts whether
something is gone, busy or forbidden, so the lab must say them as the real thing does.
"""

from __future__ import annotations


class ApiError(Exception):
    """A request that is answered with an HTTP error; inside a task, the task's exit status."""

    def __init__(
        self, message: str, *, status: int = 500, errors: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.errors = errors


class ParameterError(ApiError):
    """400: one or more parameters do not fit the schema; all of them are named at once."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("Parameter verification failed.", status=400, errors=errors)


class AuthenticationError(ApiError):
    """401: who are you?"""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401)


class PermissionDenied(ApiError):
    """403: the token lacks a privilege on a path."""

    def __init__(self, path: str, privileges: str) -> None:
        super().__init__(f"Permission check failed ({path}, {privileges})", status=403)


class ConfigMissing(ApiError):
    """500 (as Proxmox does, not 404): there is no such machine on that node."""

    def __init__(self, node: str, vmid: int | str) -> None:
        super().__init__(
            f"Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist"
        )


class LockTimeout(ApiError):
    """500: somebody else holds the machine's configuration lock."""

    def __init__(self, vmid: int) -> None:
        super().__init__(f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")


class MachineLocked(ApiError):
    """500: the configuration itself carries a lock (clone, backup, migrate, snapshot...)."""

    def __init__(self, lock: str) -> None:
        super().__init__(f"VM is locked ({lock})")


class NodeUnreachable(ApiError):
    """595: the API node that was asked could not hand the request to the node that owns it."""

    def __init__(self) -> None:
        super().__init__("No route to host", status=595)


class NoQuorum(ApiError):
    """500: the cluster file system is read-only."""

    def __init__(self) -> None:
        super().__init__("cluster not ready - no quorum?")


class NotSimulated(ApiError):
    """501: the real API has it, the lab does not; it says so instead of pretending."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not simulated by the lab's hypervisor", status=501)


class MethodNotImplemented(ApiError):
    """501 for a route that does not exist here, worded as Proxmox words it."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Method '{method} {path}' not implemented", status=501)
