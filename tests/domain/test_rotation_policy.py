"""Policies that are wrong are refused with every problem; right ones name class and parameters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.errors import InvalidSpec
from domain.rotation.policy import EXAMPLE, RotationPolicy, parse_policy

KNOWN = ["kubernetes-secret", "postgresql-alternating-users", "redis-acl-user"]
CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent.parent / "cases" / "rotation_policies.yaml").read_text(encoding="utf-8")
)


def changed(place: Any, change: dict[Any, Any]) -> Any:
    """Apply a case's change; a number names an entry of a list."""
    for key, value in change.items():
        is_new = key == len(place) if isinstance(place, list) else key not in place
        if value == "__remove__":
            del place[key]
        elif isinstance(value, dict) and "__replace__" in value:
            place[key] = value["__replace__"]
        elif is_new and isinstance(place, list):
            place.append(value)
        elif not is_new and isinstance(value, dict) and isinstance(place[key], dict | list):
            changed(place[key], value)
        else:
            place[key] = value
    return place


def policy_with(change: dict[Any, Any]) -> RotationPolicy:
    return parse_policy(changed(copy.deepcopy(EXAMPLE), change), KNOWN)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_a_bad_policy_is_refused_with_every_problem(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        policy_with(case["change"])
    assert list(caught.value.problems) == case["problems"]


def test_there_are_at_least_twenty_bad_policies_and_no_two_are_the_same() -> None:
    assert len(CASES) >= 20
    assert len({yaml.safe_dump(case["change"]) for case in CASES}) == len(CASES)


def test_every_problem_names_a_field_and_ends_with_what_to_do() -> None:
    for case in CASES:
        for problem in case["problems"]:
            field, _, rest = problem.partition(": ")
            assert field
            assert ". " in rest, problem


@pytest.mark.parametrize("document", [None, "text", ["a"]])
def test_a_document_that_is_no_group_is_refused(document: Any) -> None:
    with pytest.raises(InvalidSpec, match=r"the document: is not a group of fields"):
        parse_policy(document, KNOWN)


def test_the_first_rule_that_matches_names_class_parameters_and_limit() -> None:
    found = policy_with({}).resolve("apps/shop/database")
    assert found is not None
    assert (found.secret.kind, found.system, found.parallel) == (
        "postgresql-alternating-users",
        "db-1",
        2,
    )
    assert found.secret.parameters == {
        "users": "shop_a,shop_b",
        "role": "shop",
        "admin_path": "infraflows/production/db-1",
        "quiet_seconds": "5",
    }


@pytest.mark.parametrize(
    ("path", "is_ruled"),
    [
        ("apps/shop/database", True),
        ("apps/shop/eu/database", False),
        ("apps//database", False),
        ("apps/shop/database/old", False),
        ("test/a", True),
        ("test/a/b/c", True),
        ("test", False),
        ("test/", False),
        ("tests/a", False),
    ],
)
def test_a_star_stays_within_a_name_and_two_stars_reach_any_depth(
    path: str, is_ruled: bool
) -> None:
    assert (policy_with({}).resolve(path) is not None) is is_ruled


def test_a_rule_without_a_system_has_its_class_limit() -> None:
    found = policy_with({}).resolve("test/one/two")
    assert found is not None
    assert (found.system, found.parallel) == ("kubernetes-secret", 2)
    assert found.secret.parameters["name"] == "two"
    assert found.policy.limits().observe_deadline_seconds == 900.0
    assert not found.policy.limits().may_revoke_first


def test_a_value_among_the_parameters_is_never_shown() -> None:
    with pytest.raises(InvalidSpec) as caught:
        policy_with({"secrets": {0: {"parameters": {"password": ["hunter2"]}}}})
    assert "hunter2" not in str(caught.value)
    assert caught.value.problems == (
        "secrets.0.parameters.password: the value is not text. Write text",
    )
