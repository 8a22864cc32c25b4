"""One request after routing: who asks, where, with which typed parameters.

Why: handlers in `responses_*` deal with Proxmox's meaning only; headers, forms and envelopes end
in `server`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.models_access import Token, require
from lab.hypervisor.models_tasks import TaskLog
from lab.hypervisor.models_vm import VirtualMachine
from lab.hypervisor.parameters import NOTHING, Schema


@dataclass(frozen=True)
class Reply:
    """Data with the extra fields that some lists carry beside it."""

    data: Any
    total: int | None = None


@dataclass(frozen=True)
class Call:
    """A routed, authenticated, typed request."""

    hypervisor: Hypervisor
    token: Token
    path: dict[str, str]
    params: dict[str, Any]

    @property
    def node(self) -> str:
        """The node in the path."""
        return self.path["node"]

    @property
    def vmid(self) -> int:
        """The machine in the path."""
        return int(self.path["vmid"])

    def machine(self) -> VirtualMachine:
        """The machine in the path, or the error that Proxmox answers."""
        return self.hypervisor.machine(self.node, self.vmid)

    def require(self, path: str, privileges: str, pool: str | None = None) -> None:
        """403 unless the token holds the privileges; a machine's pool counts too."""
        if pool is None and path.startswith("/vms/"):
            pool = self.hypervisor.pool_of(int(path.rsplit("/", 1)[-1]))
        require(self.token, path, privileges, pool)

    def may(self, path: str, privilege: str) -> bool:
        """True when the token holds a privilege (for filtered lists)."""
        pool = None
        if path.startswith("/vms/"):
            pool = self.hypervisor.pool_of(int(path.rsplit("/", 1)[-1]))
        return privilege in self.token.privileges(path, pool)

    def task(
        self, kind: str, work: Callable[[TaskLog], Awaitable[None]], vmid: int | None = None
    ) -> str:
        """Start a task on the path's node about the path's machine."""
        identifier = str(self.path.get("vmid", "") if vmid is None else vmid)
        return self.hypervisor.tasks.start(self.node, kind, identifier, self.token.identifier, work)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """A path of the API, what it takes, what it needs, and who answers.

    `needs` is a privilege expression on a path template, such as ("/vms/{vmid}", "VM.Audit").
    """

    method: str
    path: str
    handler: Handler
    schema: Schema = NOTHING
    needs: tuple[str, str] | None = None
    needs_quorum: bool = True
