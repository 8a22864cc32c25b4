"""One thing that a read-only look found out, and what to do about it.

Promises that a finding names its subject, says what is so in one sentence and, when something is
not right, carries the act that mends it. Refuses findings without a level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """The run may go on, and a person should know."""
    ERROR = "error"
    """The run cannot succeed, or would do harm."""


@dataclass(frozen=True)
class Finding:
    """One line of the preflight's table."""

    level: Level
    subject: str
    text: str
    fix: str = ""


def ok(subject: str, text: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str, fix: str) -> Finding:
    """Return a finding that a person should know."""
    return Finding(Level.WARNING, subject, text, fix)


def error(subject: str, text: str, fix: str) -> Finding:
    """Return a finding that stops the run."""
    return Finding(Level.ERROR, subject, text, fix)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Return only those that stop the run."""
    return [finding for finding in findings if finding.level is Level.ERROR]


def sentence(finding: Finding) -> str:
    """Return a finding in one line, as a problem in a message."""
    end = f". {finding.fix}" if finding.fix else ""
    return f"{finding.subject}: {finding.text}{end}"
