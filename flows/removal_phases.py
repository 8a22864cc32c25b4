"""The phases that remove a cluster, one function each, in the words of the runbook."""

from __future__ import annotations

from domain.errors import PermanentError
from domain.phases import PhaseState
from domain.tofu_plan import ClusterPlan
from flows.cluster_run import ClusterRun
from flows.leftovers import cluster_leftovers
from tasks.dns.tasks import remove_names
from tasks.git.tasks import remove_cluster_files
from tasks.proxmox.tasks import remove_leftover_machines, remove_pool
from tasks.terraform.tasks import apply, remove_state
from tasks.vault.facts import gather_openbao_facts
from tasks.vault.secrets import remove_cluster_secrets


def check_before_removal(run: ClusterRun) -> None:
    """Look whether the systems answer that the removal needs, and what there is to remove.

    Raises:
        PermanentError: OpenBao cannot be used.
    """
    with run.phase("preflight") as phase:
        facts = gather_openbao_facts(run.environment, run.spec)
        if not facts.is_reachable or facts.is_sealed or facts.problem:
            cause = facts.problem or "OpenBao is sealed"
            raise PermanentError(
                f"Unable to remove {run.spec.name}: {cause} Nothing was changed; run again then."
            )
        found = {s: text for s, text in cluster_leftovers(run.spec).items() if text}
        phase.summary = f"found in {', '.join(found)}" if found else "nothing is there"


def destroy_machines(run: ClusterRun, made: ClusterPlan, approver: str) -> None:
    """Destroy what the approved plan names, and machines of ours that no state knows."""
    with run.phase("destroy") as phase:
        environment, spec = run.environment, run.spec
        if not made.is_empty:
            run.record("destroy", "begins", plan=made.plan_hash, approved_by=approver)
            apply(environment, spec, made.plan_hash)
            run.record("destroy", "changed", plan=made.plan_hash, resources=made.destroys)
        extra = remove_leftover_machines(environment, spec)
        if extra:
            run.record("remove machines outside the state", "changed", machines=", ".join(extra))
        had_pool = remove_pool(environment, spec)
        count = made.destroys + len(extra)
        run.changed("Proxmox", f"{count} machines{' and the pool' if had_pool else ''}", count)
        if count == 0 and not had_pool:
            phase.state = PhaseState.SKIPPED
        phase.summary = f"{count} machines destroyed"


def withdraw_names_files_and_secrets(run: ClusterRun) -> None:
    """Take the cluster out of DNS, Git, OpenBao and the state store."""
    with run.phase("withdraw") as phase:
        environment, spec = run.environment, run.spec
        names = remove_names(environment, spec)
        commit = remove_cluster_files(environment, spec)
        secrets = remove_cluster_secrets(environment, spec)
        had_state = remove_state(environment, spec)
        if names:
            run.record("remove names", "changed", names=", ".join(names))
        if commit.is_changed:
            run.record("remove files", "changed", commit=commit.sha)
        if secrets:
            run.record("remove secrets", "changed", paths=", ".join(secrets))
        if had_state:
            run.record("remove state", "changed")
        run.changed("DNS", f"{len(names)} names", len(names))
        run.changed("Git", "removed" if commit.is_changed else "unchanged", commit.is_changed)
        run.changed("OpenBao", f"{len(secrets)} secrets", len(secrets))
        phase.summary = f"{len(names)} names, {len(secrets)} secrets"


def prove_that_nothing_is_left(run: ClusterRun) -> None:
    """Look into every system again.

    Raises:
        PermanentError: naming what is left, and where.
    """
    with run.phase("prove") as phase:
        left = cluster_leftovers(run.spec)
        run.checks = [
            {
                "check": f"nothing is left in {system}",
                "result": "✘ failed" if text else "✔ passed",
                "detail": text or "nothing found",
            }
            for system, text in left.items()
        ]
        found = [f"{system}: {text}" for system, text in left.items() if text]
        if found:
            lines = "\n".join(f"  - {line}" for line in found)
            raise PermanentError(
                f"Unable to prove that {run.spec.name} is gone:\n{lines}\nRemove it, run again."
            )
        phase.summary = f"nothing is left in {len(left)} systems"
