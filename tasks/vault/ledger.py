"""Writing the ledger: one signed line per step that changed something."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task
from prefect.runtime import flow_run

from blocks.documents import document
from blocks.ledger_file import LedgerDirectory
from blocks.openbao import openbao
from domain.ledger import Step
from tasks.retry_rules import TEMPORARY

Detail = str | int | float | bool


@task(name="record in the ledger", tags=["system:openbao"], **TEMPORARY)
def record_step(
    environment: str, target: str, step: str, outcome: str, details: Mapping[str, Detail]
) -> int:
    """Append a signed line about `step` on `target`; returns its sequence number."""
    entry = Step(
        run_id=str(flow_run.id),
        environment=environment,
        target=target,
        step=step,
        outcome=outcome,
        details=dict(details),
    )
    directory = document(LedgerDirectory, environment)
    with openbao(environment).session() as bao:
        return directory.ledger(target).append(entry, bao.sign, bao.ledger_public_keys())
