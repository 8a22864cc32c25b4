"""What a look at the consumers amounts to, and which credential a run must not touch.

Promises that what is unknown is never taken for good: a consumer that could not be looked at has
not moved, and an accessor that is not known may be the run's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from domain.rotation.contract import Seen
from domain.rotation.state import Outcome


@dataclass(frozen=True)
class Observation:
    """What a look at the consumers amounts to."""

    outcome: Outcome
    text: str


def judge(seen: Sequence[Seen], expected: Collection[str] = ()) -> Observation:
    """Decide about one look. Unknown is not success, and neither is an expected one not seen."""
    moved = {each.consumer for each in seen if each.is_on_new}
    waiting = {each.consumer for each in seen if each.is_on_new is False}
    unknown = {each.consumer for each in seen if each.is_on_new is None}
    unknown |= set(expected) - moved - waiting
    moved -= waiting | unknown
    if not waiting and not unknown:
        noun = "consumer works" if len(moved) == 1 else "consumers work"
        return Observation(Outcome.OK, f"{len(moved)} {noun} with the new value")
    parts = []
    if waiting:
        parts.append(f"not on the new value: {', '.join(sorted(waiting))}")
    if unknown:
        parts.append(f"unknown: {', '.join(sorted(unknown))}")
    return Observation(Outcome.NOT_YET, "; ".join(parts))


def own_credential_refusal(
    path: str, own_accessors: Collection[str], secret_accessors: Collection[str]
) -> str | None:
    """Return why the secret may not be rotated by this very run, or None when it may.

    `own_accessors`: of the token and of the secret-id that the run logged in with.
    `secret_accessors`: of what would be revoked; empty for classes outside OpenBao.
    """
    own = {accessor for accessor in own_accessors if accessor}
    if secret_accessors and not own:
        return (
            f"Unable to rotate {path}: the accessor of this run's own credential is not known, so "
            "it could be the one. Allow the worker `auth/token/lookup-self`, and name its "
            "secret-id's accessor"
        )
    if own & set(secret_accessors):
        return (
            f"Unable to rotate {path}: this run is authenticated with it. "
            "Rotate it from a worker that has a credential of its own"
        )
    return None
