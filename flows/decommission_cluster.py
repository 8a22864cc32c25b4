"""Removes a cluster from every system and proves that nothing is left of it."""

from __future__ import annotations

from prefect import flow

from domain.phases import DECOMMISSION_WEIGHTS
from domain.specs import ClusterSpec
from flows.cluster_phases import make_plan, record_run, wait_at_the_gate
from flows.cluster_run import cluster_run
from flows.removal_phases import (
    check_before_removal,
    destroy_machines,
    prove_that_nothing_is_left,
    withdraw_names_files_and_secrets,
)


@flow(
    name="decommission-cluster",
    flow_run_name="decommission {spec.name}",
    description="Removes a cluster from Proxmox, OpenBao, DNS and Git, and proves it.",
    persist_result=False,
)
def decommission_cluster(spec: ClusterSpec) -> None:
    """Destroy the cluster that `spec` describes, once its plan is approved.

    Raises:
        PermanentError: the gate was refused, or something is left.
    """
    with cluster_run(spec, "Decommission", DECOMMISSION_WEIGHTS) as run:
        check_before_removal(run)
        plan = make_plan(run, destroy=True)
        approver = wait_at_the_gate(run, plan)
        destroy_machines(run, plan, approver)
        withdraw_names_files_and_secrets(run)
        prove_that_nothing_is_left(run)
        record_run(run)
