"""What can be wrong between the fields of a cluster's spec, each of which is right by itself.

Promises to find every such problem at once, each with the fields that take part in it. Refuses to
look at the live site: that is the preflight's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from domain.spec_fields import WORKERS_AT_MOST

if TYPE_CHECKING:
    from domain.specs import ClusterSpec


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the fields that take part, and the sentence about it."""

    fields: tuple[str, ...]
    text: str


def consecutive(first: str, count: int) -> list[IPv4Address]:
    """Return `count` addresses from `first` on (may leave any network: the caller checks)."""
    start = int(IPv4Address(first))
    return [IPv4Address(min(start + i, 2**32 - 1)) for i in range(count)]


def _span(spec: ClusterSpec) -> dict[str, list[IPv4Address]]:
    """Every address that the spec claims in the machines' network, by the field that claims it."""
    spans = {
        "control_plane.first_address": consecutive(
            spec.control_plane.first_address, spec.control_plane.count
        ),
        "control_plane.virtual_ip": [IPv4Address(spec.control_plane.virtual_ip)],
        "network.gateway": [IPv4Address(spec.network.gateway)],
    }
    if spec.workers.count and spec.workers.first_address:
        spans["workers.first_address"] = consecutive(spec.workers.first_address, spec.workers.count)
    pool = spec.platform.metallb
    if pool is not None:
        first, last = int(IPv4Address(pool.first_address)), int(IPv4Address(pool.last_address))
        if 0 <= last - first < 2**16:
            spans["platform.metallb"] = [IPv4Address(n) for n in range(first, last + 1)]
    return spans


def _outside(spec: ClusterSpec, spans: Mapping[str, list[IPv4Address]]) -> Iterable[Problem]:
    network = IPv4Network(spec.network.cidr)
    usable = f"{network[1]} to {network[-2]}" if network.num_addresses > 2 else str(network)
    for field, addresses in spans.items():
        bad = [a for a in addresses if a not in network]
        edge = [a for a in addresses if a in (network[0], network[-1])]
        if bad:
            yield Problem(
                (field, "network.cidr"),
                f"{field}: {bad[0]} is outside the network {network}. Use addresses from {usable}",
            )
        elif edge:
            yield Problem(
                (field, "network.cidr"),
                f"{field}: {edge[0]} is the network's own first or last address. "
                f"Use addresses from {usable}",
            )


def _overlapping(spans: Mapping[str, list[IPv4Address]]) -> Iterable[Problem]:
    fields = list(spans)
    for i, left in enumerate(fields):
        for right in fields[i + 1 :]:
            both = sorted(set(spans[left]) & set(spans[right]))
            if both:
                yield Problem(
                    (left, right),
                    f"{left} and {right}: both claim {both[0]}"
                    + (f" and {len(both) - 1} more" if len(both) > 1 else "")
                    + ". Move one of them",
                )


def _networks_apart(spec: ClusterSpec) -> Iterable[Problem]:
    named = {
        "network.cidr": IPv4Network(spec.network.cidr),
        "network.pod_cidr": IPv4Network(spec.network.pod_cidr),
        "network.service_cidr": IPv4Network(spec.network.service_cidr),
    }
    fields = list(named)
    for i, left in enumerate(fields):
        for right in fields[i + 1 :]:
            if named[left].overlaps(named[right]):
                yield Problem(
                    (left, right),
                    f"{left} and {right}: {named[left]} overlaps {named[right]}. "
                    "Choose networks that share no address",
                )
    pods = named["network.pod_cidr"]
    machines = spec.control_plane.count + spec.workers.count
    if pods.prefixlen > 24 or 2 ** (24 - pods.prefixlen) < machines:
        yield Problem(
            ("network.pod_cidr", "control_plane.count", "workers.count"),
            f"network.pod_cidr: {pods} holds fewer /24 networks than the {machines} machines need. "
            "Choose a larger network",
        )


def _workers_and_pool(spec: ClusterSpec) -> Iterable[Problem]:
    if spec.workers.count and not spec.workers.first_address:
        yield Problem(
            ("workers.first_address", "workers.count"),
            f"workers.first_address: missing, and workers.count is {spec.workers.count}. "
            "Give the address of the first worker, or set workers.count to 0",
        )
    pool = spec.platform.metallb
    if pool and IPv4Address(pool.first_address) > IPv4Address(pool.last_address):
        yield Problem(
            ("platform.metallb.first_address", "platform.metallb.last_address"),
            f"platform.metallb: {pool.first_address} comes after {pool.last_address}. "
            "Swap the first and the last address",
        )
    longest = f"{spec.name}-worker-{WORKERS_AT_MOST}.{spec.network.domain}"
    if len(longest) > 253:
        yield Problem(
            ("name", "network.domain"),
            f"network.domain: with the cluster's name a host name has {len(longest)} characters, "
            "and DNS allows 253. Choose shorter names",
        )


def cross_problems(spec: ClusterSpec) -> list[Problem]:
    """Return what is wrong between fields that are each right by themselves."""
    spans = _span(spec)
    return [
        *_outside(spec, spans),
        *_overlapping(spans),
        *_networks_apart(spec),
        *_workers_and_pool(spec),
    ]
