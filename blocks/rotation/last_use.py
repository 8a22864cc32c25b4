"""What the times of last use say about consumers of an old and a new credential.

Exists because several systems tell when a credential was used and not by whom. Promises to call the
consumers moved only when the new one was used since it was handed out, and the old one was not for
as long as the longest pause between two uses of one consumer (`quiet_seconds`, a parameter of the
secret). Refuses to guess where the system does not keep the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from domain.errors import InvalidSpec
from domain.rotation.contract import SecretRef, Seen

QUIET_SECONDS = "quiet_seconds"
DEFAULT_QUIET_SECONDS = "60"


@dataclass(frozen=True)
class Uses:
    """When each credential was used last; None: never, or since it was handed out."""

    handed_out_at: datetime | None
    new_used_at: datetime | None
    old_used_at: datetime | None
    is_old_known: bool = True
    """False when the system does not tell when the old one was used."""


def quiet_seconds(secret: SecretRef) -> float:
    """Return the longest pause between two uses of one consumer."""
    text = secret.parameters.get(QUIET_SECONDS, DEFAULT_QUIET_SECONDS)
    try:
        return float(text)
    except ValueError:
        raise InvalidSpec(
            f"the secret {secret.path}",
            [f"{QUIET_SECONDS}: {text!r} is not a number of seconds. Write it as 90"],
        ) from None


def judged(secret: SecretRef, consumer: str, uses: Uses, now: datetime | None = None) -> Seen:
    """Return whether the consumers that go by one name have moved."""
    since = uses.handed_out_at
    if since is None:
        return Seen(consumer, None, "it is not known when the value was handed out")
    if not uses.is_old_known:
        return Seen(consumer, None, "the system does not tell when the old one was used")
    quiet_since = max(since, uses.old_used_at or since)
    waited_seconds = ((now or datetime.now(UTC)) - quiet_since).total_seconds()
    if waited_seconds < quiet_seconds(secret):
        return Seen(consumer, False, f"the old one is unused for {waited_seconds:.0f} s only")
    if uses.new_used_at is None or uses.new_used_at <= since:
        return Seen(consumer, False, "the new one has not been used yet")
    return Seen(consumer, True, f"the new one was used {_short(uses.new_used_at)}")


def _short(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
