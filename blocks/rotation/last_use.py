"""What the times of last use say about consumers of an old and a new credential.

Exists because several systems tell when a credential was used and not by whom. Promises to call the
consumers moved only when the new one was used since it was handed out, and the old one was not for
as long as the longest pause between two uses of one consumer (`quiet_seconds`, a parameter of the
secret): who did not use the old one for that long before there was a new one is no consumer.
Refuses to guess when the time of handing out is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from domain.errors import InvalidSpec
from domain.rotation.contract import SecretRef, Seen

QUIET_SECONDS = "quiet_seconds"
DEFAULT_QUIET_SECONDS = "60"
CONNECT_SECONDS = "5"
"""Where sessions show who has moved, this is left for who has read and not yet connected."""


@dataclass(frozen=True)
class Uses:
    """When each credential was used last; None: never, or since it was handed out."""

    handed_out_at: datetime | None
    new_used_at: datetime | None
    old_used_at: datetime | None


def quiet_seconds(secret: SecretRef, default: str = DEFAULT_QUIET_SECONDS) -> float:
    """Return the longest pause between two uses of one consumer."""
    text = secret.parameters.get(QUIET_SECONDS, default)
    try:
        return float(text)
    except ValueError:
        raise InvalidSpec(
            f"the secret {secret.path}",
            [f"{QUIET_SECONDS}: {text!r} is not a number of seconds. Write it as 90"],
        ) from None


def judged(secret: SecretRef, consumer: str, uses: Uses, now: datetime | None = None) -> list[Seen]:
    """Return whether the consumers that go by one name have moved; empty when there are none."""
    since, pause = uses.handed_out_at, timedelta(seconds=quiet_seconds(secret))
    if since is None:
        return [Seen(consumer, None, "it is not known when the value was handed out")]
    was_used = uses.old_used_at is not None and uses.old_used_at >= since - pause
    is_used = uses.new_used_at is not None and uses.new_used_at > since
    if not was_used and not is_used:
        return []
    waited = (now or datetime.now(UTC)) - max(since, uses.old_used_at or since)
    if waited < pause:
        seconds = waited.total_seconds()
        return [Seen(consumer, False, f"the old one is unused for {seconds:.0f} s only")]
    if not is_used:
        return [Seen(consumer, False, "the new one has not been used yet")]
    return [Seen(consumer, True, f"the new one was used; the old one not for {pause}")]
