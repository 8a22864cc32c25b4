"""The preflight: everything that can be known before anything is touched.

Promises one list with all findings, the good ones too, drawn from facts that others gathered.
What is unknown is said to be unknown: it stops the run where going on could do harm, and is a
warning elsewhere. Refuses to look at anything by itself, so that it can be tried on any facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from domain.findings import Finding, Level, error, errors, ok, sentence, warning
from domain.hypervisors import HypervisorFacts
from domain.machines import machines
from domain.ownership import own_machines
from domain.preflight_hypervisor import check_hypervisor
from domain.specs import ClusterSpec

__all__ = [
    "AddressFacts",
    "ArtifactFacts",
    "DnsFacts",
    "Finding",
    "Level",
    "OpenBaoFacts",
    "SiteFacts",
    "ToolFacts",
    "check",
    "errors",
    "sentence",
]

REQUIRED_TOOLS = ("tofu", "proxmox provider", "ansible", "ssh")


@dataclass(frozen=True)
class OpenBaoFacts:
    """Whether the secrets can be read."""

    is_reachable: bool
    is_sealed: bool | None = None
    version: str = "unknown"
    missing_paths: tuple[str, ...] = ()
    problem: str = ""
    """What went wrong while looking; empty when nothing did."""


@dataclass(frozen=True)
class DnsFacts:
    """Whether names can be written, and what stands under the API's name."""

    is_reachable: bool
    zone_exists: bool | None = None
    record: str | None = None
    """Address that the API's name has now; None when it has none."""
    problem: str = ""


@dataclass(frozen=True)
class ToolFacts:
    """Versions of the programs that a run starts; None for one that is absent."""

    versions: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ArtifactFacts:
    """Whether the mirror serves the wanted RKE2 version."""

    is_reachable: bool
    has_version: bool | None = None
    problem: str = ""


@dataclass(frozen=True)
class AddressFacts:
    """Which of the cluster's addresses answer on the network."""

    answering: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SiteFacts:
    """All that was gathered; a part is None when nobody could look."""

    hypervisor: HypervisorFacts | None = None
    openbao: OpenBaoFacts | None = None
    dns: DnsFacts | None = None
    tools: ToolFacts | None = None
    artifacts: ArtifactFacts | None = None
    addresses: AddressFacts | None = None


def check(spec: ClusterSpec, facts: SiteFacts) -> list[Finding]:
    """Return every finding about building `spec` on the site that `facts` describe."""
    return [
        *check_hypervisor(spec, facts.hypervisor),
        *_addresses(spec, facts.addresses, facts.hypervisor),
        *_openbao(facts.openbao),
        *_dns(spec, facts.dns),
        *_artifacts(spec, facts.artifacts),
        *_tools(facts.tools),
    ]


def _addresses(
    spec: ClusterSpec, facts: AddressFacts | None, hypervisor: HypervisorFacts | None
) -> Iterable[Finding]:
    subject = "addresses"
    found = hypervisor.machines if hypervisor is not None else None
    if facts is None or found is None:
        yield warning(
            subject,
            "whether the machines' addresses are free is not known",
            "Check by hand that no other host uses them",
        )
        return
    own = own_machines(spec, found)
    claimed = {m.address: m.name for m in machines(spec) if m.name not in own}
    if not any(m.name in own for m in machines(spec) if m.role == "server"):
        claimed[spec.control_plane.virtual_ip] = "the API's virtual address"
    taken = sorted(facts.answering & set(claimed))
    for address in taken:
        yield error(
            subject,
            f"{address} ({claimed[address]}) answers already, so another host uses it",
            "Free the address or choose another one in the spec",
        )
    if not taken:
        yield ok(subject, "no other host answers on the cluster's addresses")


def _openbao(facts: OpenBaoFacts | None) -> Iterable[Finding]:
    subject = "OpenBao"
    if facts is None:
        yield error(subject, "its state is not known", "Check its block and run again")
    elif not facts.is_reachable:
        yield error(
            subject,
            f"does not answer ({facts.problem or 'no reason given'})",
            "Check the address, the CA file and the network",
        )
    elif facts.is_sealed:
        yield error(subject, f"{facts.version} is sealed", "Unseal it: bao operator unseal")
    else:
        if facts.problem:
            yield error(subject, facts.problem.rstrip("."), "Mend it and run again")
        for path in facts.missing_paths:
            yield error(subject, f"{path} does not exist", f"Create {path}, see docs/bootstrap.md")
        if not facts.problem and not facts.missing_paths:
            yield ok(subject, f"{facts.version} answers, is unsealed and holds what a run reads")


def _dns(spec: ClusterSpec, facts: DnsFacts | None) -> Iterable[Finding]:
    subject = "DNS"
    zone = spec.network.domain
    if facts is None:
        yield warning(subject, "its state is not known", "Check that the site has a DNS block")
    elif not facts.is_reachable:
        yield error(
            subject,
            f"the name server does not answer ({facts.problem or 'no reason given'})",
            "Check the name server and the network",
        )
    elif facts.zone_exists is False:
        yield error(subject, f"the zone {zone} does not exist", "Create it, or mend network.domain")
    elif facts.zone_exists is None:
        yield warning(subject, f"whether the zone {zone} exists is not known", "Look it up")
    elif facts.record is not None and facts.record != spec.control_plane.virtual_ip:
        yield error(
            subject,
            f"the API's name points to {facts.record}, and the virtual address is "
            f"{spec.control_plane.virtual_ip}",
            "Remove the stale record, or correct control_plane.virtual_ip",
        )
    else:
        yield ok(subject, f"the zone {zone} answers and the API's name is free or already right")


def _artifacts(spec: ClusterSpec, facts: ArtifactFacts | None) -> Iterable[Finding]:
    subject = "artifact mirror"
    version = spec.kubernetes.version
    if facts is None:
        yield error(subject, "its state is not known", "Check its address and run again")
    elif not facts.is_reachable:
        yield error(
            subject,
            f"does not answer ({facts.problem or 'no reason given'})",
            "Check its address and the network",
        )
    elif not facts.has_version:
        yield error(
            subject,
            f"does not hold RKE2 {version}",
            "Add that version to the mirror, or choose one that it holds",
        )
    else:
        yield ok(subject, f"holds RKE2 {version}")


def _tools(facts: ToolFacts | None) -> Iterable[Finding]:
    subject = "tools"
    if facts is None:
        yield error(subject, "their versions are not known", "Run again on a worker that has them")
        return
    missing = sorted(
        {name for name in REQUIRED_TOOLS if not facts.versions.get(name)}
        | {name for name, version in facts.versions.items() if not version}
    )
    for name in missing:
        yield error(subject, f"{name} is missing on the worker", f"Install {name}")
    if not missing:
        listed = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
        yield ok(subject, listed)
