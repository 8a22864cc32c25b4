"""What a leak reaches: every secret that can be read with what leaked, and who has read it.

Promises to follow a leak to its end: a leaked secret may be a credential of OpenBao, which opens
further secrets. Each secret carries every reason for which it is in. What opens others is rotated
first: as long as it works, new values of the others are readable with it. Refuses a hint that names
nothing known, since an empty answer would read as "nothing leaked".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from domain.errors import NotFound
from domain.rotation.access_policies import PathRule, can_read
from domain.rotation.consumers import AuditRead, Consumer, is_below, secret_path
from domain.rotation.policy import RotationPolicy, Ruled


class LeakKind(StrEnum):
    PATH = "path"
    PREFIX = "prefix"
    ACCESSOR = "accessor"
    COMMIT = "commit"
    HOST = "host"


@dataclass(frozen=True)
class Leak:
    """What an operator knows about the leak."""

    kind: LeakKind
    value: str
    """The path, prefix, accessor, commit or host."""
    found_paths: tuple[str, ...] = ()
    """For a commit: the paths whose values were found in it."""
    accessor_hash: str = ""
    """For an accessor: how the audit log writes it."""

    @property
    def label(self) -> str:
        return f"{self.kind} {self.value}"


@dataclass(frozen=True)
class Holder:
    """One living OpenBao token."""

    accessor: str
    entity: str
    """Its display name, as the audit log has it."""
    policies: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    """Where it was issued to or used from."""


@dataclass(frozen=True)
class AccessFacts:
    """What OpenBao, its audit log and the consumers' search say."""

    paths: tuple[str, ...]
    """Every secret in the mount."""
    mount: str
    policies: Mapping[str, tuple[PathRule, ...]] = field(default_factory=dict)
    holders: tuple[Holder, ...] = ()
    opens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Path of a secret that is an OpenBao credential -> the policies that it gives."""
    reads: tuple[AuditRead, ...] = ()
    consumers: Mapping[str, tuple[Consumer, ...]] = field(default_factory=dict)


class Reach(StrEnum):
    """How a secret is reached, the gravest first."""

    LEAKED = "leaked"
    KEPT = "kept on the host"
    READ = "read"
    READABLE = "readable"


@dataclass(frozen=True)
class Reason:
    """One way in which one secret is reached."""

    reach: Reach
    source: str
    """What it is reached from, as `path ci/deploy`."""
    detail: str

    @property
    def text(self) -> str:
        return f"{self.reach}: {self.detail}"


@dataclass(frozen=True)
class Hit:
    """One secret to rotate."""

    path: str
    reasons: tuple[Reason, ...]
    ruled: Ruled | None
    """None when no rule of the policy names it: a person has to rotate it."""
    consumers: tuple[Consumer, ...]
    opens_others: bool
    position: int

    @property
    def is_revoked_first(self) -> bool:
        return self.ruled is not None and self.ruled.policy.revoke_first

    def cells(self) -> dict[str, str]:
        """Return the line as a person reads it."""
        how = "revoke first" if self.is_revoked_first else "overlap"
        return {
            "order": str(self.position),
            "path": self.path,
            "class": self.ruled.secret.kind if self.ruled else "no rule: rotate by hand",
            "environment": self.ruled.secret.environment if self.ruled else "",
            "mode": how if self.ruled else "",
            "why": "; ".join(dict.fromkeys(reason.text for reason in self.reasons)),
            "consumers": ", ".join(each.label for each in self.consumers) or "none known",
        }


@dataclass(frozen=True, order=True)
class Edge:
    """One arrow of the graph."""

    source: str
    target: str
    label: str


@dataclass(frozen=True)
class BlastRadius:
    """Everything that the leak reaches."""

    leak: Leak
    hits: tuple[Hit, ...]
    edges: tuple[Edge, ...]
    accessors: tuple[str, ...]
    """Tokens to revoke before anything is rotated."""

    @property
    def by_hand(self) -> tuple[str, ...]:
        return tuple(hit.path for hit in self.hits if hit.ruled is None)


Reasons = dict[str, list[Reason]]


def blast_radius(leak: Leak, facts: AccessFacts, policy: RotationPolicy) -> BlastRadius:
    """Return what `leak` reaches.

    Raises:
        NotFound: the hint names nothing that is known.
    """
    reasons: Reasons = {}
    holders = _leaked_holders(leak, facts)
    for path, reason in _direct(leak, facts):
        _add(reasons, path, reason)
    for holder in holders:
        _add_readable(reasons, holder.policies, leak.label, holder.entity, facts)
    if not reasons and not holders:
        raise NotFound(_nothing(leak))
    _follow(reasons, facts)
    return BlastRadius(
        leak,
        _hits(reasons, facts, policy),
        _edges(reasons, facts),
        tuple(sorted({holder.accessor for holder in holders})),
    )


def _nothing(leak: Leak) -> str:
    fixes = {
        LeakKind.PATH: "Write it without the mount, as the list of secrets shows it",
        LeakKind.PREFIX: "Write the first names of the path without the mount, as apps/shop",
        LeakKind.ACCESSOR: "The token may have expired: name the paths that it could read",
        LeakKind.COMMIT: "If the scan missed a value, name its path",
        LeakKind.HOST: "Write its name or address as the audit log and the inventory have it",
    }
    return (
        f"Unable to tell what the {leak.kind} {leak.value} reaches: no secret and no token that is "
        f"known belongs to it. {fixes[leak.kind]}"
    )


def _add(reasons: Reasons, path: str, reason: Reason) -> bool:
    """Note a reason; true when the path was not reached before."""
    is_new = path not in reasons
    known = reasons.setdefault(path, [])
    if reason not in known:
        known.append(reason)
    return is_new


def _leaked_holders(leak: Leak, facts: AccessFacts) -> list[Holder]:
    if leak.kind is LeakKind.ACCESSOR:
        return [holder for holder in facts.holders if holder.accessor == leak.value]
    if leak.kind is LeakKind.HOST:
        return [holder for holder in facts.holders if leak.value in holder.hosts]
    return []


def _direct(leak: Leak, facts: AccessFacts) -> Iterable[tuple[str, Reason]]:
    """Yield what the hint names by itself, without any credential being used."""
    if leak.kind is LeakKind.PATH:
        path = secret_path(leak.value, facts.mount)
        if path in facts.paths:
            yield path, Reason(Reach.LEAKED, leak.label, "named by the report")
    elif leak.kind is LeakKind.PREFIX:
        prefix = secret_path(leak.value, facts.mount)
        for path in facts.paths:
            if is_below(path, prefix):
                yield path, Reason(Reach.LEAKED, leak.label, f"lies below {prefix or 'the mount'}")
    elif leak.kind is LeakKind.COMMIT:
        for path in leak.found_paths:
            detail = f"found in commit {leak.value[:12]}"
            yield secret_path(path, facts.mount), Reason(Reach.LEAKED, leak.label, detail)
    elif leak.kind is LeakKind.ACCESSOR:
        written = {leak.value, leak.accessor_hash} - {""}
        for read in facts.reads:
            if read.accessor in written:
                yield read.path, _read(leak, read)
    else:
        yield from _of_host(leak, facts)


def _read(leak: Leak, read: AuditRead) -> Reason:
    return Reason(Reach.READ, leak.label, f"by {read.entity}")


def _of_host(leak: Leak, facts: AccessFacts) -> Iterable[tuple[str, Reason]]:
    for path, consumers in facts.consumers.items():
        for consumer in consumers:
            if consumer.host == leak.value and consumer.kind != "entity":
                yield path, Reason(Reach.KEPT, leak.label, f"{consumer.kind} {consumer.name}")
    for read in facts.reads:
        if read.host == leak.value:
            yield read.path, _read(leak, read)


def _add_readable(
    reasons: Reasons, names: Iterable[str], source: str, by: str, facts: AccessFacts
) -> list[str]:
    """Note every secret that these policies open; returns those that were not reached before."""
    held = sorted(set(names))
    rules = [rule for name in held for rule in facts.policies.get(name, ())]
    detail = f"by {by} through {', '.join(held)}"
    reached = []
    for path in facts.paths:
        # That a credential can read its own path says nothing new.
        if source == f"path {path}" or not can_read(rules, f"{facts.mount}/data/{path}"):
            continue
        if _add(reasons, path, Reason(Reach.READABLE, source, detail)):
            reached.append(path)
    return reached


def _follow(reasons: Reasons, facts: AccessFacts) -> None:
    """Go on from each secret that is itself a credential, until nothing new is reached."""
    left = list(reasons)
    followed: set[str] = set()
    while left:
        path = left.pop(0)
        if path in followed or path not in facts.opens:
            continue
        followed.add(path)
        source = f"path {path}"
        left += _add_readable(reasons, facts.opens[path], source, "its credential", facts)


def _hits(reasons: Reasons, facts: AccessFacts, policy: RotationPolicy) -> tuple[Hit, ...]:
    gravity = list(Reach)

    def urgency(path: str) -> tuple[bool, bool, bool, int, int, str]:
        ruled = policy.resolve(path)
        worst = min(gravity.index(reason.reach) for reason in reasons[path])
        if ruled is None:
            return (True, path not in facts.opens, True, worst, 0, path)
        # The last environment of the order is the one whose secrets are worth most.
        place = -policy.environments.index(ruled.secret.environment)
        is_calm = not ruled.policy.revoke_first
        return (False, path not in facts.opens, is_calm, worst, place, path)

    return tuple(
        Hit(
            path,
            tuple(sorted(reasons[path], key=lambda each: gravity.index(each.reach))),
            policy.resolve(path),
            facts.consumers.get(path, ()),
            path in facts.opens,
            position,
        )
        for position, path in enumerate(sorted(reasons, key=urgency), start=1)
    )


def _edges(reasons: Reasons, facts: AccessFacts) -> tuple[Edge, ...]:
    """Arrows from the leak over credentials to secrets, and from secrets to their consumers."""
    found = {
        Edge(each.source, f"path {path}", each.reach.value)
        for path, given in reasons.items()
        for each in given
    }
    found |= {
        Edge(f"path {path}", consumer.label, "used by")
        for path in reasons
        for consumer in facts.consumers.get(path, ())
    }
    return tuple(sorted(found - {edge for edge in found if edge.source == edge.target}))
