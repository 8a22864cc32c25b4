"""What the end of a run means for one secret: what is in use, what is dead, and what is not.

Promises that a value is called dead only when the machine has a proof. Refuses guesses: a value
that was revoked and not proved is said to be just that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from domain.rotation.state import Order, RotationState, Step


class OldValue(StrEnum):
    """What is known about the old value."""

    ABSENT = "absent"
    """The secret had none."""
    ACCEPTED = "accepted"
    MAYBE_REVOKED = "maybe revoked"
    """`revoke` failed: it may have taken effect."""
    REVOKED = "revoked, not proved dead"
    DEAD = "proved dead"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run for one secret."""

    is_success: bool
    old_value: OldValue
    text: str


def old_value(state: RotationState) -> OldValue:
    """Return what is known about the value that is or was to be replaced."""
    if state.old_generation is None:
        return OldValue.ABSENT
    if state.is_past_revoke:
        if state.proved_at:
            return OldValue.DEAD
        if state.step is Step.REVOKE and not state.revoked_at:
            return OldValue.MAYBE_REVOKED if state.attempts else OldValue.ACCEPTED
        return OldValue.REVOKED
    return OldValue.ACCEPTED


def verdict(state: RotationState) -> Verdict:
    """Return what to tell an operator about `state`."""
    old, new = state.old_generation, state.generation
    known = old_value(state)
    if state.step is Step.DONE:
        before = "there was none before" if old is None else f"generation {old} is proved dead"
        return Verdict(True, known, f"Generation {new} is in use; {before}.")
    why = f" ({state.reason})" if state.reason else ""
    if state.step is Step.ROLLED_BACK:
        kept = "no value is in use" if old is None else f"generation {old} stays in use"
        return Verdict(False, known, f"Rolled back: {kept}, generation {new} is gone{why}.")
    go_on = f"The next run goes on with `{state.step}`{why}."
    if not state.is_past_revoke:
        both = "" if old is None else f"generation {old} works; "
        return Verdict(False, known, f"Not finished: {both}no value was revoked. {go_on}")
    moved = state.order is Order.OVERLAP or state.step is Step.CLEAN
    use = "consumers use" if moved else "not every consumer was seen on"
    return Verdict(
        False, known, f"Not finished: generation {old} is {known}; {use} generation {new}. {go_on}"
    )
