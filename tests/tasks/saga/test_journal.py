"""The journal on a real OpenBao: check-and-set, answers that get lost, logins that end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blocks.saga_journal import SagaJournals
from domain.errors import Conflict, Unauthorized, Unreachable
from domain.onboarding.saga import Journal
from tasks.onboarding import journal as held_module
from tasks.onboarding.journal import HeldJournal

Open = Callable[[], SagaJournals]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_module, "DELAYS_SECONDS", (0.0, 0.0))


def _journal(name: str, generation: int) -> Journal:
    return Journal(name=name, generation=generation)


def test_what_was_saved_is_listed_and_read_back(open_journals: Open) -> None:
    held = HeldJournal("listed", open_journals)
    assert held.is_new
    held.save(_journal("listed", 1))
    assert "listed" in open_journals().names()
    assert _journal("listed", 1) in open_journals().all()
    held.forget()
    assert "listed" not in open_journals().names()
    assert HeldJournal("listed", open_journals).is_new


def test_the_slower_of_two_writers_is_told_and_changes_nothing(open_journals: Open) -> None:
    first, second = (HeldJournal("raced", open_journals) for _ in range(2))
    first.save(_journal("raced", 1))
    with pytest.raises(Conflict, match="another run has taken over"):
        second.save(_journal("raced", 2))
    with pytest.raises(Conflict):
        second.forget()
    assert open_journals().load("raced").journal.generation == 1
    first.forget()


def test_an_application_can_come_back_after_its_journal_was_forgotten(open_journals: Open) -> None:
    for generation in (1, 2):
        held = HeldJournal("returns", open_journals)
        assert held.is_new
        held.save(_journal("returns", generation))
        held.forget()


class Losing:
    """Journals whose first write takes effect and whose answer is lost."""

    def __init__(self, inner: SagaJournals, lost: list[str]) -> None:
        self._inner, self._lost = inner, lost

    def load(self, app: str) -> Any:
        return self._inner.load(app)

    def save(self, journal: Journal, version: int) -> int:
        made = self._inner.save(journal, version)
        if not self._lost:
            self._lost.append("answer")
            raise Unreachable("Unable to write: no answer. Look.")
        return made


def test_a_write_whose_answer_was_lost_counts_once(open_journals: Open) -> None:
    lost: list[str] = []
    held = HeldJournal("lossy", lambda: Losing(open_journals(), lost))  # type: ignore[arg-type, return-value]
    held.save(_journal("lossy", 1))
    held.save(_journal("lossy", 2))
    assert lost == ["answer"]
    assert open_journals().load("lossy").journal.generation == 2
    HeldJournal("lossy", open_journals).forget()


def test_a_login_that_ended_is_renewed_and_one_that_is_refused_is_told(open_journals: Open) -> None:
    logins: list[str] = []

    class Ended:
        def load(self, app: str) -> Any:
            raise Unauthorized("Unable to read: permission denied. Renew the login.")

    def log_in() -> Any:
        logins.append("login")
        return open_journals() if len(logins) != 2 else Ended()

    held = HeldJournal("renewed", log_in)
    held._journals = Ended()  # type: ignore[assignment]
    with pytest.raises(Unauthorized):
        held.forget()
    assert len(logins) == 2
    held.save(_journal("renewed", 1))
    held.forget()
