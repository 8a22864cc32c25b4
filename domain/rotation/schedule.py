"""Which secrets are due, and in which waves they are rotated.

Promises the same answer for the same facts, whichever worker asks: spreads and jitters come from a
hash of the secret, not from chance. What was left partial comes first. Later environments wait for
the earlier ones. Refuses to touch consumers outside their windows, except to finish a rotation in
which the old value may be dead already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from domain.rotation.policy import RotationPolicy, Ruled
from domain.rotation.policy_fields import DAYS, MINUTES_PER_DAY, Window, minutes_of
from domain.rotation.state import RotationState


@dataclass(frozen=True)
class SecretFact:
    """What is known about one secret."""

    path: str
    last_rotated: datetime | None
    """None when it was never rotated."""
    consumers: tuple[str, ...] = ()
    state: RotationState | None = None
    """Its record, if there is one."""


class Status(StrEnum):
    """Why a secret is in the list, the most urgent first."""

    PARTIAL = "partial"
    """A rotation was begun and not finished."""
    DUE = "due"
    LATER = "later"


@dataclass(frozen=True)
class DueRow:
    """One line of the list of secrets."""

    ruled: Ruled
    status: Status
    age: timedelta | None
    due_in: timedelta
    """Negative when it is overdue."""
    consumers: tuple[str, ...]
    must_finish: bool = False
    """True when its old value may be dead: it does not wait for a window."""

    @property
    def path(self) -> str:
        return self.ruled.secret.path

    def cells(self) -> dict[str, str]:
        """Return the line as a person reads it."""
        return {
            "path": self.path,
            "class": self.ruled.secret.kind,
            "environment": self.ruled.secret.environment,
            "age": "never rotated" if self.age is None else in_words(self.age),
            "due": _due(self),
            "consumers": ", ".join(self.consumers) or "none known",
        }


def _due(row: DueRow) -> str:
    if row.status is Status.PARTIAL:
        return "to be finished"
    if row.due_in > timedelta(0):
        return f"in {in_words(row.due_in)}"
    return "now" if row.age is None else f"since {in_words(-row.due_in)}"


def in_words(length: timedelta) -> str:
    """Return a length of time in its largest fitting unit, as `12 d` or `3 h`."""
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def share(secret_id: str, purpose: str) -> float:
    """Return a number from 0 to 1 that belongs to the secret, evenly spread over secrets."""
    digest = hashlib.sha256(f"{purpose}:{secret_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def due_list(policy: RotationPolicy, facts: Iterable[SecretFact], now: datetime) -> list[DueRow]:
    """Return every secret that a rule names: partial ones, then due ones, then the others."""
    rows = []
    for fact in facts:
        ruled = policy.resolve(fact.path)
        if ruled is not None:
            rows.append(_row(ruled, fact, now))
    order = list(Status)
    return sorted(rows, key=lambda row: (order.index(row.status), row.due_in, row.path))


def unruled(policy: RotationPolicy, paths: Iterable[str]) -> list[str]:
    """Return the paths that no rule names: nobody rotates them."""
    return sorted(path for path in paths if policy.resolve(path) is None)


def _row(ruled: Ruled, fact: SecretFact, now: datetime) -> DueRow:
    age, due_in = None, timedelta(0)
    if fact.last_rotated is not None:
        age = now - fact.last_rotated
        early = share(ruled.secret.secret_id, "spread") * ruled.policy.spread_days
        due_in = timedelta(days=ruled.policy.max_age_days - early) - age
    status = Status.DUE if due_in <= timedelta(0) else Status.LATER
    is_partial = fact.state is not None and fact.state.is_partial
    return DueRow(
        ruled,
        Status.PARTIAL if is_partial else status,
        age,
        due_in,
        fact.consumers,
        must_finish=bool(is_partial and fact.state and fact.state.is_past_revoke),
    )


def _spans(window: Window) -> Iterable[tuple[int, int]]:
    """Yield the window's openings as minutes of the week; an end may lie in the next week."""
    opens, closes = minutes_of(window.opens), minutes_of(window.closes)
    length = (closes - opens) % MINUTES_PER_DAY
    for day in window.days:
        start = DAYS.index(day) * MINUTES_PER_DAY + opens
        yield start, start + length


def _minute_of_week(now: datetime) -> float:
    return (
        now.weekday() * MINUTES_PER_DAY
        + now.hour * 60
        + now.minute
        + (now.second + now.microsecond / 1e6) / 60
    )


def opens_in(windows: Sequence[Window], now: datetime) -> timedelta:
    """Return how long the windows stay closed: zero when one is open, or when there is none.

    `now` must be in UTC.
    """
    if not windows:
        return timedelta(0)
    week, here = 7 * MINUTES_PER_DAY, _minute_of_week(now)
    waits = []
    for window in windows:
        for start, end in _spans(window):
            if start <= here < end or start <= here + week < end:
                return timedelta(0)
            waits.append((start - here) % week)
    return timedelta(minutes=min(waits))


def is_open(windows: Sequence[Window], now: datetime) -> bool:
    """True when consumers may be touched at `now` (UTC)."""
    return opens_in(windows, now) == timedelta(0)


@dataclass(frozen=True)
class Slot:
    """One rotation in a wave."""

    row: DueRow
    starts_after_seconds: float
    """Its own share of the class's jitter."""


@dataclass(frozen=True)
class Wave:
    """Rotations of one environment; the batches run one after the other, each at once."""

    environment: str
    is_resumed: bool
    """True when it finishes what an earlier run has left partial."""
    batches: tuple[tuple[Slot, ...], ...]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(slot.row.path for batch in self.batches for slot in batch)


@dataclass(frozen=True)
class Waiting:
    """A due secret whose window is closed."""

    row: DueRow
    opens_in: timedelta


@dataclass(frozen=True)
class Plan:
    """What a run does, in order, and what it leaves for later."""

    waves: tuple[Wave, ...] = ()
    waiting: tuple[Waiting, ...] = field(default=())


def plan(
    policy: RotationPolicy, rows: Iterable[DueRow], now: datetime, *, is_leak: bool = False
) -> Plan:
    """Return the waves for `rows`: partial ones of all environments first, then the due ones.

    After a leak every row is taken, due or not, and no window is waited for.
    """
    chosen: list[DueRow] = []
    waiting: list[Waiting] = []
    for row in rows:
        if row.status is Status.LATER and not is_leak:
            continue
        wait = opens_in(row.ruled.policy.windows, now)
        if wait and not is_leak and not row.must_finish:
            waiting.append(Waiting(row, wait))
        else:
            chosen.append(row)
    waves = []
    for is_resumed in (True, False):
        for environment in policy.environments:
            mine = [
                row
                for row in chosen
                if row.ruled.secret.environment == environment
                and (row.status is Status.PARTIAL) is is_resumed
            ]
            if mine:
                waves.append(Wave(environment, is_resumed, _batches(mine)))
    return Plan(tuple(waves), tuple(waiting))


def _batches(rows: Sequence[DueRow]) -> tuple[tuple[Slot, ...], ...]:
    """Fill batches in the order of `rows` so that none passes a system's limit.

    Where two classes give one system different limits, the stricter counts.
    """
    parallel: dict[str, int] = {}
    for row in rows:
        system = row.ruled.system
        parallel[system] = min(row.ruled.parallel, parallel.get(system, row.ruled.parallel))
    batches: dict[int, list[Slot]] = {}
    taken: dict[str, int] = {}
    for row in rows:
        system = row.ruled.system
        number = taken.get(system, 0) // parallel[system]
        taken[system] = taken.get(system, 0) + 1
        jitter = share(row.ruled.secret.secret_id, "jitter") * row.ruled.policy.jitter_seconds
        batches.setdefault(number, []).append(Slot(row, jitter))
    return tuple(tuple(batches[number]) for number in sorted(batches))


def held_back(policy: RotationPolicy, wave: Wave, failures: Mapping[str, int]) -> str | None:
    """Return why `wave` may not start, or None; `failures` counts per environment in this run.

    A resumed wave always starts: what is partial is safer finished than left.
    """
    if wave.is_resumed or wave.environment not in policy.environments:
        return None
    for earlier in policy.environments[: policy.environments.index(wave.environment)]:
        count = failures.get(earlier, 0)
        if count >= policy.stop_after_failures:
            noun = "rotation" if count == 1 else "rotations"
            return (
                f"Unable to start {wave.environment}: {count} {noun} failed in {earlier}. "
                "Find the cause there; the next run goes on"
            )
    return None
