"""Tasks that rotate: one secret each, in its own Prefect task, so that each is seen by itself.

Promises that a task takes paths and gives texts and times, never a value; that a proof that an old
value is dead stands in the signed ledger before the engine goes on; and that one secret is rotated
by one run at a time. Refuses to retry: the engine counts its own attempts, and a task that begins
anew would count them anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.documents import document
from blocks.ledger_file import LedgerDirectory
from blocks.openbao import OpenBaoSession, openbao
from blocks.rotation.access import OpenBaoAccess
from blocks.rotation.registry import adapter_for
from blocks.rotation.site import RotationSite
from blocks.rotation.store import RotationStore
from domain.errors import LifecycleError, PermanentError
from domain.ledger import Step as LedgerStep
from domain.rotation.machine import Outcome, Request
from domain.rotation.policy import Ruled
from domain.rotation.state import RotationState, Step
from domain.rotation.verdict import verdict
from tasks.retry_rules import TEMPORARY
from tasks.rotation.engine import Job, OnStep, StepReport, rotate_one
from tasks.runs.exclusive import exclusive

LEDGER = "rotation"
"""Target of the ledger's lines."""

OnEnd = Callable[[RotationState], None]


@dataclass(frozen=True)
class Commission:
    """One secret to rotate, for one run."""

    environment: str
    """Of the site: it names the blocks and the records."""
    ruled: Ruled
    run_id: str
    asked_at: datetime
    is_leak: bool = False
    approved_by: str = ""
    starts_after_seconds: float = 0.0
    may_start: Callable[[], None] = field(default=lambda: None, compare=False)
    """Raises when the run may not touch anything any more."""

    @property
    def path(self) -> str:
        return self.ruled.secret.path


@task(
    name="rotate a secret",
    task_run_name="rotate {path}",
    tags=["system:openbao"],
    retries=0,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def rotate_secret(path: str, commission: Commission, on_step: OnStep, on_end: OnEnd) -> None:
    """Rotate the secret at `path`, or finish what an earlier run has begun.

    Raises:
        LifecycleError: with the verdict, when it did not end with a new value in use and the old
            one proved dead.
    """
    if path != commission.path:
        raise PermanentError(f"Unable to rotate {path}: the commission is for {commission.path}.")
    if commission.starts_after_seconds:
        time.sleep(commission.starts_after_seconds)
    with exclusive(f"secret:{commission.ruled.secret.secret_id}"):
        commission.may_start()
        with openbao(commission.environment).session() as bao:
            state = _rotated(commission, bao, on_step)
    on_end(state)
    found = verdict(state)
    if not found.is_success:
        raise PermanentError(f"Unable to rotate {path}: {found.text}")


def _rotated(commission: Commission, bao: OpenBaoSession, on_step: OnStep) -> RotationState:
    secret = commission.ruled.secret
    approvals = {secret.secret_id: commission.approved_by} if commission.approved_by else {}
    site = RotationSite(commission.environment, bao, approvals)
    job = Job(
        secret=secret,
        request=Request(commission.run_id, commission.asked_at, commission.is_leak),
        limits=commission.ruled.policy.limits(),
        run_id=commission.run_id,
    )

    def noted(report: StepReport) -> None:
        # Told before the engine records the step: a proof without its line is made again.
        if report.step is Step.PROVE_DEAD and report.outcome is Outcome.OK:
            _record(commission, bao, "prove dead", "dead", _proof_details(report))
        on_step(report)

    store = RotationStore(bao, commission.environment)
    state = rotate_one(adapter_for(site, secret), store, job, on_step=noted)
    _record(commission, bao, "rotate", state.step.value, _end_details(commission, state))
    return state


def _record(
    commission: Commission, bao: OpenBaoSession, step: str, outcome: str, details: Mapping[str, str]
) -> None:
    """Leave a signed line by the session that is open; the same line again is not written."""
    line = LedgerStep(
        run_id=commission.run_id,
        environment=commission.environment,
        target=commission.path,
        step=step,
        outcome=outcome,
        details=details,
    )
    directory = document(LedgerDirectory, commission.environment)
    directory.ledger(LEDGER).append(line, bao.sign, bao.ledger_public_keys())


def _proof_details(report: StepReport) -> dict[str, str]:
    old = report.old_generation
    found = {"class": report.secret.kind, "generation": str(old)}
    if old is not None and old in report.fingerprints:
        found["fingerprint"] = report.fingerprints[old]
    if report.proof:
        found |= {"method": report.proof.method, "answer": report.proof.answer}
    return found


def _end_details(commission: Commission, state: RotationState) -> dict[str, str]:
    found = {
        "class": commission.ruled.secret.kind,
        "generation": str(state.generation),
        "old_generation": "" if state.old_generation is None else str(state.old_generation),
        "order": state.order.value,
        "approved_by": commission.approved_by,
    }
    if state.generation in state.fingerprints:
        found["fingerprint"] = state.fingerprints[state.generation]
    return {key: text for key, text in found.items() if text}


@task(name="revoke leaked tokens", tags=["system:openbao"], **TEMPORARY)
def revoke_tokens(environment: str, accessors: Sequence[str]) -> tuple[int, list[str]]:
    """Revoke tokens by their accessors; returns how many lived, and what could not be done."""
    count, problems = 0, []
    with openbao(environment).session() as bao:
        access = OpenBaoAccess(bao)
        for accessor in accessors:
            try:
                count += access.revoke(accessor)
            except LifecycleError as error:
                problems.append(str(error))
    return count, problems
