"""The applications that are remembered, each journal read on its own.

Exists because a nightly run must not stop at one journal that another version wrote. Promises every
application that has a journal: read, or with the reason why it cannot be.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prefect import task

from blocks.openbao import openbao
from blocks.saga_journal import SagaJournals
from domain.errors import PermanentError
from domain.onboarding.saga import Journal
from tasks.retry_rules import TEMPORARY


@dataclass
class Remembered:
    """What the journals of an environment say."""

    journals: list[Journal] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """By application: why its journal cannot be read."""


@task(name="read the journals", tags=["system:openbao"], **TEMPORARY)
def remembered_applications(environment: str) -> Remembered:
    """Return the journals of an environment, and what is wrong with those that cannot be read."""
    found = Remembered()
    with openbao(environment).session() as bao:
        journals = SagaJournals(bao, environment)
        for name in journals.names():
            try:
                entry = journals.load(name)
            except PermanentError as error:
                found.unreadable[name] = str(error)
            else:
                if not entry.is_new:
                    found.journals.append(entry.journal)
    return found
