"""Tasks on the site's DNS zone: the names of a cluster's machines and of its API.

Promises that names are derived from the spec, so that they are found again without any memory,
those of machines that the cluster no longer has as well. Refuses names of other clusters.
"""

from __future__ import annotations

from prefect import task

from blocks.dns_zone import DnsZone, UpdateKey, dns_zone
from blocks.openbao import openbao
from domain.errors import LifecycleError, NotFound, Unreachable
from domain.preflight import DnsFacts
from domain.specs import ClusterSpec
from domain.zone_names import api_name, possible_names, wanted_addresses
from tasks.retry_rules import TEMPORARY


def _key(environment: str, zone: DnsZone) -> UpdateKey:
    with openbao(environment).session() as bao:
        return UpdateKey.from_values(bao.read(zone.credential), zone.credential)


@task(name="publish names", tags=["system:dns"], **TEMPORARY)
def publish_names(environment: str, spec: ClusterSpec) -> list[str]:
    """Give every machine and the API its name, take back those of machines that are gone."""
    zone = dns_zone(environment)
    key = _key(environment, zone)
    wanted = wanted_addresses(spec)
    changed = zone.set_addresses(wanted, key)
    stale = [name for name in possible_names(spec) if name not in wanted]
    return [*changed, *zone.remove(stale, key)]


@task(name="remove names", tags=["system:dns"], **TEMPORARY)
def remove_names(environment: str, spec: ClusterSpec) -> list[str]:
    """Remove every name of the cluster; returns those that were there."""
    zone = dns_zone(environment)
    return zone.remove(possible_names(spec), _key(environment, zone))


@task(name="find names", tags=["system:dns"], **TEMPORARY)
def names_left(environment: str, spec: ClusterSpec) -> list[str]:
    """Return the cluster's names that the zone still has."""
    return list(dns_zone(environment).lookup_all(possible_names(spec)))


@task(name="gather DNS facts", tags=["system:dns"], **TEMPORARY)
def gather_dns_facts(environment: str, spec: ClusterSpec) -> DnsFacts:
    """Look whether the zone is there and to what the API's name points; changes nothing."""
    zone = dns_zone(environment)
    try:
        zone.serial()
        found = zone.lookup(api_name(spec))
    except Unreachable as error:
        return DnsFacts(is_reachable=False, problem=str(error))
    except NotFound:
        return DnsFacts(is_reachable=True, zone_exists=False)
    except LifecycleError as error:
        return DnsFacts(is_reachable=True, problem=str(error))
    return DnsFacts(
        is_reachable=True,
        zone_exists=zone.zone == spec.network.domain,
        record=", ".join(found) or None,
    )
