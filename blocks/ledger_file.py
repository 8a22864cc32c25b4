"""The ledger's file: appended under a lock, flushed to disk, checked offline.

Promises that a line that was reported as written survives a power cut, that two writers never
share a sequence number, and that a line torn by a kill is set aside and told, not built upon.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from prefect.blocks.core import Block
from pydantic import Field

from domain.errors import NotFound, PermanentError
from domain.ledger import GENESIS, Finding, Step, entry_hash, unsigned_entry, verify

Sign = Callable[[bytes], str]


class LedgerDirectory(Block):
    """Where the ledgers of an environment are kept, one file a target."""

    _block_type_name = "Infraflows ledger"
    _block_type_slug = "infraflows-ledger"
    _description = "Folder of the signed ledgers, on storage that survives the worker."

    directory: str = Field(description="Folder of the ledgers, on the worker.")

    def ledger(self, target: str) -> LedgerFile:
        """Return the ledger of a target, as a cluster's name."""
        return LedgerFile(Path(self.directory) / f"{target}.jsonl")


class LedgerFile:
    """One append-only file of signed lines, and beside it the public keys that made them."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is created before the first line."""
        self.path = path

    @property
    def keys_path(self) -> Path:
        """File with the public keys by version, for who wants to check offline."""
        return self.path.with_suffix(".keys.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _set_torn_line_aside(self) -> None:
        """Move what follows the last newline to a file of its own: a kill cut it short."""
        if not self.path.exists() or _ends_whole(self.path):
            return
        content = self.path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        aside = self.path.with_suffix(f".torn-{len(whole)}")
        aside.write_bytes(torn)
        with self.path.open("rb+") as file:
            file.truncate(len(whole) + 1 if whole else 0)
            os.fsync(file.fileno())

    def append(self, step: Step, sign: Sign, keys: Mapping[int, str]) -> int:
        """Write one step; the same step of the same run again is not written twice.

        Returns the line's sequence number, from 1.
        """
        with self._locked():
            self._set_torn_line_aside()
            content = self.path.read_bytes() if self.path.exists() else b""
            known = _line_of(step.step_id, content)
            if known is not None:
                return known
            count, last = content.count(b"\n"), content[:-1].rpartition(b"\n")[2]
            previous = json.loads(last)["hash"] if last else GENESIS
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            new = unsigned_entry(step, count + 1, previous, time)
            new["hash"] = entry_hash(new)
            new["signature"] = sign(str(new["hash"]).encode())
            self._write_keys(keys)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(new, sort_keys=True, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            return count + 1

    def _write_keys(self, keys: Mapping[int, str]) -> None:
        text = json.dumps({str(version): key for version, key in keys.items()}, indent=2) + "\n"
        if self.keys_path.exists() and self.keys_path.read_text() == text:
            return
        new = self.keys_path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.keys_path)

    def verify(self, keys_path: Path | None = None) -> tuple[int, list[Finding]]:
        """Check every line with the public keys; needs no network.

        Raises:
            NotFound: there is no ledger or no key file. PermanentError: the key file is unusable.
        """
        keys_file = keys_path or self.keys_path
        for path, what in ((self.path, "ledger"), (keys_file, "file of public keys")):
            if not path.exists():
                raise NotFound(
                    f"Unable to verify the ledger {self.path}: there is no {what} {path}. "
                    "Name an existing file."
                )
        keys = _public_keys(keys_file)

        def is_signed(version: int, signature: bytes, message: bytes) -> bool:
            key = keys.get(version)
            if key is None:
                return False
            try:
                key.verify(signature, message)
            except InvalidSignature:
                return False
            return True

        return verify(self.path.read_text(encoding="utf-8").splitlines(), is_signed)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        return file.read() in (b"", b"\n")


def _line_of(step_id: str, content: bytes) -> int | None:
    """Return the sequence number of a step; of a long ledger only lines that name it are parsed."""
    sought, end = step_id.encode(), len(content)
    while (found := content.rfind(sought, 0, end)) >= 0:
        begin = content.rfind(b"\n", 0, found) + 1
        entry = json.loads(content[begin : content.find(b"\n", found)])
        if entry["id"] == step_id:
            return int(entry["sequence"])
        end = begin
    return None


def _public_keys(path: Path) -> dict[int, Ed25519PublicKey]:
    try:
        stored = json.loads(path.read_text())
        return {
            int(version): Ed25519PublicKey.from_public_bytes(base64.b64decode(key))
            for version, key in stored.items()
        }
    except (ValueError, AttributeError) as error:
        raise PermanentError(
            f"Unable to read the public keys {path}: {error}. Export them from OpenBao again."
        ) from error
