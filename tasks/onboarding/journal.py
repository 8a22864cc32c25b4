"""This run's hold on one application's journal, over logins that may end and answers that get lost.

Promises that a write whose answer was lost is told from one that another run was faster with, and
that a journal which cannot be written for long stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from blocks.openbao import OpenBaoSession, openbao
from blocks.saga_journal import SagaJournals
from domain.errors import Conflict, TemporaryError, Unauthorized
from domain.onboarding.saga import Journal

DELAYS_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
Answer = TypeVar("Answer")


class HeldJournal:
    """The journal of one application, from its reading on."""

    def __init__(self, app: str, open_journals: Callable[[], SagaJournals]) -> None:
        """Read the journal; `open_journals` logs in and is called again when a login has ended."""
        self._open = open_journals
        self._journals: SagaJournals | None = None
        entry = self._trying(lambda journals: journals.load(app))
        self.journal, self._version = entry.journal, entry.version
        self.is_new = entry.is_new

    def save(self, journal: Journal) -> None:
        """Write over what this run read or wrote last.

        Raises:
            Conflict: another run wrote meanwhile.
        """
        self._version = self._trying(lambda journals: self._written(journals, journal))
        self.journal, self.is_new = journal, False

    def forget(self) -> None:
        """Remove the journal: nothing of the application is left."""

        def gone(journals: SagaJournals) -> None:
            if not journals.load(self.journal.name).is_new:
                journals.forget(self.journal, self._version)

        self._trying(gone)
        self.is_new = True

    def _written(self, journals: SagaJournals, journal: Journal) -> int:
        try:
            return journals.save(journal, self._version)
        except Conflict:
            found = journals.load(journal.name)
            if found.version == self._version + 1 and found.journal == journal:
                return found.version  # ours: its answer was lost
            raise Conflict(
                f"Unable to write the journal of {journal.name}: another run has taken over. "
                "This run stops here; look at the other one."
            ) from None

    def _trying(self, call: Callable[[SagaJournals], Answer]) -> Answer:
        for delay in (*DELAYS_SECONDS, None):
            is_fresh = self._journals is None
            try:
                journals = self._journals = self._journals or self._open()
                return call(journals)
            except (TemporaryError, Unauthorized) as error:
                self._journals = None
                if delay is None or (is_fresh and isinstance(error, Unauthorized)):
                    raise
                time.sleep(0 if isinstance(error, Unauthorized) else delay)
        raise AssertionError("the last attempt returns or raises")


@contextmanager
def held_journal(environment: str, app: str) -> Iterator[HeldJournal]:
    """Hold an application's journal; the login that it was last used with is revoked at the end."""
    sessions: list[AbstractContextManager[OpenBaoSession]] = []

    def log_in() -> SagaJournals:
        while sessions:
            sessions.pop().__exit__(None, None, None)
        opened = openbao(environment).session()
        session = opened.__enter__()
        sessions.append(opened)
        return SagaJournals(session, environment)

    try:
        yield HeldJournal(app, log_in)
    finally:
        while sessions:
            sessions.pop().__exit__(None, None, None)


def all_journals(environment: str) -> list[Journal]:
    """Return the journal of every application of an environment."""
    with openbao(environment).session() as bao:
        return SagaJournals(bao, environment).all()
