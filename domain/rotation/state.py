"""What is known about the rotation of one secret, in a form that OpenBao's metadata can hold.

Exists so that any worker can go on where another was killed. Promises that a state survives the
way through flat text (`to_metadata`, `from_metadata`) unchanged, within OpenBao's limits of 64 keys
and 512 bytes per value. Refuses values: it holds generations, times, counts and fingerprints only.

A *generation* is the number of a value. The labels say which generation is which: `pending` is made
and not yet handed out, `current` is what consumers read, `previous` is what they read before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum

REASON_BYTES_AT_MOST = 480
"""OpenBao takes 512 bytes per value of custom metadata."""


class Step(StrEnum):
    """The step that is due: everything before it is done, it may have been begun."""

    CREATE = "create"
    SET = "set"
    TEST = "test"
    DISTRIBUTE = "distribute"
    OBSERVE = "observe"
    REVOKE = "revoke"
    PROVE_DEAD = "prove dead"
    CLEAN = "clean"
    """Delete the values that the engine's record holds."""
    RESTORE = "restore"
    """Hand the old value out again."""
    OBSERVE_RESTORED = "observe restored"
    """Look which consumers are back on the old value."""
    FORGET = "forget"
    """Make the system refuse the new value."""
    DONE = "done"
    ROLLED_BACK = "rolled back"


FINAL = frozenset({Step.DONE, Step.ROLLED_BACK})


class Outcome(StrEnum):
    """How an act ended."""

    OK = "ok"
    TEMPORARY = "temporary failure"
    PERMANENT = "permanent failure"
    NOT_YET = "not yet"
    """`observe`: someone is not seen on the new value. `prove dead`: the old one is accepted."""


class Order(StrEnum):
    """Which of the two promises comes first."""

    OVERLAP = "overlap"
    """No consumer is ever without a working credential."""
    REVOKE_FIRST = "revoke first"
    """After a leak: the old value dies before consumers have moved."""


STEPS: Mapping[Order, tuple[Step, ...]] = {
    Order.OVERLAP: (
        Step.CREATE,
        Step.SET,
        Step.TEST,
        Step.DISTRIBUTE,
        Step.OBSERVE,
        Step.REVOKE,
        Step.PROVE_DEAD,
        Step.CLEAN,
        Step.DONE,
    ),
    Order.REVOKE_FIRST: (
        Step.CREATE,
        Step.SET,
        Step.TEST,
        Step.REVOKE,
        Step.PROVE_DEAD,
        Step.DISTRIBUTE,
        Step.OBSERVE,
        Step.CLEAN,
        Step.DONE,
    ),
}
ROLLBACK_STEPS = (
    Step.RESTORE,
    Step.OBSERVE_RESTORED,
    Step.FORGET,
    Step.CLEAN,
    Step.ROLLED_BACK,
)


@dataclass(frozen=True)
class RotationState:
    """One secret's rotation, as the record keeps it."""

    secret_id: str
    step: Step = Step.CREATE
    generation: int = 1
    """Number of the new value."""
    old_generation: int | None = 0
    """Number of the value that is replaced; None when the secret had none yet."""
    order: Order = Order.OVERLAP
    is_rolling_back: bool = False
    is_replacing: bool = False
    """True when the roll-back is followed by another value instead of the end."""
    is_halted: bool = False
    """True when this run gave up: the next one goes on."""
    values_tried: int = 1
    """Values that this request has used, the present one included."""
    attempts: Mapping[Step, int] = field(default_factory=dict)
    """Failures of a step since it last succeeded or another run took over."""
    request_id: str = ""
    run_id: str = ""
    started_at: str = ""
    created_at: str = ""
    """When the new value was recorded; empty while there is none."""
    observe_since: str = ""
    revoked_at: str = ""
    proved_at: str = ""
    finished_at: str = ""
    updated_at: str = ""
    reason: str = ""
    """Why it rolls back, was replaced or halted; the last one."""
    revision: int = 0
    """Counts the writes, so that a stale one is noticed."""
    fingerprints: Mapping[int, str] = field(default_factory=dict)
    """HMAC of each generation's value, made by OpenBao; says nothing about the value."""

    @property
    def is_final(self) -> bool:
        """True when nothing is left to do for the request."""
        return self.step in FINAL

    @property
    def is_partial(self) -> bool:
        """True when a rotation was begun and neither finished nor rolled back."""
        return not self.is_final

    @property
    def is_past_revoke(self) -> bool:
        """True when the old value may be refused already: from here on it never rolls back."""
        if self.is_rolling_back or self.step is Step.ROLLED_BACK or self.old_generation is None:
            return False
        order = STEPS[self.order]
        return order.index(self.step) >= order.index(Step.REVOKE)

    @property
    def is_distributed(self) -> bool:
        """True when `distribute` has succeeded and was not undone."""
        if self.is_rolling_back or self.step is Step.ROLLED_BACK:
            return self.step in (Step.RESTORE,)
        order = STEPS[self.order]
        return order.index(self.step) > order.index(Step.DISTRIBUTE)

    @property
    def labels(self) -> dict[str, int]:
        """Label -> generation: `pending`, `current`, `previous`."""
        found: dict[str, int] = {}
        if self.step is Step.DONE:
            return {"current": self.generation}
        if self.is_distributed:
            found["current"] = self.generation
            if self.old_generation is not None:
                found["previous"] = self.old_generation
            return found
        if self.old_generation is not None:
            found["current"] = self.old_generation
        if self.created_at and self.step is not Step.ROLLED_BACK:
            found["pending"] = self.generation
        return found

    def to_metadata(self) -> dict[str, str]:
        """Return the flat text form."""
        flat = {
            item.name: _as_text(getattr(self, item.name))
            for item in fields(self)
            if item.name not in ("attempts", "fingerprints")
        }
        flat["attempts"] = ",".join(f"{s.value}={n}" for s, n in sorted(self.attempts.items()))
        flat |= {f"fingerprint_{number}": text for number, text in self.fingerprints.items()}
        flat |= {f"label_{name}": str(number) for name, number in self.labels.items()}
        return flat

    @classmethod
    def from_metadata(cls, flat: Mapping[str, str]) -> RotationState:
        """Read the flat text form; keys that are not known are left aside.

        Raises:
            ValueError: it was not written by `to_metadata`.
        """
        try:
            return _read(flat)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"Unable to read the state of a rotation: {type(error).__name__} {error}. "
                "Compare the record's metadata with a working one"
            ) from error


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _read(flat: Mapping[str, str]) -> RotationState:
    attempts = dict(pair.split("=", 1) for pair in flat.get("attempts", "").split(",") if pair)
    prefix, old = "fingerprint_", flat.get("old_generation", "")
    return RotationState(
        secret_id=flat["secret_id"],
        step=Step(flat["step"]),
        generation=int(flat["generation"]),
        old_generation=int(old) if old else None,
        order=Order(flat["order"]),
        is_rolling_back=_flag(flat["is_rolling_back"]),
        is_replacing=_flag(flat["is_replacing"]),
        is_halted=_flag(flat["is_halted"]),
        values_tried=int(flat["values_tried"]),
        attempts={Step(name): int(count) for name, count in attempts.items()},
        request_id=flat.get("request_id", ""),
        run_id=flat.get("run_id", ""),
        started_at=flat.get("started_at", ""),
        created_at=flat.get("created_at", ""),
        observe_since=flat.get("observe_since", ""),
        revoked_at=flat.get("revoked_at", ""),
        proved_at=flat.get("proved_at", ""),
        finished_at=flat.get("finished_at", ""),
        updated_at=flat.get("updated_at", ""),
        reason=flat.get("reason", ""),
        revision=int(flat["revision"]),
        fingerprints={
            int(key.removeprefix(prefix)): text
            for key, text in flat.items()
            if key.startswith(prefix)
        },
    )


def stamp(now: datetime) -> str:
    """Return `now` as it is kept: UTC, ISO 8601."""
    return now.astimezone(UTC).isoformat()


def cut(text: str) -> str:
    """Return `text` on one line, in no more bytes than a value of metadata may have."""
    flat = " ".join(text.split())
    return flat.encode()[:REASON_BYTES_AT_MOST].decode(errors="ignore")
