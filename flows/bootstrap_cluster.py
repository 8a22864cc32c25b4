"""From an empty Proxmox pool to a hardened, highly available RKE2 cluster with its platform.

The body is the runbook. Each phase can be killed at any instruction; a run with the same spec
goes on where the last one was, and a run on a finished cluster changes nothing.
"""

from __future__ import annotations

from prefect import flow

from domain.phases import BOOTSTRAP_WEIGHTS
from domain.specs import ClusterSpec
from flows.cluster_phases import (
    apply_the_plan,
    apply_the_platform,
    configure_machines,
    make_plan,
    publish_inventory,
    record_run,
    run_preflight,
    verify_the_cluster,
    wait_at_the_gate,
)
from flows.cluster_run import cluster_run


@flow(
    name="bootstrap-cluster",
    flow_run_name="bootstrap {spec.name}",
    description="From an empty Proxmox pool to a hardened, highly available RKE2 cluster.",
    persist_result=False,
)
def bootstrap_cluster(spec: ClusterSpec) -> None:
    """Build the cluster that `spec` describes, or converge it by the difference.

    Raises:
        PermanentError: the preflight found errors, the gate was refused, or a check failed; the
            message says what to do.
    """
    with cluster_run(spec, "Bootstrap", BOOTSTRAP_WEIGHTS) as run:
        run_preflight(run)
        plan = make_plan(run)
        approver = wait_at_the_gate(run, plan)
        apply_the_plan(run, plan, approver)
        machines = publish_inventory(run)
        configure_machines(run, machines)
        apply_the_platform(run)
        verify_the_cluster(run, machines)
        record_run(run)
