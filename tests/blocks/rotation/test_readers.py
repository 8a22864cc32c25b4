"""Who read a path before must have read it since, where the system itself tells nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blocks.rotation.readers import ObservedByReads
from domain.rotation.contract import SecretRef
from domain.rotation.judgement import judge
from domain.rotation.state import Outcome

HANDED_OUT = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
SECRET = SecretRef("apps/shop/web", "http-basic-user", "test", {"quiet_seconds": "600"})


def read(role: str, minutes: float, path: str = "kv/data/apps/shop/web", **changes: Any) -> str:
    """One answered read, `minutes` after the value was handed out."""
    time = HANDED_OUT + timedelta(minutes=minutes)
    entry = {
        "type": "response",
        "time": time.isoformat().replace("+00:00", "Z"),
        "auth": {"display_name": "approle", "metadata": {"role_name": role}},
        "request": {"operation": "read", "path": path, "remote_address": "10.0.0.1"},
    }
    return json.dumps(entry | changes)


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Judge one look at a log of these lines."""

    def look(*lines: str, has_log: bool = True) -> Outcome:
        log = tmp_path / "audit.log"
        log.write_text("".join(f"{line}\n" for line in lines))
        server = SimpleNamespace(audit_file=str(log) if has_log else "", kv_mount="kv")
        own = {"data": {"meta": {"role_name": "rotator"}}}
        session: Any = SimpleNamespace(server=server, call=lambda *_: own)
        inner: Any = SimpleNamespace(
            kind="http-basic-user", has_overlap=True, observe=lambda *_: ()
        )
        adapter = ObservedByReads(inner, session)
        monkeypatch.setattr(adapter._versions, "written_at", lambda path: HANDED_OUT)
        return judge(adapter.observe(SECRET, {}, None)).outcome

    return look


def test_a_reader_that_has_not_read_since_is_waited_for(outcome: Callable[..., Outcome]) -> None:
    assert outcome(read("web", -5)) is Outcome.NOT_YET
    assert outcome(read("web", -5), read("web", 1)) is Outcome.OK


def test_each_reader_counts_by_itself(outcome: Callable[..., Outcome]) -> None:
    lines = (read("web", -5), read("worker", -4), read("web", 1))
    assert outcome(*lines) is Outcome.NOT_YET
    assert outcome(*lines, read("worker", 2)) is Outcome.OK


def test_who_did_not_read_for_long_is_no_consumer(outcome: Callable[..., Outcome]) -> None:
    assert outcome(read("gone", -11)) is Outcome.OK


def test_the_rotating_worker_other_paths_and_refused_reads_do_not_count(
    outcome: Callable[..., Outcome],
) -> None:
    assert outcome(read("rotator", -1)) is Outcome.OK
    assert outcome(read("web", -1, path="kv/data/apps/shop/other")) is Outcome.OK
    assert outcome(read("web", -1, error="permission denied")) is Outcome.OK


def test_a_refused_read_since_is_not_a_new_value_in_hand(outcome: Callable[..., Outcome]) -> None:
    refused = read("web", 1, error="permission denied")
    assert outcome(read("web", -1), refused) is Outcome.NOT_YET


def test_without_the_log_readers_are_unknown_and_unknown_is_not_success(
    outcome: Callable[..., Outcome],
) -> None:
    assert outcome(has_log=False) is Outcome.NOT_YET


def asked(role: str, minutes: float, answered: float, number: str) -> list[str]:
    """A read whose question and answer are both in the log."""
    request = {
        "operation": "read",
        "path": "kv/data/apps/shop/web",
        "remote_address": "10.0.0.1",
        "id": number,
    }
    return [
        read(role, minutes, type="request", request=request),
        read(role, answered, request=request),
    ]


def test_a_read_that_was_asked_for_before_the_value_was_there_may_have_got_the_old_one(
    outcome: Callable[..., Outcome],
) -> None:
    assert outcome(*asked("web", -0.1, 0.1, "1")) is Outcome.NOT_YET
    assert outcome(*asked("web", -0.1, 0.1, "1"), *asked("web", 0.2, 0.3, "2")) is Outcome.OK


def test_a_read_while_the_value_is_being_written_may_have_got_the_old_one(
    outcome: Callable[..., Outcome],
) -> None:
    write = {"operation": "update", "path": "kv/data/apps/shop/web", "id": "9"}
    written = read("rotator", 0.5, request=write)
    assert outcome(*asked("web", 0.2, 0.4, "1"), written) is Outcome.NOT_YET
    assert outcome(written, *asked("web", 0.6, 0.7, "1")) is Outcome.OK
