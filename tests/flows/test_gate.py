"""The gate: what passes by policy, what waits for a person, and which answers open it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

import flows.gate
from deployments.approve import answer, shown_plan_hash
from domain.errors import Conflict, PolicyViolation
from domain.tofu_plan import Action, ClusterPlan
from flows.gate import pass_gate

CREATES = [Action.CREATE, Action.CREATE]
DESTROYS = [Action.NO_OP, Action.DESTROY]
OTHER_HASH = "0" * 64


@pytest.fixture(autouse=True)
def _answers_are_seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.gate, "POLL_SECONDS", 0.2)


def gate_flow(plan: ClusterPlan, name: str) -> Any:
    @flow(name="gate", flow_run_name=name, persist_result=False)
    def gate() -> str:
        return pass_gate("lab", plan)

    return gate


def at_once(plan: ClusterPlan) -> str:
    passed: str = gate_flow(plan, "gate at once")()
    return passed


class Waiting:
    """A run that stands at the gate with a plan."""

    def __init__(self, run_id: UUID, run: Any) -> None:
        self.id, self._run = run_id, run

    def answered(self, **answered: Any) -> str:
        answer(self.id, **{"approve": True, "approver": "Ada", **answered})
        return str(self._run.join())


@pytest.fixture
def wait_at(
    in_background: Callable[[Callable[[], Any]], Any],
    eventually: Callable[[Callable[[], Any], str], Any],
    run_named: Callable[[str], FlowRun | None],
) -> Callable[[ClusterPlan], Waiting]:
    def start(plan: ClusterPlan) -> Waiting:
        name = f"gate {uuid4()}"

        def paused() -> UUID | None:
            run = run_named(name)
            return run.id if run and run.state and run.state.is_paused() else None

        run = in_background(gate_flow(plan, name))
        return Waiting(eventually(paused, "the run waits"), run)

    return start


def test_a_plan_that_destroys_nothing_passes_an_automatic_gate(
    policy: Callable[[str], None], plan_of: Callable[..., ClusterPlan]
) -> None:
    policy("automatic")
    assert at_once(plan_of(CREATES)) == "policy: passes by policy"


def test_an_empty_plan_needs_no_approval_under_any_policy(
    policy: Callable[[str], None], plan_of: Callable[..., ClusterPlan]
) -> None:
    policy("approval")
    assert at_once(plan_of([Action.NO_OP])) == "policy: nothing to do"


def test_a_policy_that_nobody_knows_refuses(
    policy: Callable[[str], None], plan_of: Callable[..., ClusterPlan]
) -> None:
    policy("yolo")
    with pytest.raises(PolicyViolation, match="'yolo' is none of automatic, approval"):
        at_once(plan_of(CREATES))


def test_a_plan_that_destroys_waits_even_at_an_automatic_gate(
    policy: Callable[[str], None],
    plan_of: Callable[..., ClusterPlan],
    wait_at: Callable[[ClusterPlan], Waiting],
) -> None:
    policy("automatic")
    plan = plan_of(DESTROYS)
    waiting = wait_at(plan)
    assert waiting.answered(plan_hash=plan.plan_hash) == "Ada"


@pytest.mark.usefixtures("policy")
def test_an_environment_without_a_policy_asks_for_approval(
    plan_of: Callable[..., ClusterPlan], wait_at: Callable[[ClusterPlan], Waiting]
) -> None:
    plan = plan_of(CREATES)
    assert wait_at(plan).answered(plan_hash=plan.plan_hash, approver=" Grace ") == "Grace"


@pytest.mark.usefixtures("policy")
def test_the_form_shows_what_is_approved(
    plan_of: Callable[..., ClusterPlan], wait_at: Callable[[ClusterPlan], Waiting]
) -> None:
    plan = plan_of(DESTROYS)
    waiting = wait_at(plan)
    assert shown_plan_hash(waiting.id) == plan.plan_hash
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(waiting.id)
        keyset = run.state.state_details.run_input_keyset if run.state else None
        assert keyset
        shown = client._client.get(f"/flow_runs/{waiting.id}/input/{keyset['description']}").text
    assert plan.plan_hash in shown
    assert "The plan destroys or replaces 1 resource." in shown
    assert "1 destroy" in shown
    with pytest.raises(PolicyViolation):
        waiting.answered(approve=False, plan_hash=plan.plan_hash)


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"approve": False}, "Ada rejected the plan"),
        ({"plan_hash": OTHER_HASH}, "the approval is for the plan 000000000000"),
        ({"plan_hash": ""}, r"the approval is for the plan \(none\)"),
        ({"approver": "  "}, "does not say who gave it"),
    ],
    ids=["rejected", "for another plan", "for no plan", "by nobody"],
)
def test_an_answer_that_does_not_fit_keeps_the_gate_shut(
    given: dict[str, Any],
    said: str,
    plan_of: Callable[..., ClusterPlan],
    wait_at: Callable[[ClusterPlan], Waiting],
) -> None:
    plan = plan_of(CREATES)
    with pytest.raises(PolicyViolation, match=said):
        wait_at(plan).answered(**{"plan_hash": plan.plan_hash, **given})


@pytest.mark.usefixtures("policy")
def test_a_run_is_answered_once(
    plan_of: Callable[..., ClusterPlan], wait_at: Callable[[ClusterPlan], Waiting]
) -> None:
    plan = plan_of(CREATES)
    waiting = wait_at(plan)
    waiting.answered(plan_hash=plan.plan_hash)
    with pytest.raises(Conflict, match="it does not wait, it is Completed"):
        answer(waiting.id, approve=True, plan_hash=plan.plan_hash, approver="Eve")


@pytest.mark.usefixtures("policy")
def test_an_answer_that_is_no_answer_is_refused_by_the_server(
    plan_of: Callable[..., ClusterPlan], wait_at: Callable[[ClusterPlan], Waiting]
) -> None:
    plan = plan_of(CREATES)
    waiting = wait_at(plan)
    with pytest.raises(Conflict, match="the server refused it"):
        answer(waiting.id, approve="perhaps", plan_hash=plan.plan_hash, approver="Ada")  # type: ignore[arg-type]
    assert waiting.answered(plan_hash=plan.plan_hash) == "Ada"
