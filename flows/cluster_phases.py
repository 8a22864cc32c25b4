"""The phases that build a cluster, one function each, in the words of the runbook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from domain.cluster_checks import CheckResult, NodeFact, Outcome, check_rows
from domain.errors import PermanentError
from domain.findings import Level, errors, sentence
from domain.host_reports import MARKS
from domain.inventory import build_inventory
from domain.machines import machines
from domain.phases import PhaseState
from domain.preflight import SiteFacts, check
from domain.tofu_plan import Action, ClusterPlan
from flows.cluster_run import ClusterRun
from flows.gate import pass_gate
from tasks.ansible.tasks import configure, probe, store_kubeconfig
from tasks.dns.tasks import gather_dns_facts, publish_names
from tasks.git.tasks import commit_inventory, commit_platform, repository_location
from tasks.kubernetes.tasks import (
    apply_platform,
    remove_stale_nodes,
    render_platform,
    verify_cluster,
)
from tasks.proxmox.guests import Guests, wait_for_guests
from tasks.proxmox.tasks import gather_proxmox_facts
from tasks.reports.tasks import publish_report
from tasks.runs.site_facts import (
    artifact_source,
    gather_address_facts,
    gather_artifact_facts,
    gather_tool_facts,
)
from tasks.terraform.tasks import adopt_or_clear, apply, ensure_pool, plan
from tasks.vault.facts import gather_openbao_facts
from tasks.vault.secrets import ensure_cluster_secrets

LOOKS = 3
LEVEL_MARKS = {Level.OK: "✔ ok", Level.WARNING: "! warning", Level.ERROR: "✘ error"}


@dataclass(frozen=True)
class Configured:
    """The machines as Ansible reaches them."""

    inventory: dict[str, Any]
    guests: Guests


def gather_site_facts(run: ClusterRun) -> SiteFacts:
    """Look at every system at once; nothing is changed."""
    environment, spec = run.environment, run.spec
    asked: dict[str, PrefectFuture[Any]] = {
        "hypervisor": gather_proxmox_facts.submit(environment, spec),
        "openbao": gather_openbao_facts.submit(environment, spec),
        "dns": gather_dns_facts.submit(environment, spec),
        "tools": gather_tool_facts.submit(environment),
        "artifacts": gather_artifact_facts.submit(environment, spec),
        "addresses": gather_address_facts.submit(spec),
    }
    return SiteFacts(**{part: future.result() for part, future in asked.items()})


def run_preflight(run: ClusterRun) -> None:
    """Find everything that would stop the run, before anything is touched.

    Raises:
        PermanentError: with every error that was found.
    """
    with run.phase("preflight") as phase:
        findings = check(run.spec, gather_site_facts(run))
        create_table_artifact(
            key=f"{run.spec.name}-preflight",
            table=[
                {
                    "result": LEVEL_MARKS[finding.level],
                    "subject": finding.subject,
                    "finding": finding.text,
                    "what to do": finding.fix,
                }
                for finding in sorted(
                    findings, key=lambda f: list(Level).index(f.level), reverse=True
                )
            ],
            description=f"Preflight of {run.spec.name}",
        )
        found = errors(findings)
        warnings = [f for f in findings if f.level is Level.WARNING]
        for finding in warnings:
            get_run_logger().warning("%s", sentence(finding))
        if found:
            lines = "\n".join(f"  - {sentence(finding)}" for finding in found)
            raise PermanentError(
                f"Unable to go on with {run.spec.name}: the preflight found {len(found)} "
                f"{'error' if len(found) == 1 else 'errors'}; nothing was changed.\n{lines}"
            )
        phase.summary = f"{len(findings)} findings, {len(warnings)} warnings, no errors"


def make_plan(run: ClusterRun, *, destroy: bool = False) -> ClusterPlan:
    """Plan the machines, after taking over what an earlier run left half-made."""
    with run.phase("plan") as phase:
        cleared = [] if destroy else adopt_or_clear(run.environment, run.spec)
        if cleared:
            run.record("clear half-made machines", "changed", acts="; ".join(cleared))
        made = plan(run.environment, run.spec, destroy=destroy)
        run.plan_hash = made.plan_hash
        rows = made.changed_rows or made.rows
        create_table_artifact(
            key=f"{run.spec.name}-plan",
            table=[
                {
                    "action": "unchanged" if row.action is Action.NO_OP else row.action.value,
                    "machine": row.name,
                    "hypervisor": row.node,
                    "what changes": row.changes,
                }
                for row in rows
            ],
            description=f"Plan of {run.spec.name}: {made.summary}. Hash `{made.plan_hash}`",
        )
        phase.summary = made.summary
        if not made.is_empty:
            phase.summary += f"; plan {made.plan_hash[:12]}"
        if cleared:
            phase.summary += f"; cleared {len(cleared)}"
    return made


def wait_at_the_gate(run: ClusterRun, made: ClusterPlan) -> str:
    """Return who let the plan pass."""
    with run.phase("gate") as phase:
        approver = pass_gate(run.environment, made)
        phase.summary = approver
    return approver


def apply_the_plan(run: ClusterRun, made: ClusterPlan, approver: str) -> None:
    """Apply exactly the plan that passed the gate."""
    with run.phase("apply") as phase:
        environment, spec = run.environment, run.spec
        if made.is_empty:
            phase.summary = "nothing to apply"
            phase.state = PhaseState.SKIPPED
        else:
            if ensure_pool(environment, spec):
                run.record("create pool", "changed", pool=spec.proxmox.pool)
            run.record("apply plan", "begins", plan=made.plan_hash, approved_by=approver)
            result = apply(environment, spec, made.plan_hash)
            run.record("apply plan", "changed", plan=made.plan_hash, resources=made.changes)
            phase.summary = f"{made.changes} resources in {result.seconds:.1f} s"
        run.changed("OpenTofu", f"{made.changes} of {len(made.rows)} resources", made.changes)


def publish_inventory(run: ClusterRun) -> Configured:
    """Wait for the guests, then write who they are to Git and DNS."""
    with run.phase("inventory") as phase:
        environment, spec = run.environment, run.spec
        guests = wait_for_guests(environment, spec)
        inventory = build_inventory(
            spec, machines(spec), guests.addresses, artifact_source(environment)
        )
        commit = commit_inventory(environment, spec, inventory)
        if commit.is_changed:
            run.record("commit inventory", "changed", commit=commit.sha)
        names = publish_names(environment, spec)
        if names:
            run.record("publish names", "changed", names=", ".join(names))
        run.changed(
            "Git inventory", "committed" if commit.is_changed else "unchanged", commit.is_changed
        )
        run.changed("DNS", f"{len(names)} names", len(names))
        phase.summary = f"{len(guests.addresses)} guests, commit {commit.sha[:8]}"
    return Configured(inventory, guests)


def configure_machines(run: ClusterRun, made: Configured) -> None:
    """Make nodes of the machines, and keep the cluster's kubeconfig."""
    with run.phase("configure") as phase:
        environment, spec = run.environment, run.spec
        if ensure_cluster_secrets(environment, spec):
            run.record("create join tokens", "changed", path=f"{spec.secrets_path}/rke2")
        reports = configure(
            environment, spec, made.inventory, made.guests.host_keys, run.advances("configure")
        )
        changed = sum(report.changed for report in reports)
        tasks = sum(report.ok for report in reports)
        run.hosts = [
            {
                "host": report.host,
                "state": f"{MARKS[report.status]} {report.status.value}",
                "ok": str(report.ok),
                "changed": str(report.changed),
                "failed": str(report.failed),
                "seconds": f"{report.seconds:.1f}",
            }
            for report in reports
        ]
        if changed:
            run.record("configure machines", "changed", hosts=len(reports), changes=changed)
        run.changed("Ansible", f"{changed} of {tasks} tasks", changed)
        if store_kubeconfig(environment, spec, made.inventory, made.guests.host_keys):
            run.record("store kubeconfig", "changed", path=f"{spec.secrets_path}/kubeconfig")
        phase.summary = f"{len(reports)} hosts, {changed} changes"


def apply_the_platform(run: ClusterRun) -> None:
    """Commit the platform's manifests and apply them in the order of their dependencies."""
    with run.phase("platform") as phase:
        environment, spec = run.environment, run.spec
        objects = render_platform(spec, repository_location(environment))
        commit = commit_platform(environment, spec, objects)
        if commit.is_changed:
            run.record("commit platform", "changed", commit=commit.sha)
        gone = remove_stale_nodes(environment, spec)
        if gone:
            run.record("remove stale nodes", "changed", nodes=", ".join(gone))
        report = apply_platform(environment, spec, objects, commit.sha, run.advances("platform"))
        count = report.created + report.changed
        if count:
            run.record(
                "apply platform", "changed", commit=commit.sha, created=report.created,
                changed=report.changed,
            )  # fmt: skip
        create_table_artifact(
            key=f"{spec.name}-platform",
            table=report.rows(),
            description=f"Platform of {spec.name}, commit `{commit.sha[:12]}`",
        )
        total = report.created + report.changed + report.unchanged
        run.changed("Kubernetes", f"{count} of {total} objects", count)
        phase.summary = (
            f"{report.created} created, {report.changed} changed, {report.unchanged} unchanged"
        )


def verify_the_cluster(run: ClusterRun, made: Configured) -> None:
    """Look at the finished cluster; any check that does not pass fails the run.

    Raises:
        PermanentError: with every check that failed or could not be made.
    """
    with run.phase("verify") as phase:
        spec = run.spec
        results, nodes = _look_until_known(run, made)
        run.checks = check_rows(results)
        by_name = {node.name: node for node in nodes}
        run.machines = [
            {
                "name": machine.name,
                "role": machine.role.value,
                "hypervisor": machine.hypervisor,
                "address": machine.address,
                "version": by_name[machine.name].version if machine.name in by_name else "",
                "state": _node_state(by_name.get(machine.name)),
            }
            for machine in machines(spec)
        ]
        create_table_artifact(
            key=f"{spec.name}-checks", table=run.checks, description=f"Checks of {spec.name}"
        )
        bad = [result for result in results if not result.is_passed]
        if bad:
            lines = "\n".join(f"  - {r.name}: {r.outcome.value}, {r.detail}" for r in bad)
            raise PermanentError(
                f"Unable to accept {spec.name}: {len(bad)} of {len(results)} checks did not pass.\n"
                f"{lines}\nMend the cause, then run again."
            )
        phase.summary = f"{len(results)} checks passed"


def _look_until_known(
    run: ClusterRun, made: Configured
) -> tuple[list[CheckResult], tuple[NodeFact, ...]]:
    """Look at the cluster; what could not be read, as on a busy server, is looked at again."""
    for looks_left in reversed(range(LOOKS)):
        seen = probe(run.environment, made.inventory, made.guests.host_keys)
        results, nodes = verify_cluster(run.environment, run.spec, seen)
        unknown = [result.name for result in results if result.outcome is Outcome.UNKNOWN]
        if not unknown or not looks_left:
            break
        get_run_logger().warning("Looking again, not known yet: %s.", ", ".join(unknown))
    return results, nodes


def _node_state(node: Any) -> str:
    if node is None:
        return "absent"
    return "Ready" if node.is_ready else "NotReady"


def record_run(run: ClusterRun) -> None:
    """Close the ledger's account of this run and publish its report."""
    with run.phase("record") as phase:
        outcome = "changed" if run.is_changed else "no change"
        run.record(run.verb.lower(), outcome, **run.changes)
        phase.summary = outcome
    summary = (
        "No change: the cluster is as its spec says."
        if not run.is_changed
        else f"{run.verb} of {run.spec.name} ended; every check passed."
    )
    publish_report(run.report("succeeded" if run.is_changed else "unchanged", summary, []))
