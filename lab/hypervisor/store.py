"""State of the simulated cluster, in one SQLite file.

Why: the lab survives restarts and SIGKILL as a real cluster does: what was answered with success
is still there afterwards. Documents are JSON, held in memory and written through, so reads are
cheap and every write is one small transaction.

Promises: after `put` returns, the document survives the death of the process.
Refuses: no queries; the models keep their own order in memory.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class Store:
    """Documents by kind and key, and the lines of task logs."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS documents (kind TEXT, key TEXT, body TEXT NOT NULL,"
            " PRIMARY KEY (kind, key)) WITHOUT ROWID"
        )
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS task_lines (upid TEXT, number INTEGER, line TEXT NOT NULL,"
            " PRIMARY KEY (upid, number)) WITHOUT ROWID"
        )

    def close(self) -> None:
        """Close the file; nothing is pending, every write was its own transaction."""
        self._database.close()

    def load(self, kind: str) -> dict[str, Document]:
        """All documents of a kind, by key."""
        rows = self._database.execute("SELECT key, body FROM documents WHERE kind = ?", (kind,))
        return {key: json.loads(body) for key, body in rows}

    def put(self, kind: str, key: str, document: Document) -> None:
        """Write one document."""
        self._database.execute(
            "INSERT INTO documents VALUES (?, ?, ?)"
            " ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body",
            (kind, key, json.dumps(document)),
        )

    def delete(self, kind: str, key: str) -> None:
        """Remove one document; an absent one is fine."""
        self._database.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))

    def append_line(self, upid: str, line: str) -> None:
        """Add a line to a task's log."""
        self._database.execute(
            "INSERT INTO task_lines SELECT ?, COALESCE(MAX(number), 0) + 1, ?"
            " FROM task_lines WHERE upid = ?",
            (upid, line, upid),
        )

    def lines(self, upid: str, start: int, limit: int) -> tuple[int, list[tuple[int, str]]]:
        """How many lines a log has, and `limit` of them after the first `start` (0 = all)."""
        (total,) = self._database.execute(
            "SELECT COUNT(*) FROM task_lines WHERE upid = ?", (upid,)
        ).fetchone()
        rows = self._database.execute(
            "SELECT number, line FROM task_lines WHERE upid = ? AND number > ?"
            " ORDER BY number LIMIT ?",
            (upid, start, limit or -1),
        )
        return int(total), [(int(number), str(line)) for number, line in rows]

    def delete_lines(self, upid: str) -> None:
        """Forget a task's log."""
        self._database.execute("DELETE FROM task_lines WHERE upid = ?", (upid,))
