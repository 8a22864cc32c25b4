"""The apply step against an API that fails: it finishes what was approved, or says why not."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from domain.errors import Conflict, QuotaExceeded
from domain.machines import machines
from domain.specs import parse_spec
from domain.tofu_plan import ClusterPlan
from tasks.terraform import tasks, workspace


class Steps:
    """The steps on one cluster, run without an orchestrator."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    def plan(self, **options: Any) -> ClusterPlan:
        return tasks.plan.fn("lab", self.cluster.spec, **options)

    def apply(self, plan_hash: str) -> tasks.ApplyResult:
        return tasks.apply.fn("lab", self.cluster.spec, plan_hash)

    def names(self) -> list[str]:
        prefix = f"{self.cluster.spec.name}-"
        return [vm.name for vm in self.cluster.api.machines() if vm.name.startswith(prefix)]

    def wanted(self) -> list[str]:
        return [machine.name for machine in machines(self.cluster.spec)]


_numbers = itertools.count(1)


@pytest.fixture
def steps(make_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Steps:
    made = Steps(make_cluster(f"apply-{next(_numbers)}"))

    @contextmanager
    def opened(_environment: str, _spec: Any) -> Iterator[workspace.Opened]:
        yield made.cluster.opened()

    monkeypatch.setattr(tasks, "opened", opened)
    monkeypatch.setattr(tasks, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(tasks, "PAUSE_SECONDS", 0.1)
    return made


def test_a_plan_is_applied_in_one_round(steps: Steps) -> None:
    made = steps.plan()
    result = steps.apply(made.plan_hash)
    assert (result.created, result.rounds) == (2, 1)
    assert set(result.seconds_by_machine) == {row.address for row in made.rows}
    assert steps.names() == steps.wanted()
    assert steps.plan().is_empty


def test_the_same_plan_is_made_again_where_it_was_not_kept(steps: Steps) -> None:
    made = steps.plan()
    directory = steps.cluster.block().directory(f"lab-{steps.cluster.spec.name}")
    (directory / f"plan-{made.plan_hash}.tfplan").unlink()
    assert steps.apply(made.plan_hash).created == 2


def test_a_plan_of_another_hash_is_never_applied(steps: Steps) -> None:
    made = steps.plan()
    data = steps.cluster.spec.model_dump(mode="json")
    data["workers"]["cores"] = 4
    steps.cluster.spec = parse_spec(data)
    steps.plan()
    with pytest.raises(Conflict, match="the site has changed"):
        steps.apply(made.plan_hash)
    assert steps.names() == []


@pytest.mark.parametrize("leave", ["nothing", "disk"])
def test_a_clone_that_fails_once_is_made_in_the_next_round(steps: Steps, leave: str) -> None:
    made = steps.plan()
    steps.cluster.site.simulator.fault("clone-fails", count="1", leave=leave)
    result = steps.apply(made.plan_hash)
    assert result.rounds == 2
    assert steps.names() == steps.wanted()
    assert steps.plan().is_empty


def test_a_clone_whose_answer_was_lost_is_found_and_finished(steps: Steps) -> None:
    made = steps.plan()
    steps.cluster.site.simulator.fault(
        "api-error", status="596", path="*/clone", method="POST", when="after", count="1"
    )
    steps.apply(made.plan_hash)
    assert steps.names() == steps.wanted()
    assert steps.plan().is_empty


def test_an_api_that_fails_now_and_then_is_got_through(steps: Steps) -> None:
    made = steps.plan()
    steps.cluster.site.simulator.fault("api-error", status="596", count="6", path="/nodes/*")
    steps.apply(made.plan_hash)
    assert steps.names() == steps.wanted()
    assert steps.plan().is_empty


def test_a_full_storage_ends_in_one_error_and_leaves_nothing_half_made(steps: Steps) -> None:
    made = steps.plan()
    steps.cluster.site.simulator.fault("storage-full", storage="vmstore")
    with pytest.raises(QuotaExceeded, match=r"^Unable to apply the plan of lab-"):
        steps.apply(made.plan_hash)
    assert steps.names() == []


def test_a_destroy_that_was_planned_is_applied(steps: Steps) -> None:
    steps.apply(steps.plan().plan_hash)
    made = steps.plan(destroy=True)
    assert made.destroys == 2
    assert steps.apply(made.plan_hash).destroyed == 2
    assert steps.names() == []
