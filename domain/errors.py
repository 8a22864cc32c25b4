"""The error family: what went wrong, by what may be done about it.

Promises that every failure of a vendor's system reaches flows as one of these types, with a
message of the form `Unable to <act> <thing>: <cause>. <what to do>`. Refuses to carry bodies,
headers or values: a message holds names, paths and counts only.
"""

from __future__ import annotations

from collections.abc import Sequence


class LifecycleError(Exception):
    """Any failure that the product itself explains."""


class TemporaryError(LifecycleError):
    """May pass by itself: a task that sees it tries again, with jitter."""


class PermanentError(LifecycleError):
    """Will not pass by itself: trying again is a waste, a person or another input is needed."""


class Unreachable(TemporaryError):
    """The system did not answer, or answered that it cannot serve now."""


class NotFound(PermanentError):
    """The thing does not exist. Deleting what is absent succeeds, so callers often expect it."""


class Conflict(PermanentError):
    """The thing exists in another state than the act requires, or another run holds it."""


class QuotaExceeded(PermanentError):
    """A limit of space, memory or count would be passed."""


class PolicyViolation(PermanentError):
    """A rule forbids the act."""


class Unauthorized(PermanentError):
    """The credential is missing, wrong or lacks a right."""


class InvalidSpec(PermanentError):
    """The input is wrong; carries every problem that was found, not the first only."""

    def __init__(self, thing: str, problems: Sequence[str]) -> None:
        """Collect `problems`, each naming the field, the value and the fix, about `thing`."""
        self.thing = thing
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        super().__init__(f"Unable to use {thing}: {count} {noun} found.\n{lines}")
