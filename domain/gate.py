"""Whether a plan may be applied at once or waits for a person.

Promises that a plan that destroys or replaces anything always waits, and that an approval counts
for the very plan that was shown: it names the plan's hash, and another hash voids it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GatePolicy(StrEnum):
    """What an environment asks for."""

    AUTOMATIC = "automatic"
    """Plans that only create or change are applied at once."""
    APPROVAL = "approval"
    """Every plan that does anything waits for a person."""


def policy_variable(environment: str) -> str:
    """Return the name of the variable that holds an environment's policy."""
    return f"infraflows_gate_{environment.replace('-', '_')}"


class GateOutcome(StrEnum):
    """What happens with a plan."""

    NOTHING_TO_DO = "nothing to do"
    PASSES = "passes by policy"
    WAITS = "waits for approval"


@dataclass(frozen=True)
class GateDecision:
    """The outcome and the sentence that explains it to an operator."""

    outcome: GateOutcome
    reason: str


def decide(policy: GatePolicy, *, changes: int, destroys: int) -> GateDecision:
    """Decide about a plan with `changes` acts, of which `destroys` end or replace a resource."""
    if changes == 0:
        return GateDecision(GateOutcome.NOTHING_TO_DO, "The plan changes nothing.")
    if destroys:
        noun = "resource" if destroys == 1 else "resources"
        return GateDecision(GateOutcome.WAITS, f"The plan destroys or replaces {destroys} {noun}.")
    if policy is GatePolicy.APPROVAL:
        return GateDecision(
            GateOutcome.WAITS, "The environment's policy asks for approval of every plan."
        )
    return GateDecision(
        GateOutcome.PASSES, "The environment's policy lets plans pass that destroy nothing."
    )


def refusal(*, shown_hash: str, approved_hash: str, is_approved: bool, approver: str) -> str | None:
    """Return why an answer to the gate does not open it, or None when it does."""
    if not is_approved:
        return f"{approver or 'the approver'} rejected the plan"
    if not approver.strip():
        return "the approval does not say who gave it"
    if approved_hash.strip() != shown_hash:
        return (
            f"the approval is for the plan {approved_hash.strip()[:12] or '(none)'}, "
            f"and the plan that is shown is {shown_hash[:12]}"
        )
    return None
