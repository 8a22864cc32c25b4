"""Due secrets come in a fixed order, waves keep every limit, windows are kept to the minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.rotation.policy import RotationPolicy, parse_policy
from domain.rotation.policy_fields import Window
from domain.rotation.schedule import (
    SecretFact,
    Status,
    due_list,
    held_back,
    in_words,
    is_open,
    opens_in,
    plan,
    share,
    unruled,
)
from domain.rotation.state import Order, RotationState, Step

NOW = datetime(2026, 3, 4, 2, 0, tzinfo=UTC)
"""A Wednesday."""


def policy(**database: Any) -> RotationPolicy:
    rules = [
        {"path": f"{name}/*", "class": "redis-acl-user", "environment": name}
        for name in ("test", "staging", "production")
    ]
    shared = {
        "path": "test/db/*",
        "class": "postgresql",
        "environment": "test",
        "system": "db-1",
    }
    return parse_policy(
        {
            "classes": {
                "redis-acl-user": {"max_age_days": 30, "parallel": 3},
                "postgresql": {"max_age_days": 10, **database},
            },
            "systems": {"db-1": {"parallel": 2}},
            "secrets": [shared, *rules],
        },
        ["redis-acl-user", "postgresql"],
    )


def fact(path: str, days: float | None, **more: Any) -> SecretFact:
    return SecretFact(path, None if days is None else NOW - timedelta(days=days), **more)


PARTIAL = RotationState("s", step=Step.OBSERVE)
PAST_REVOKE = RotationState("s", step=Step.DISTRIBUTE, order=Order.REVOKE_FIRST)


def test_partial_secrets_come_first_then_the_longest_overdue() -> None:
    facts = [
        fact("test/new", 1),
        fact("test/due", 31),
        fact("test/old", 90),
        fact("test/never", None),
        fact("production/partial", 2, state=PARTIAL, consumers=("a", "b")),
        fact("nobody/knows", 99),
    ]
    rows = due_list(policy(), facts, NOW)
    assert [(row.path, row.status) for row in rows] == [
        ("production/partial", Status.PARTIAL),
        ("test/old", Status.DUE),
        ("test/due", Status.DUE),
        ("test/never", Status.DUE),
        ("test/new", Status.LATER),
    ]
    assert [row.cells()["due"] for row in rows] == [
        "to be finished",
        "since 60 d",
        "since 1 d",
        "now",
        "in 29 d",
    ]
    assert rows[0].cells()["consumers"] == "a, b"
    assert rows[3].cells() == {
        "path": "test/never",
        "class": "redis-acl-user",
        "environment": "test",
        "age": "never rotated",
        "due": "now",
        "consumers": "none known",
    }
    assert unruled(policy(), [each.path for each in facts]) == ["nobody/knows"]


def test_a_secret_is_due_at_its_age_and_not_a_second_before() -> None:
    second = 1 / 86_400
    rows = due_list(policy(), [fact("test/a", 30), fact("test/b", 30 - second)], NOW)
    assert [row.status for row in rows] == [Status.DUE, Status.LATER]


def test_a_spread_brings_secrets_forward_each_by_its_own_share_and_never_back() -> None:
    facts = [fact(f"test/db/{number}", 0) for number in range(200)]
    rows = due_list(policy(spread_days=5), facts, NOW)
    days = [row.due_in / timedelta(days=1) for row in rows]
    assert days == sorted(days)
    assert all(5 <= each <= 10 for each in days)
    assert max(days) - min(days) > 4.5
    again = due_list(policy(spread_days=5), reversed(facts), NOW)
    assert [row.path for row in again] == [row.path for row in rows]


def test_waves_follow_the_environments_and_partial_ones_of_all_of_them_come_first() -> None:
    rows = due_list(
        policy(),
        [
            fact("production/a", 40),
            fact("staging/a", 40),
            fact("test/a", 40),
            fact("production/half", 1, state=PARTIAL),
            fact("test/half", 1, state=PARTIAL),
            fact("test/later", 1),
        ],
        NOW,
    )
    waves = plan(policy(), rows, NOW).waves
    assert [(wave.environment, wave.is_resumed, wave.paths) for wave in waves] == [
        ("test", True, ("test/half",)),
        ("production", True, ("production/half",)),
        ("test", False, ("test/a",)),
        ("staging", False, ("staging/a",)),
        ("production", False, ("production/a",)),
    ]


@given(databases=st.integers(0, 12), caches=st.integers(0, 12), seconds=st.sampled_from([0, 7, 60]))
def test_no_batch_passes_a_limit_and_every_secret_is_in_one(
    databases: int, caches: int, seconds: int
) -> None:
    rules = policy(jitter_seconds=seconds)
    facts = [fact(f"test/db/{n}", None) for n in range(databases)]
    facts += [fact(f"test/{n}", None) for n in range(caches)]
    waves = plan(rules, due_list(rules, facts, NOW), NOW).waves
    assert sorted(p for wave in waves for p in wave.paths) == sorted(f.path for f in facts)
    for batch in (batch for wave in waves for batch in wave.batches):
        systems = [slot.row.ruled.system for slot in batch]
        assert systems.count("db-1") <= 2
        assert systems.count("redis-acl-user") <= 3
        assert all(0 <= slot.starts_after_seconds <= seconds for slot in batch)
    if waves:
        assert len(waves[0].batches) == max(-(-databases // 2), -(-caches // 3))


def test_outside_its_window_a_secret_waits_unless_its_old_value_may_be_dead() -> None:
    night = [{"days": ["wed"], "from": "22:00", "to": "04:00"}]
    rules = policy(windows=night)
    facts = [
        fact("test/db/due", 20),
        fact("test/db/half", 1, state=PARTIAL),
        fact("test/db/no-way-back", 1, state=PAST_REVOKE),
    ]
    found = plan(rules, due_list(rules, facts, NOW), NOW)
    assert [wave.paths for wave in found.waves] == [("test/db/no-way-back",)]
    assert [(each.row.path, each.opens_in) for each in found.waiting] == [
        ("test/db/half", timedelta(hours=20)),
        ("test/db/due", timedelta(hours=20)),
    ]


def test_a_leak_waits_for_no_window_and_takes_what_is_not_due() -> None:
    rules = policy(windows=[{"days": ["sun"], "from": "22:00", "to": "23:00"}])
    rows = due_list(rules, [fact("test/db/new", 0)], NOW)
    found = plan(rules, rows, NOW, is_leak=True)
    assert [wave.paths for wave in found.waves] == [("test/db/new",)]
    assert not found.waiting


def window(days: list[str], opens: str, closes: str) -> Window:
    return Window.model_validate({"days": days, "from": opens, "to": closes})


def at(day: int, hour: int, minute: int = 0, second: int = 0) -> datetime:
    """Return a moment of a week that starts on Monday, the first of June 2026."""
    return datetime(2026, 6, day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        (at(1, 22), 0.0),
        (at(1, 21, 59, 59), 1 / 3600),
        (at(2, 3, 59, 59), 0.0),
        (at(2, 4), 5 * 24 + 18),
        (at(1, 3, 59), 0.0),
        (at(1, 4), 18.0),
        (at(7, 21), 1.0),
        (at(7, 23), 0.0),
    ],
)
def test_a_window_past_midnight_belongs_to_the_day_on_which_it_opens(
    now: datetime, hours: float
) -> None:
    nights = [window(["mon", "sun"], "22:00", "04:00")]
    assert opens_in(nights, now) / timedelta(hours=1) == pytest.approx(hours)
    assert is_open(nights, now) is (hours == 0)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["mon", "wed", "sun"]), min_size=1),
            st.integers(0, 23),
            st.integers(0, 22),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 7 * 24 * 60 - 1),
)
def test_after_the_wait_a_window_is_open_and_just_before_it_is_not(
    shapes: list[tuple[list[str], int, int]], minute: int
) -> None:
    windows = [
        window(days, f"{opens:02}:00", f"{(opens + 1 + length) % 24:02}:00")
        for days, opens, length in shapes
    ]
    now = at(1, 0) + timedelta(minutes=minute)
    wait = opens_in(windows, now)
    assert timedelta(0) <= wait < timedelta(days=7)
    assert is_open(windows, now + wait)
    if wait:
        assert not is_open(windows, now + wait - timedelta(seconds=1))


def test_without_windows_it_is_always_open() -> None:
    assert is_open([], NOW)


def test_a_failure_holds_back_the_later_environments_and_no_resumed_wave() -> None:
    rules = policy()
    facts = [fact(f"{name}/a", 40) for name in rules.environments]
    facts.append(fact("production/half", 1, state=PARTIAL))
    resumed, test, staging, production = plan(rules, due_list(rules, facts, NOW), NOW).waves
    assert held_back(rules, test, {"test": 5}) is None
    assert held_back(rules, staging, {}) is None
    assert held_back(rules, staging, {"test": 1}) == (
        "Unable to start staging: 1 rotation failed in test. "
        "Find the cause there; the next run goes on"
    )
    assert held_back(rules, production, {"test": 2}) is not None
    assert held_back(rules, resumed, {"test": 9}) is None


def test_shares_are_even_and_differ_by_purpose() -> None:
    shares = [share(str(number), "jitter") for number in range(1_000)]
    assert 0.45 < sum(shares) / len(shares) < 0.55
    assert share("1", "jitter") != share("1", "spread")


def test_lengths_are_told_in_their_largest_unit() -> None:
    seconds = (5, 120, 7_200, 200_000)
    assert [in_words(timedelta(seconds=each)) for each in seconds] == [
        "5 s",
        "2 min",
        "2 h",
        "2 d",
    ]
