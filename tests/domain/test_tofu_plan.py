"""Plans are read into rows and a hash that stands for what would be done."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.errors import PermanentError
from domain.tofu_plan import ClusterPlan, parse_plan

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent.parent / "cases" / "plans.yaml").read_text(encoding="utf-8")
)


def document(changes: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    return {
        "format_version": "1.2",
        "timestamp": "2026-01-01T00:00:00Z",
        "errored": False,
        "resource_changes": [
            {
                "address": change["address"],
                "mode": change.get("mode", "managed"),
                "change": {
                    "before": None,
                    **{k: v for k, v in change.items() if k not in ("address", "mode")},
                },
            }
            for change in changes
        ],
        **extra,
    }


def plan(*changes: dict[str, Any], **extra: Any) -> ClusterPlan:
    return parse_plan(document(list(changes), **extra))


def change(name: str, *actions: str, **after: Any) -> dict[str, Any]:
    return {"address": f'vm["{name}"]', "actions": list(actions), "after": {"name": name, **after}}


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_a_plan_is_read_as_it_is(case: dict[str, Any]) -> None:
    read = parse_plan(document(case["changes"]))
    rows = [f"{r.action.value} {r.address} {r.name} {r.node}: {r.changes}" for r in read.rows]
    assert rows == case["rows"]
    assert read.counts == case["counts"]
    assert read.destroys == case["destroys"]
    assert read.is_empty is case["is_empty"]


def test_the_hash_does_not_depend_on_order_or_time() -> None:
    changes = [change(name, "create", vm_id=i, tags=["x"]) for i, name in enumerate("abcdef")]
    wanted = plan(*changes).plan_hash
    for seed in range(5):
        shuffled = [dict(reversed(list(entry.items()))) for entry in copy.deepcopy(changes)]
        random.Random(seed).shuffle(shuffled)  # noqa: S311 - an order, not a secret
        assert plan(*shuffled, timestamp=f"2026-02-0{seed + 1}T00:00:00Z").plan_hash == wanted


@pytest.mark.parametrize(
    "other",
    [
        change("a", "create", vm_id=2),
        change("a", "update", vm_id=1),
        change("b", "create", vm_id=1),
    ],
)
def test_the_hash_depends_on_act_value_and_address(other: dict[str, Any]) -> None:
    assert plan(change("a", "create", vm_id=1)).plan_hash != plan(other).plan_hash


def test_the_hash_does_not_depend_on_sensitive_values() -> None:
    marked = {"after_sensitive": {"key": True}}
    first = plan({**change("a", "create", key="one"), **marked})
    second = plan({**change("a", "create", key="two"), **marked})
    assert first.plan_hash == second.plan_hash


def test_resources_that_do_not_change_do_not_enter_the_hash() -> None:
    made = plan(change("a", "create"), change("b", "no-op", size=1))
    assert made.plan_hash == plan(change("a", "create"), change("b", "no-op", size=2)).plan_hash


@pytest.mark.parametrize(
    "broken",
    [{}, [], None, {"format_version": "1.2"}, {"errored": True, "resource_changes": []}],
)
def test_a_plan_that_errored_is_refused(broken: Any) -> None:
    with pytest.raises(PermanentError, match=r"^Unable to read the plan: it errored"):
        parse_plan(broken)


def test_a_plan_over_nothing_at_all_is_empty() -> None:
    assert parse_plan({"format_version": "1.2", "errored": False}).is_empty


def test_an_unknown_action_is_refused_by_name() -> None:
    with pytest.raises(PermanentError, match=r'vm\["a"\] has the unknown action explode'):
        plan(change("a", "explode"))


def test_what_is_left_of_a_plan_is_within_it() -> None:
    approved = plan(change("a", "create", vm_id=1), change("b", "create", vm_id=2))
    assert plan(change("b", "create", vm_id=2)).is_remainder_of(approved)
    assert plan(change("a", "no-op"), change("b", "create", vm_id=2)).is_remainder_of(approved)
    assert plan(change("a", "update", vm_id=1)).is_remainder_of(approved)
    assert plan().is_remainder_of(approved)


def test_what_a_plan_did_not_hold_is_not_within_it() -> None:
    approved = plan(change("a", "create", vm_id=1))
    assert not plan(change("a", "create", vm_id=9)).is_remainder_of(approved)
    assert not plan(change("a", "delete", "create", vm_id=1)).is_remainder_of(approved)
    assert not plan(change("a", "delete")).is_remainder_of(approved)
    assert not plan(change("c", "create", vm_id=3)).is_remainder_of(approved)
    assert not plan(change("c", "update", vm_id=3)).is_remainder_of(approved)
