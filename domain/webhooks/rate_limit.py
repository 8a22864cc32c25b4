"""How many deliveries a source may send: token buckets, with the clock given and bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

KEYS_AT_MOST = 20_000


@dataclass(frozen=True)
class Rate:
    """So many each second in the long run, and so many at once."""

    per_second: float
    burst: float


class RateLimit:
    """One bucket for each key; the longest unused is forgotten, which only lets more through."""

    def __init__(self, rate: Rate, keys_at_most: int = KEYS_AT_MOST) -> None:
        """Start with full buckets."""
        self._rate = rate
        self._keys_at_most = keys_at_most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, key: str, now: float) -> float:
        """Take one token and return 0, or take none and return when there will be one."""
        left, at = self._buckets.pop(key, (self._rate.burst, now))
        left = min(self._rate.burst, left + max(0.0, now - at) * self._rate.per_second)
        is_allowed = left >= 1.0
        self._buckets[key] = (left - 1.0 if is_allowed else left, now)
        if len(self._buckets) > self._keys_at_most:
            self._buckets.popitem(last=False)
        return 0.0 if is_allowed else (1.0 - left) / self._rate.per_second
