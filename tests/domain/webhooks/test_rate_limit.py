"""Token buckets by a clock of our own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from domain.webhooks.rate_limit import Rate, RateLimit


def test_a_burst_passes_and_the_next_is_told_how_long_to_wait() -> None:
    limit = RateLimit(Rate(per_second=2, burst=3))
    assert [limit.seconds_to_wait("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limit.seconds_to_wait("a", 0.0) == 0.5
    assert limit.seconds_to_wait("b", 0.0) == 0.0
    assert limit.seconds_to_wait("a", 0.5) == 0.0
    assert limit.seconds_to_wait("a", 0.5) > 0.0


@given(st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_never_more_pass_than_burst_and_rate_allow(pauses: list[float]) -> None:
    limit, now, passed = RateLimit(Rate(per_second=5, burst=4)), 0.0, 0
    for pause in pauses:
        now += pause
        passed += limit.seconds_to_wait("a", now) == 0.0
    assert passed <= 4 + 5 * now + 1e-6


def test_keys_are_forgotten_and_not_gathered() -> None:
    limit = RateLimit(Rate(per_second=1, burst=1), keys_at_most=10)
    for number in range(100):
        limit.seconds_to_wait(str(number), 0.0)
    assert len(limit._buckets) == 10


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    limit = RateLimit(Rate(per_second=1, burst=1))
    assert limit.seconds_to_wait("a", 100.0) == 0.0
    assert limit.seconds_to_wait("a", 50.0) == 1.0
