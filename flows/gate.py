"""The gate between a plan and its application: by policy, or by a person's typed answer.

Promises that the answer counts for the plan that is shown and for no other, and that a run that
waits shows what it waits for.
"""

from __future__ import annotations

from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.variables import Variable
from pydantic import Field

from domain.errors import PolicyViolation
from domain.gate import GateDecision, GateOutcome, GatePolicy, decide, policy_variable, refusal
from domain.tofu_plan import ClusterPlan

ANSWER_WITHIN_SECONDS = 24 * 3600
POLL_SECONDS = 2


class Approval(RunInput):
    """The answer to a plan that waits."""

    approve: bool = Field(default=False, description="Tick to apply the plan; leave to reject it.")
    plan_hash: str = Field(default="", description="Hash of the plan that is approved.")
    approved_by: str = Field(default="", description="Who approves; goes into the ledger.")


def gate_policy(environment: str) -> GatePolicy:
    """Return an environment's policy; one that is not set asks for approval."""
    name = policy_variable(environment)
    found = Variable.get(name, default=GatePolicy.APPROVAL.value)
    try:
        return GatePolicy(str(found))
    except ValueError:
        allowed = ", ".join(policy.value for policy in GatePolicy)
        raise PolicyViolation(
            f"Unable to read the gate policy {name}: {found!r} is none of {allowed}. "
            "Correct the variable in Prefect."
        ) from None


def pass_gate(environment: str, plan: ClusterPlan) -> str:
    """Return who let the plan pass, waiting for a person where the rules ask for one.

    Raises:
        PolicyViolation: the answer rejects the plan or is for another one.
    """
    decision = decide(gate_policy(environment), changes=plan.changes, destroys=plan.destroys)
    return pass_decision(decision, plan.plan_hash, plan.summary)


def pass_decision(decision: GateDecision, plan_hash: str, summary: str) -> str:
    """Return who let a plan pass, be it of machines or of secrets.

    Raises:
        PolicyViolation: the answer rejects the plan or is for another one.
    """
    get_run_logger().info("Gate: %s. %s", decision.outcome.value, decision.reason)
    if decision.outcome is not GateOutcome.WAITS:
        return f"policy: {decision.outcome.value}"
    answer = pause_flow_run(
        wait_for_input=Approval.with_initial_data(
            description=(
                f"**{decision.reason}**\n\nPlan `{plan_hash}`: {summary}. "
                "The table of the plan is among this run's artifacts. "
                "The approval is void if the plan changes."
            ),
            plan_hash=plan_hash,
        ),
        timeout=ANSWER_WITHIN_SECONDS,
        poll_interval=POLL_SECONDS,
        key=f"gate-{plan_hash[:24]}",
    )
    refused = refusal(
        shown_hash=plan_hash,
        approved_hash=answer.plan_hash,
        is_approved=answer.approve,
        approver=answer.approved_by,
    )
    if refused:
        raise PolicyViolation(
            f"Unable to apply plan {plan_hash[:12]}: {refused}. "
            "Nothing was changed; run again to plan anew."
        )
    return answer.approved_by.strip()
