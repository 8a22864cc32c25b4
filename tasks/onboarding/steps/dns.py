"""Host names of an application: those of its stages lead to the ingress, others to the outside.

Promises that a name is only ever set, moved or removed while it bears the application's mark
(see `blocks.dns_owned_names`). Refuses names that somebody else uses, and names outside the zone.
"""

from __future__ import annotations

from typing import ClassVar

from blocks.dns_owned_names import OwnedNames
from blocks.dns_zone import UpdateKey, dns_zone
from blocks.openbao import openbao
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import Things, digest


class Dns:
    """Address records and their marks."""

    name: ClassVar[str] = "dns"
    system: ClassVar[str] = "dns"
    needs: ClassVar[tuple[str, ...]] = ()
    holds_data: ClassVar[bool] = False

    def wanted(self, tenant: Tenant) -> Things:
        """Return every host name of every stage."""
        return {f"name {name}": digest([address]) for name, address in _addresses(tenant).items()}

    def found(self, tenant: Tenant) -> Things:
        """Return the names that bear the application's mark."""
        found = _names(tenant).found()
        return {f"name {name}": digest(addresses) for name, addresses in found.items()}

    def apply(self, tenant: Tenant) -> None:
        """Set what differs and remove what is not wanted, in one update."""
        _names(tenant).set(_addresses(tenant))

    def remove(self, tenant: Tenant) -> None:
        """Remove names, marks and the list."""
        _names(tenant).set({})


def _addresses(tenant: Tenant) -> dict[str, str]:
    platform = tenant.platform
    found = {}
    for stage in tenant.app.stages:
        for name in tenant.hostnames(stage):
            found[name] = platform.ingress_address
        if platform.outside_address:
            for name in tenant.app.environments[stage].outside_hostnames:
                found[name] = platform.outside_address
    return found


def _names(tenant: Tenant) -> OwnedNames:
    environment = tenant.platform.environment
    zone = dns_zone(environment)
    with openbao(environment).session() as bao:
        key = UpdateKey.from_values(bao.read(zone.credential), zone.credential)
    return OwnedNames(zone, key, tenant.name)
