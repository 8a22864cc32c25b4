from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blocks.ledger_file import LedgerFile
from domain.errors import NotFound, PermanentError
from domain.ledger import Step


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def sign(key: Ed25519PrivateKey) -> Callable[[bytes], str]:
    return lambda payload: "vault:v1:" + base64.b64encode(key.sign(payload)).decode()


@pytest.fixture
def keys(key: Ed25519PrivateKey) -> dict[int, str]:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {1: base64.b64encode(raw).decode()}


@pytest.fixture
def ledger(tmp_path: Path, sign: Callable[[bytes], str], keys: dict[int, str]) -> LedgerFile:
    made = LedgerFile(tmp_path / "demo.jsonl")
    for number in range(3):
        assert made.append(_step(number), sign, keys) == number + 1
    return made


def _step(number: int) -> Step:
    return Step("run-1", "lab", "demo", f"step {number}", "changed", {"machines": number})


def test_a_ledger_that_nobody_touched_is_right(ledger: LedgerFile) -> None:
    assert ledger.verify() == (3, [])


def test_the_same_step_of_the_same_run_is_written_once(
    ledger: LedgerFile, sign: Callable[[bytes], str], keys: dict[int, str]
) -> None:
    assert ledger.append(_step(1), sign, keys) == 2
    assert ledger.verify() == (3, [])


def test_a_step_that_another_line_names_is_written_all_the_same(
    ledger: LedgerFile, sign: Callable[[bytes], str], keys: dict[int, str]
) -> None:
    naming = Step("run-1", "lab", "demo", "look", "ok", {"about": _step(7).step_id})
    assert ledger.append(naming, sign, keys) == 4
    assert ledger.append(_step(7), sign, keys) == 5
    assert ledger.append(_step(7), sign, keys) == 5
    assert ledger.verify() == (5, [])


def _change(ledger: LedgerFile, change: Callable[[list[str]], list[str]]) -> list[str]:
    lines = ledger.path.read_text().splitlines()
    ledger.path.write_text("\n".join(change(lines)) + "\n")
    return [finding.text for finding in ledger.verify()[1]]


def test_an_altered_line_is_found(ledger: LedgerFile) -> None:
    found = _change(
        ledger, lambda lines: [line.replace('"machines": 1', '"machines": 7') for line in lines]
    )
    assert found == ["was altered: its hash does not match its content"]


def test_an_altered_line_with_a_right_hash_is_found_by_its_signature(ledger: LedgerFile) -> None:
    from domain.ledger import entry_hash

    def forge(lines: list[str]) -> list[str]:
        entry = json.loads(lines[2])
        entry["outcome"] = "nothing"
        entry["hash"] = entry_hash(entry)
        return [*lines[:2], json.dumps(entry)]

    assert _change(ledger, forge) == ["has a signature that key version 1 did not make"]


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_dropped_line_is_found(ledger: LedgerFile, dropped: int) -> None:
    found = _change(ledger, lambda lines: [li for i, li in enumerate(lines) if i != dropped])
    assert found
    assert "lines are missing or moved" in found[0]


def test_swapped_lines_are_found(ledger: LedgerFile) -> None:
    assert _change(ledger, lambda lines: [lines[1], lines[0], lines[2]])


def test_a_line_that_a_kill_cut_short_is_set_aside_and_the_ledger_goes_on(
    ledger: LedgerFile, sign: Callable[[bytes], str], keys: dict[int, str]
) -> None:
    whole = ledger.path.read_text()
    ledger.path.write_text(whole + '{"sequence": 4, "ti')
    assert ledger.append(_step(9), sign, keys) == 4
    assert ledger.verify() == (4, [])
    torn = list(ledger.path.parent.glob("*.torn-*"))
    assert [path.read_text() for path in torn] == ['{"sequence": 4, "ti']


def test_writers_at_once_share_no_sequence_number(
    tmp_path: Path, sign: Callable[[bytes], str], keys: dict[int, str]
) -> None:
    path = tmp_path / "busy.jsonl"
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda n: LedgerFile(path).append(_step(n), sign, keys), range(40)))
    assert sorted(numbers) == list(range(1, 41))
    assert LedgerFile(path).verify() == (40, [])


def test_a_missing_ledger_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no ledger"):
        LedgerFile(tmp_path / "none.jsonl").verify()


def test_an_unusable_key_file_is_told(ledger: LedgerFile) -> None:
    ledger.keys_path.write_text('{"1": "short"}')
    with pytest.raises(PermanentError, match="Unable to read the public keys"):
        ledger.verify()
