"""The phases of a rotation run, one function each, in the words of the runbook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from domain.errors import NotFound, PermanentError, PolicyViolation
from domain.findings import Level, errors, sentence
from domain.phases import PhaseState
from domain.rotation.blast_radius import Leak, blast_radius
from domain.rotation.policy import RotationPolicy
from domain.rotation.run_plan import (
    RunPlan,
    Way,
    gate_decision,
    leak_plan,
    nightly_plan,
    one_plan,
)
from domain.rotation.run_report import BAD, End, failure_text
from domain.rotation.schedule import DueRow, Slot, Status, Wave, due_list, held_back
from flows.gate import gate_policy, pass_decision
from flows.rotation_run import RotationRun
from tasks.reports.rotation import publish_blast_radius, publish_rotation_report
from tasks.rotation.facts import (
    Surroundings,
    classes_that_ask,
    gather_access_facts,
    gather_secret_facts,
    look_around,
)
from tasks.rotation.tasks import Commission, revoke_tokens, rotate_secret
from tasks.runs.pause_switch import refuse_if_paused

LEVEL_MARKS = {Level.OK: "✔ ok", Level.WARNING: "! warning", Level.ERROR: "✘ error"}
STATUS_MARKS = {Status.PARTIAL: "▶ partial", Status.DUE: "▶ due", Status.LATER: "· later"}


def run_preflight(run: RotationRun) -> tuple[RotationPolicy, Surroundings]:
    """Find everything that would stop the run, before anything is touched.

    Raises:
        PermanentError: with every error that was found.
    """
    with run.phase("preflight") as phase:
        seen = look_around(run.environment)
        create_table_artifact(
            key=f"{run.target}-preflight",
            table=[
                {
                    "result": LEVEL_MARKS[finding.level],
                    "subject": finding.subject,
                    "finding": finding.text,
                    "what to do": finding.fix,
                }
                for finding in sorted(
                    seen.findings, key=lambda f: list(Level).index(f.level), reverse=True
                )
            ],
            description=f"Preflight of the rotation in {run.environment}",
        )
        found = errors(seen.findings)
        for finding in seen.findings:
            if finding.level is Level.WARNING:
                get_run_logger().warning("%s", sentence(finding))
        if found or seen.policy is None:
            lines = "\n".join(f"  - {sentence(finding)}" for finding in found)
            raise PermanentError(
                f"Unable to rotate secrets in {run.environment}: the preflight found {len(found)} "
                f"{'error' if len(found) == 1 else 'errors'}; nothing was changed.\n{lines}"
            )
        phase.summary = f"{len(seen.paths)} secrets, {len(seen.policy.secrets)} rules, no errors"
    return seen.policy, seen


def _due(run: RotationRun, policy: RotationPolicy, paths: Sequence[str]) -> list[DueRow]:
    """List every secret, the due ones first, and show the list."""
    gathered = gather_secret_facts(run.environment, policy, paths)
    run.unknown += gathered.unknown
    for text in gathered.unknown:
        get_run_logger().warning("Not every consumer is known. %s", text)
    rows = due_list(policy, gathered.facts, datetime.now(UTC))
    create_table_artifact(
        key=f"{run.target}-due",
        table=[{"status": STATUS_MARKS[row.status], **row.cells()} for row in rows]
        or [{"status": "· none", "path": "no secret lies under the policy's rules"}],
        description=f"Secrets in {run.environment}: partial and due ones first",
    )
    return rows


def plan_the_night(run: RotationRun, policy: RotationPolicy, seen: Surroundings) -> RunPlan:
    """Plan what is due."""
    with run.phase("plan") as phase:
        rows = _due(run, policy, seen.paths)
        made = nightly_plan(
            policy,
            rows,
            datetime.now(UTC),
            policy_commit=seen.policy_commit,
            asking=classes_that_ask(),
        )
        phase.summary = _show_plan(run, made)
    return made


def plan_one(
    run: RotationRun,
    policy: RotationPolicy,
    seen: Surroundings,
    path: str,
    *,
    is_outside_windows: bool,
) -> RunPlan:
    """Plan one secret, be it due or not.

    Raises:
        NotFound: no rule names the path, or nothing is there. PolicyViolation: closed window.
    """
    with run.phase("plan") as phase:
        if path not in seen.paths:
            has_rule = policy.resolve(path) is not None
            cause = "there is no such secret" if has_rule else "no rule of the policy names it"
            fix = (
                "Write its first value there" if has_rule else "Add a rule to rotation/policy.yaml"
            )
            raise NotFound(f"Unable to rotate {path}: {cause}. {fix}.")
        made = one_plan(
            policy,
            _due(run, policy, [path]),
            datetime.now(UTC),
            policy_commit=seen.policy_commit,
            asking=classes_that_ask(),
            is_outside_windows=is_outside_windows,
        )
        phase.summary = _show_plan(run, made)
    return made


def plan_after_leak(
    run: RotationRun, policy: RotationPolicy, seen: Surroundings, leak: Leak
) -> RunPlan:
    """Find out what the leak reaches, and plan to rotate all of it.

    Raises:
        NotFound: the hint names nothing that is known.
    """
    with run.phase("plan") as phase:
        leak, facts, unknown = gather_access_facts(run.environment, policy, leak)
        run.unknown += unknown
        for text in unknown:
            get_run_logger().warning("The blast radius may be larger. %s", text)
        radius = blast_radius(leak, facts, policy)
        create_table_artifact(
            key=f"{run.target}-blast-radius",
            table=[hit.cells() for hit in radius.hits] or [{"path": "no secret, tokens only"}],
            description=f"What {leak.label} reaches, in the order of rotation",
        )
        publish_blast_radius(run.environment, radius, unknown)
        ruled = [hit.path for hit in radius.hits if hit.ruled is not None]
        made = leak_plan(
            policy,
            _due(run, policy, ruled),
            radius,
            datetime.now(UTC),
            policy_commit=seen.policy_commit,
            asking=classes_that_ask(),
        )
        phase.summary = _show_plan(run, made)
    return made


def _show_plan(run: RotationRun, made: RunPlan) -> str:
    run.plan = made
    create_table_artifact(
        key=f"{run.target}-plan",
        table=made.rows() or [{"wave": "none", "path": "nothing is due"}],
        description=f"Plan of {run.environment}: {made.summary}. Hash `{made.plan_hash}`",
    )
    return made.summary if made.is_empty else f"{made.summary}; plan {made.plan_hash[:12]}"


def wait_at_the_gate(run: RotationRun, made: RunPlan) -> None:
    """Let the plan pass by policy or by a person."""
    with run.phase("gate") as phase:
        decision = gate_decision(made, gate_policy(run.environment))
        run.approver = pass_decision(decision, made.plan_hash, made.summary)
        phase.summary = run.approver


def rotate_all(run: RotationRun, policy: RotationPolicy, made: RunPlan) -> None:
    """Revoke leaked tokens, then rotate wave by wave; one failure does not stop its wave."""
    with run.phase("rotate") as phase:
        if made.is_empty:
            phase.state, phase.summary = PhaseState.SKIPPED, "nothing is due"
            return
        run.board.begin(made)
        if made.accessors:
            count, problems = revoke_tokens(run.environment, made.accessors)
            run.problems += problems
            run.record("revoke leaked tokens", "revoked", {"tokens": count})
        for wave in made.waves:
            _run_wave(run, policy, made, wave)
        run.board.close()
        ends = Counter(secret.end for secret in run.board.secrets.values())
        phase.summary = ", ".join(f"{count} {end.value}" for end, count in sorted(ends.items()))


def _run_wave(run: RotationRun, policy: RotationPolicy, made: RunPlan, wave: Wave) -> None:
    reason = None if made.way is Way.LEAK else held_back(policy, wave, _failures(run))
    if reason:
        run.board.hold_back(wave.paths, reason)
        get_run_logger().warning("%s.", reason)
        return
    get_run_logger().info("Wave %s: %d secrets.", wave.environment, len(wave.paths))
    for batch in wave.batches:
        try:
            refuse_if_paused(run.environment)
        except PolicyViolation as paused:
            run.board.hold_back(wave.paths, str(paused))
            return
        _run_batch(run, made, batch)


def _failures(run: RotationRun) -> dict[str, int]:
    return Counter(each.environment for each in run.board.secrets.values() if each.end in BAD)


def _run_batch(run: RotationRun, made: RunPlan, batch: Sequence[Slot]) -> None:
    """Rotate the secrets of a batch at once, and wait until each has ended, well or not."""
    started: dict[str, PrefectFuture[Any]] = {}
    for slot in batch:
        path = slot.row.path
        commission = Commission(
            environment=run.environment,
            ruled=slot.row.ruled,
            run_id=run.run_id,
            asked_at=run.began_at,
            is_leak=made.way is Way.LEAK,
            approved_by=run.approver if path in made.approvals else "",
            starts_after_seconds=slot.starts_after_seconds,
        )
        started[path] = rotate_secret.submit(
            path,
            commission,
            run.board.step,
            partial(run.board.finish, path),
        )
    for path, future in started.items():
        future.wait()
        if not future.state.is_completed():
            run.board.fail(path, _error(future))
        run.progress.advance("rotate", run.board.fraction)


def _error(future: PrefectFuture[Any]) -> BaseException | None:
    found = future.result(raise_on_failure=False)
    return found if isinstance(found, BaseException) else None


def record_run(run: RotationRun, made: RunPlan) -> None:
    """Close the ledger's account of this run and publish its report.

    Raises:
        PermanentError: something did not end well; with all verdicts.
    """
    secrets = list(run.board.secrets.values())
    failure = failure_text(run.environment, secrets, made.by_hand)
    if run.problems:
        failure = "\n".join([failure, *run.problems]).strip()
    rotated = sum(secret.end is End.ROTATED for secret in secrets)
    with run.phase("record") as phase:
        if secrets:
            details = {"way": made.way.value, "plan": made.plan_hash, "approved_by": run.approver}
            counts = {"rotated": rotated, "of": len(secrets)}
            run.record("rotate secrets", "failed" if failure else "changed", {**details, **counts})
        phase.summary = f"{rotated} of {len(secrets)} rotated and proved dead"
    if failure:
        raise PermanentError(failure)
    if secrets:
        summary = f"{rotated} secrets rotated; each old value is proved dead."
        publish_rotation_report(run.report("succeeded", summary))
    else:
        publish_rotation_report(run.report("unchanged", "Nothing is due."))


def report_dry_run(run: RotationRun, made: RunPlan) -> None:
    """End a dry run: the same plan, and nothing touched."""
    run.skip("gate", "rotate", "record", reason="dry run")
    steps = ["Start it without dry_run to do it."] if not made.is_empty else []
    publish_rotation_report(run.report("planned", f"Dry run: {made.summary}.", steps))
