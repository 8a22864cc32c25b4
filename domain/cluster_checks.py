"""Whether a cluster is what its spec says: every check, decided from facts alone.

Promises one result per check, always all of them, in the same order. Refuses to pass what is not
known: a fact that could not be read makes its check `unknown`, and `unknown` fails the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from domain.machines import Machine, machines, servers
from domain.specs import ClusterSpec


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class CheckResult:
    """One check, with what was found."""

    name: str
    outcome: Outcome
    detail: str

    @property
    def is_passed(self) -> bool:
        """True only for a check whose facts were read and are right."""
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True)
class NodeFact:
    """A Node object as the API shows it."""

    name: str
    is_ready: bool
    version: str
    address: str = ""
    is_schedulable: bool = True


@dataclass(frozen=True)
class EtcdMember:
    """A member as etcd itself lists it."""

    name: str
    address: str
    is_healthy: bool
    is_learner: bool = False


@dataclass(frozen=True)
class ServerFacts:
    """What one server's own look at itself gave; None where it could not look."""

    etcd_members: tuple[EtcdMember, ...] | None = None
    has_encrypted_secrets: bool | None = None
    has_audit_log: bool | None = None


@dataclass(frozen=True)
class PlacementFacts:
    """Where the probe's pods came to run."""

    wanted: int
    available: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class ClusterFacts:
    """One look at a cluster; each part is None when it could not be read."""

    api_version: str | None = None
    readiness: Mapping[str, bool] | None = None
    """By check of `/readyz`: whether it passed."""
    nodes: tuple[NodeFact, ...] | None = None
    placement: PlacementFacts | None = None
    anonymous_statuses: Mapping[str, int] | None = None
    """By path: HTTP status of a request without credentials."""
    server_facts: Mapping[str, ServerFacts] = field(default_factory=dict)
    """By server's name."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """By part that is None: why."""


def _member(entry: Mapping[str, Any]) -> EtcdMember:
    peers = entry.get("peer_urls") or [""]
    return EtcdMember(
        name=str(entry.get("name", "")),
        address=urlsplit(str(peers[0])).hostname or str(peers[0]),
        is_healthy=entry.get("is_healthy") is True,
        is_learner=entry.get("is_learner") is True,
    )


def server_facts(probe: Mapping[str, Any]) -> ServerFacts:
    """Return the facts in a machine's probe; what it does not hold as a plain answer is unknown."""

    def known(name: str) -> bool | None:
        value = probe.get(name)
        return value if isinstance(value, bool) else None

    members = probe.get("etcd_members")
    return ServerFacts(
        etcd_members=tuple(_member(m) for m in members) if isinstance(members, list) else None,
        has_encrypted_secrets=known("has_encrypted_secrets"),
        has_audit_log=known("has_audit_log"),
    )


Verdict = tuple[Outcome, str]


def _missing(facts: ClusterFacts, part: str) -> Verdict:
    return Outcome.UNKNOWN, facts.unknown.get(part, "it was not looked at")


def _verdict(problems: Sequence[str], fine: str) -> Verdict:
    if problems:
        return Outcome.FAILED, "; ".join(problems)
    return Outcome.PASSED, fine


def _api(spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    if facts.api_version is None:
        return _missing(facts, "api_version")
    return Outcome.PASSED, f"{facts.api_version} answers on {spec.control_plane.virtual_ip}"


def _readiness(_spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    if facts.readiness is None:
        return _missing(facts, "readiness")
    if "etcd" not in facts.readiness:
        return Outcome.UNKNOWN, "the API server did not say whether it reaches etcd"
    bad = sorted(name for name, is_passed in facts.readiness.items() if not is_passed)
    return _verdict(
        [f"{name} is not ready" for name in bad], f"{len(facts.readiness)} checks, etcd among them"
    )


def _members_problems(
    server: str, members: Sequence[EtcdMember], wanted: Sequence[Machine]
) -> list[str]:
    names = {machine.address: machine.name for machine in wanted}
    seen = {member.address for member in members}
    problems = [f"{server} does not list {names[a]}" for a in names if a not in seen]
    for member in members:
        label = names.get(member.address) or f"{member.name or 'a member'} at {member.address}"
        if member.address not in names:
            problems.append(f"{server} lists {label}, which the spec does not have")
        if not member.is_healthy:
            problems.append(f"{label} is not healthy, says {server}")
        if member.is_learner:
            problems.append(f"{label} is still a learner, says {server}")
    if len(members) > len(seen):
        problems.append(f"{server} lists an address twice")
    return problems


def _per_server(
    spec: ClusterSpec,
    facts: ClusterFacts,
    judge: Callable[[str, ServerFacts], list[str] | None],
    fine: str,
) -> Verdict:
    """Judge every server of the spec; one server that could not be asked makes it unknown."""
    problems: list[str] = []
    unheard: list[str] = []
    for machine in servers(spec):
        found = facts.server_facts.get(machine.name)
        judged = None if found is None else judge(machine.name, found)
        if judged is None:
            unheard.append(machine.name)
        else:
            problems += judged
    if problems:
        return Outcome.FAILED, "; ".join(dict.fromkeys(problems))
    if unheard:
        reason = facts.unknown.get("server_facts", "it did not tell")
        return Outcome.UNKNOWN, f"{', '.join(unheard)}: {reason}"
    return Outcome.PASSED, fine


def _etcd(spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    wanted = servers(spec)

    def judge(name: str, found: ServerFacts) -> list[str] | None:
        if found.etcd_members is None:
            return None
        return _members_problems(name, found.etcd_members, wanted)

    count = len(wanted)
    return _per_server(
        spec, facts, judge, f"{count} healthy member{'s' if count > 1 else ''}, as in the spec"
    )


def _nodes(spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    if facts.nodes is None:
        return _missing(facts, "nodes")
    wanted = {machine.name: machine for machine in machines(spec)}
    found = {node.name: node for node in facts.nodes}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    for name, node in found.items():
        if name not in wanted:
            problems.append(f"{name} is not in the spec")
            continue
        if not node.is_ready:
            problems.append(f"{name} is not Ready")
        if node.address and node.address != wanted[name].address:
            problems.append(f"{name} has the address {node.address}, not {wanted[name].address}")
    return _verdict(problems, f"{len(found)} Nodes, all Ready, as in the spec")


def _versions(spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    if facts.nodes is None:
        return _missing(facts, "nodes")
    if facts.api_version is None:
        return _missing(facts, "api_version")
    wanted = spec.kubernetes.version
    problems = [
        f"{node.name} runs {node.version or 'an unknown version'}"
        for node in facts.nodes
        if not _same_version(node.version, wanted)
    ]
    if not _same_version(facts.api_version, wanted):
        problems.append(f"the API server runs {facts.api_version}")
    return _verdict([f"{problem}, not {wanted}" for problem in problems], f"{wanted} everywhere")


def _same_version(found: str, wanted: str) -> bool:
    """Compare versions; a build that does not tell its RKE2 release is judged by Kubernetes'."""
    if "+" in found:
        return found == wanted
    return found == wanted.partition("+")[0]


def _placement(spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    if facts.placement is None:
        return _missing(facts, "placement")
    placed = facts.placement
    distinct = sorted(set(placed.nodes))
    known = {machine.name for machine in machines(spec)}
    problems: list[str] = []
    if placed.wanted < 1:
        problems.append("no Node takes pods")
    if placed.available < placed.wanted:
        problems.append(f"{placed.available} of {placed.wanted} pods became available")
    if len(distinct) < placed.wanted:
        problems.append(f"{placed.wanted} pods share {len(distinct)} Nodes")
    strangers = [name for name in distinct if name not in known]
    problems += [f"a pod runs on {name}, which is not in the spec" for name in strangers]
    return _verdict(problems, f"{placed.available} pods on {len(distinct)} Nodes")


def _encryption(spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    def judge(name: str, found: ServerFacts) -> list[str] | None:
        if found.has_encrypted_secrets is None:
            return None
        is_on, wanted = found.has_encrypted_secrets, spec.kubernetes.secrets_encryption
        if wanted and not is_on:
            return [f"{name} keeps a Secret in clear in etcd"]
        return []

    if not spec.kubernetes.secrets_encryption:
        return Outcome.PASSED, "not wanted by the spec"
    return _per_server(spec, facts, judge, "a Secret is unreadable in etcd on every server")


def _audit(spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    def judge(name: str, found: ServerFacts) -> list[str] | None:
        if found.has_audit_log is None:
            return None
        return [] if found.has_audit_log else [f"{name} writes no audit log"]

    if not spec.kubernetes.audit_log:
        return Outcome.PASSED, "not wanted by the spec"
    return _per_server(spec, facts, judge, "every server writes it")


def _anonymous(_spec: ClusterSpec, facts: ClusterFacts) -> Verdict:
    if not facts.anonymous_statuses:
        return _missing(facts, "anonymous_statuses")
    bad = {p: s for p, s in sorted(facts.anonymous_statuses.items()) if s not in (401, 403)}
    served = [f"{path} answered {status}" for path, status in bad.items() if 200 <= status < 400]
    if served:
        return Outcome.FAILED, "; ".join(served)
    if bad:
        return Outcome.UNKNOWN, "; ".join(f"{path} answered {s}" for path, s in bad.items())
    return Outcome.PASSED, f"{len(facts.anonymous_statuses)} requests refused"


CHECKS: tuple[tuple[str, Callable[[ClusterSpec, ClusterFacts], Verdict]], ...] = (
    ("API through the virtual address", _api),
    ("API server ready", _readiness),
    ("etcd members", _etcd),
    ("Nodes", _nodes),
    ("versions", _versions),
    ("Deployment across Nodes", _placement),
    ("encryption at rest", _encryption),
    ("audit log", _audit),
    ("no anonymous access", _anonymous),
)


def check_cluster(spec: ClusterSpec, facts: ClusterFacts) -> list[CheckResult]:
    """Return the result of every check."""
    return [CheckResult(name, *check(spec, facts)) for name, check in CHECKS]


def stale_nodes(spec: ClusterSpec, names: Sequence[str]) -> list[str]:
    """Return the Nodes that carry this cluster's names and are not in its spec any more."""
    wanted = {machine.name for machine in machines(spec)}
    ours = tuple(f"{spec.name}-{role}-" for role in ("server", "worker"))
    return sorted(
        name
        for name in names
        if name not in wanted and name.startswith(ours) and name.rpartition("-")[2].isdigit()
    )


MARKS = {
    Outcome.PASSED: "✔ passed",
    Outcome.FAILED: "✘ failed",
    Outcome.UNKNOWN: "? unknown",
}


def check_rows(results: Sequence[CheckResult]) -> list[dict[str, str]]:
    """Return the table of checks."""
    return [
        {"check": result.name, "result": MARKS[result.outcome], "detail": result.detail}
        for result in results
    ]
