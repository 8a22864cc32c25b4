"""What is wrong with an `app.yaml`: every problem at once, each with its place and its fix.

Exists because a team reads the answer on a commit, minutes after it wrote the file: one comment
must be enough. Promises that a problem names the field, the value where that is no secret, the
fix and, where the document is a file, the line. Refuses to let what a file says act in a comment:
no mention, no markup and no quick action comes out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from domain.errors import InvalidSpec

Location = tuple[str | int, ...]

_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~#!$])")
SHOWN_AT_MOST = 40
"""Problems in one comment; a file that is no `app.yaml` at all would fill pages."""


def dotted(location: Sequence[str | int]) -> str:
    """Return a location as people write it: `environments.staging.hostnames[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the document"


class AppProblem(str):
    """One thing that is wrong, at a place in the document; it reads `field: value text. Fix`.

    A sentence with properties, so that it goes wherever an `InvalidSpec` tells its problems.
    """

    location: Location
    text: str
    line: int | None
    __slots__ = ("line", "location", "text")

    def __new__(
        cls, location: Sequence[str | int], text: str, line: int | None = None
    ) -> AppProblem:
        """Return the problem `text` of the field at `location`, in a line of the file."""
        place = f"line {line}: " if line is not None else ""
        problem = super().__new__(cls, f"{place}{dotted(location)}: {text}")
        problem.location, problem.text, problem.line = tuple(location), text, line
        return problem

    def __getnewargs__(self) -> tuple[Location, str, int | None]:  # type: ignore[override]
        """Let a copy be made: an error may leave its process."""
        return self.location, self.text, self.line

    @property
    def field(self) -> str:
        """The field as people write it."""
        return dotted(self.location)

    def at_line(self, line: int | None) -> AppProblem:
        """Return the same problem with its line."""
        return AppProblem(self.location, self.text, line)


class InvalidAppFile(InvalidSpec):
    """An `app.yaml` that cannot be used; `problems` are `AppProblem`s in the file's order."""

    problems: tuple[AppProblem, ...]

    def __init__(self, thing: str, problems: Iterable[AppProblem]) -> None:
        """Sort the problems as a reader meets them."""
        ordered = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__(thing, ordered)
        self.problems = tuple(ordered)

    def __reduce__(self) -> tuple[type[InvalidAppFile], tuple[str, tuple[AppProblem, ...]]]:
        """Let a copy be made: a flow's failure is kept by Prefect."""
        return type(self), (self.thing, self.problems)


def inert(text: str) -> str:
    """Return text of strangers for use in Markdown: it formats, links and notifies nothing."""
    one_line = " ".join(text.split())
    return _MARKUP.sub(r"\\\1", one_line).replace("@", "@\N{ZERO WIDTH SPACE}")


def comment(error: InvalidAppFile, file_url: str = "") -> str:
    """Return one Markdown comment with every problem.

    `file_url` is the file's page at the commit; lines then link to it.
    """
    count = len(error.problems)
    noun = "problem" if count == 1 else "problems"
    rows = [_row(problem, file_url) for problem in error.problems[:SHOWN_AT_MOST]]
    lines = [
        f"**{inert(error.thing)} cannot be used: {count} {noun}.** Nothing was changed.",
        "",
        "| Line | Field | Problem |",
        "| ---: | --- | --- |",
        *rows,
    ]
    if count > SHOWN_AT_MOST:
        lines += ["", f"{count - SHOWN_AT_MOST} more are not shown."]
    lines += ["", "Correct them in one commit; the file is read again when it is pushed."]
    return "\n".join(lines) + "\n"


def _row(problem: AppProblem, file_url: str) -> str:
    line = "" if problem.line is None else str(problem.line)
    if line and file_url:
        line = f"[{line}]({file_url}#L{line})"
    return f"| {line} | {inert(problem.field)} | {inert(problem.text)}. |"
