from __future__ import annotations

import pytest

from domain.gate import GateOutcome, GatePolicy, decide, refusal

HASH = "a" * 64


@pytest.mark.parametrize("policy", list(GatePolicy))
def test_an_empty_plan_has_nothing_to_wait_for(policy: GatePolicy) -> None:
    assert decide(policy, changes=0, destroys=0).outcome is GateOutcome.NOTHING_TO_DO


@pytest.mark.parametrize("policy", list(GatePolicy))
def test_a_plan_that_destroys_waits_under_every_policy(policy: GatePolicy) -> None:
    decision = decide(policy, changes=5, destroys=1)
    assert decision.outcome is GateOutcome.WAITS
    assert "1 resource." in decision.reason


def test_a_plan_that_only_creates_passes_where_the_policy_is_automatic() -> None:
    assert decide(GatePolicy.AUTOMATIC, changes=5, destroys=0).outcome is GateOutcome.PASSES


def test_a_plan_that_only_creates_waits_where_the_policy_asks_for_approval() -> None:
    assert decide(GatePolicy.APPROVAL, changes=5, destroys=0).outcome is GateOutcome.WAITS


def _refusal(**changed: object) -> str | None:
    answer = {
        "shown_hash": HASH,
        "approved_hash": HASH,
        "is_approved": True,
        "approver": "operator",
    }
    return refusal(**{**answer, **changed})  # type: ignore[arg-type]


def test_an_approval_of_the_shown_plan_opens_the_gate() -> None:
    assert _refusal() is None


def test_an_approval_of_another_plan_is_void() -> None:
    assert _refusal(approved_hash="b" * 64) == (
        "the approval is for the plan bbbbbbbbbbbb, and the plan that is shown is aaaaaaaaaaaa"
    )


def test_an_approval_without_a_hash_is_void() -> None:
    assert "(none)" in str(_refusal(approved_hash=" "))


def test_an_approval_without_a_name_is_void() -> None:
    assert _refusal(approver="  ") == "the approval does not say who gave it"


def test_a_rejection_names_who_rejected() -> None:
    assert _refusal(is_approved=False) == "operator rejected the plan"
