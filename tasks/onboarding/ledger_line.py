"""A signed line for one act on an application, left by the task that did it."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.runtime import flow_run

from blocks.documents import document
from blocks.ledger_file import LedgerDirectory
from blocks.openbao import openbao
from domain.ledger import Step


def target_of(app: str) -> str:
    """Return the name of an application's ledger."""
    return f"app-{app}"


def record_line(
    environment: str, app: str, act: str, outcome: str, details: Mapping[str, str]
) -> None:
    """Append the line; the same line of the same run again is not written twice."""
    line = Step(str(flow_run.id), environment, target_of(app), act, outcome, dict(details))
    directory = document(LedgerDirectory, environment)
    with openbao(environment).session() as bao:
        directory.ledger(line.target).append(line, bao.sign, bao.ledger_public_keys())
