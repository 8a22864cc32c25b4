"""The applications that a real OpenBao remembers, read one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from blocks.saga_journal import SagaJournals
from domain.onboarding.saga import Journal
from tasks.onboarding import remembered
from tasks.onboarding.remembered import remembered_applications

Open = Callable[[], SagaJournals]


def test_a_journal_of_another_version_hides_no_other(
    open_journals: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals = open_journals()
    saved = {name: journals.save(Journal(name=name), 0) for name in ("odd", "plain", "gone")}
    journals._secrets.write(journals.path("odd"), {"journal": '{"colour": "blue"}'}, saved["odd"])
    journals.forget(Journal(name="gone"), saved["gone"])
    server = SimpleNamespace(session=lambda: nullcontext(journals._session))
    monkeypatch.setattr(remembered, "openbao", lambda _: server)
    found = remembered_applications.fn("trial")
    assert "plain" in [journal.name for journal in found.journals]
    assert "not as this version writes them" in found.unreadable["odd"]
    assert "gone" not in {*found.unreadable, *(journal.name for journal in found.journals)}
