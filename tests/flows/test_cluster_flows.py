"""The two flows on clusters: the order of their acts, and what they leave when they fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun

import flows.gate
from deployments.approve import answer
from domain.errors import PermanentError, Unreachable
from domain.preflight import OpenBaoFacts
from domain.specs import ClusterSpec
from domain.tofu_plan import Action, ClusterPlan
from flows.bootstrap_cluster import bootstrap_cluster
from flows.decommission_cluster import decommission_cluster

Artifacts = Callable[[FlowRun], dict[str, list[Any]]]
Eventually = Callable[[Callable[[], Any], str], Any]


@pytest.fixture
def latest(artifacts_of: Artifacts) -> Callable[[str], dict[str, list[Any]]]:
    """Return the artifacts of the latest run of a flow."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    def read(flow_name: str) -> dict[str, list[Any]]:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
                sort=FlowRunSort.START_TIME_DESC,
                limit=1,
            )
        return artifacts_of(runs[0])

    return read


def test_a_bootstrap_ends_with_every_phase_done_and_a_ledger_of_what_changed(
    site: Any, spec: ClusterSpec, latest: Callable[[str], dict[str, list[Any]]]
) -> None:
    bootstrap_cluster(spec)
    found = latest("bootstrap-cluster")
    states = {row["phase"]: row["state"] for row in found["demo-phases"][0]}
    assert set(states.values()) == {"✔ done"}
    assert list(states) == [
        "preflight", "plan", "gate", "apply", "inventory",
        "configure", "platform", "verify", "record",
    ]  # fmt: skip
    assert site.steps == [
        ("create pool", "changed"),
        ("apply plan", "begins"),
        ("apply plan", "changed"),
        ("commit inventory", "changed"),
        ("publish names", "changed"),
        ("create join tokens", "changed"),
        ("configure machines", "changed"),
        ("store kubeconfig", "changed"),
        ("commit platform", "changed"),
        ("apply platform", "changed"),
        ("bootstrap", "changed"),
    ]
    report = found["demo-report"][0]
    assert "**Succeeded**" in report
    assert "| demo-server-1 |" in report


def test_a_bootstrap_that_finds_nothing_to_do_says_so_and_records_no_change(
    site: Any,
    spec: ClusterSpec,
    plan_of: Callable[..., ClusterPlan],
    latest: Callable[[str], dict[str, list[Any]]],
) -> None:
    site.plan, site.is_new = plan_of([Action.NO_OP] * 5), False
    bootstrap_cluster(spec)
    assert site.steps == [("bootstrap", "no change")]
    assert not {"apply", "ensure_pool"} & set(site.acts)
    found = latest("bootstrap-cluster")
    assert "No change: the cluster is as its spec says." in found["demo-report"][0]
    states = {row["phase"]: row["state"] for row in found["demo-phases"][0]}
    assert states["apply"] == "– skipped"


def test_preflight_errors_stop_the_run_before_anything_is_touched(
    site: Any, spec: ClusterSpec, latest: Callable[[str], dict[str, list[Any]]]
) -> None:
    site.openbao = OpenBaoFacts(is_reachable=True, is_sealed=True)
    with pytest.raises(PermanentError, match="the preflight found 1 error; nothing was changed"):
        bootstrap_cluster(spec)
    assert site.steps == []
    assert "adopt_or_clear" not in site.acts
    assert "plan" not in site.acts
    rows = latest("bootstrap-cluster")["demo-preflight"][0]
    assert (rows[0]["result"], rows[0]["subject"]) == ("✘ error", "OpenBao")


def test_a_run_that_fails_half_way_reports_what_exists_by_then(
    site: Any, spec: ClusterSpec, latest: Callable[[str], dict[str, list[Any]]]
) -> None:
    site.failures["configure"] = PermanentError("Unable to configure demo-worker-2: disk full.")
    site.left = {"Proxmox": ["demo-server-1", "demo-worker-2"]}
    with pytest.raises(PermanentError, match="demo-worker-2: disk full"):
        bootstrap_cluster(spec)
    assert "render_platform" not in site.acts
    assert ("apply plan", "changed") in site.steps
    report = latest("bootstrap-cluster")["demo-report"][0]
    assert "**Failed**" in report
    assert "Unable to configure demo-worker-2: disk full." in report
    assert "Proxmox: demo-server-1, demo-worker-2" in report
    assert "run again with the same spec" in report


def test_a_report_of_a_failure_never_hides_the_failure(site: Any, spec: ClusterSpec) -> None:
    site.failures["apply"] = PermanentError("Unable to apply: the storage is full.")
    site.failures["machines_left"] = Unreachable("Unable to reach Proxmox.")
    with pytest.raises(PermanentError, match="the storage is full"):
        bootstrap_cluster(spec)


def test_a_check_that_does_not_pass_fails_the_run(site: Any, spec: ClusterSpec) -> None:
    site.failed_checks = ("audit log",)
    with pytest.raises(PermanentError, match=r"1 of 3 checks did not pass\.\n  - audit log"):
        bootstrap_cluster(spec)
    assert ("bootstrap", "changed") not in site.steps


def test_what_a_busy_server_did_not_tell_is_asked_again(site: Any, spec: ClusterSpec) -> None:
    site.looks_in_vain = 2
    bootstrap_cluster(spec)
    assert site.acts.count("verify_cluster") == 3


def test_what_stays_unknown_fails_the_run(site: Any, spec: ClusterSpec) -> None:
    site.looks_in_vain = 100
    with pytest.raises(PermanentError, match="encryption at rest: unknown, it did not tell"):
        bootstrap_cluster(spec)
    assert site.acts.count("verify_cluster") == 3


def approve_when_it_waits(
    body: Callable[[], Any],
    in_background: Callable[[Callable[[], Any]], Any],
    eventually: Eventually,
    plan_hash: str,
) -> Any:
    """Run a flow beside the test, approve its plan and wait for its end."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState

    paused = FlowRunFilter(state=FlowRunFilterState.model_validate({"name": {"any_": ["Paused"]}}))

    def waiting() -> Any:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_run_filter=paused)
        return found[0].id if found else None

    run = in_background(body)
    answer(eventually(waiting, "it waits"), approve=True, plan_hash=plan_hash, approver="Ada")
    return run.join()


@pytest.mark.parametrize("left", [{}, {"DNS": ["demo.lab.infraflows.internal"]}])
def test_a_removal_waits_for_approval_and_proves_that_nothing_is_left(
    left: dict[str, list[str]],
    site: Any,
    spec: ClusterSpec,
    plan_of: Callable[..., ClusterPlan],
    in_background: Callable[[Callable[[], Any]], Any],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows.gate, "POLL_SECONDS", 0.2)
    site.plan, site.left = plan_of([Action.DESTROY] * 5), left

    def remove() -> Any:
        return approve_when_it_waits(
            lambda: decommission_cluster(spec), in_background, eventually, site.plan.plan_hash
        )

    if left:
        with pytest.raises(PermanentError, match=r"DNS: demo\.lab\.infraflows\.internal"):
            remove()
    else:
        remove()
        assert site.steps[-1] == ("decommission", "changed")
    assert site.steps[:2] == [("destroy", "begins"), ("destroy", "changed")]


def test_a_removal_needs_an_open_openbao(site: Any, spec: ClusterSpec) -> None:
    site.openbao = OpenBaoFacts(is_reachable=True, is_sealed=True)
    with pytest.raises(PermanentError, match="OpenBao is sealed"):
        decommission_cluster(spec)
    assert "plan" not in site.acts


def test_a_removal_of_what_does_not_exist_succeeds_without_a_change(
    site: Any, spec: ClusterSpec, plan_of: Callable[..., ClusterPlan]
) -> None:
    site.plan, site.is_new = plan_of([]), False
    decommission_cluster(spec)
    assert site.steps == [("decommission", "no change")]
    assert "apply" not in site.acts
