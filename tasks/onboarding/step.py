"""What every step of the saga can do.

Exists so that one engine can plan, apply, take back, remove and prove for a dozen systems. A step
is stateless: it opens its clients inside a call, reads secrets there and drops them.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from domain.onboarding.tenant import Tenant
from domain.onboarding.things import Things


class Step(Protocol):
    """Converges what one system holds of an application; each method may be killed and repeated."""

    name: ClassVar[str]
    """As `harbor-project`; what journal, plan and report call it."""
    system: ClassVar[str]
    """As `harbor`; carries the tag `system:harbor`."""
    needs: ClassVar[tuple[str, ...]]
    """Names of the steps that must be done before; removal goes the other way."""
    holds_data: ClassVar[bool]
    """True where deleting a thing loses data of the application: such a plan waits for a person."""

    def wanted(self, tenant: Tenant) -> Things:
        """Return what there should be; pure, no I/O."""
        ...

    def found(self, tenant: Tenant) -> Things:
        """Return all that there is of the application, also what is no longer wanted.

        Found by the marks of ownership, not by the spec, so that what an older spec made is seen.
        The states compare to those of `wanted`.
        """
        ...

    def apply(self, tenant: Tenant) -> None:
        """Make `found` equal `wanted`: create, change, delete what is not wanted; read back.

        Raises:
            Conflict: a thing exists that belongs to somebody else.
        """
        ...

    def remove(self, tenant: Tenant) -> None:
        """Delete all that `found` returns. Deleting the absent succeeds."""
        ...
