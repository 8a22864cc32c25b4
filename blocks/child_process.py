"""Running a program to its end, so that it ends when we do.

Promises that the program is killed when the thread that started it is gone, by any signal, that it
sees only the environment that it is given, and that it has no terminal to ask at. Refuses to run
without an end: a time limit is required.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from domain.errors import PermanentError, Unreachable


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    exit_code: int
    output: bytes
    complaint: str
    """Its standard error."""

    @property
    def text(self) -> str:
        """Its standard output as text."""
        return self.output.decode(errors="replace")


def run_child(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    timeout_seconds: float,
    stdin: bytes = b"",
) -> Ended:
    """Run a program and return how it ended, whatever its exit code.

    Raises:
        Unreachable: it did not end in time and was killed. PermanentError: it is not installed.
    """
    name = arguments[0]
    try:
        # setpriv sets the parent-death signal between fork and exec; doing it in Python code there
        # is not safe in a process with threads.
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", "--", *arguments],
            input=stdin,
            capture_output=True,
            env=dict(environment),
            cwd=directory,
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise PermanentError(
            f"Unable to run {name}: setpriv is not installed. Install util-linux."
        ) from error
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"Unable to wait for {name} {arguments[1] if len(arguments) > 1 else ''}: "
            f"it did not end within {timeout_seconds:.0f} s. Check the system that it speaks to."
        ) from None
    if done.returncode == 127:
        raise PermanentError(f"Unable to run {name}: it is not installed. Install it.")
    return Ended(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
