"""Running a program to its end, so that it ends when we do.

Promises that the program is killed when the thread that started it is gone, by any signal, that it
sees only the environment that it is given, and that it has no terminal to ask at. Refuses to run
without an end: a time limit is required.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks import ansible_tether
from domain.errors import PermanentError, Unreachable

PATIENCE_SECONDS = 10.0
"""More than the tether gives those below it."""


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
    tethered_directory: Path | None = None,
) -> Ended:
    """Run a program and return how it ended, whatever its exit code.

    `tethered_directory` is for a program that starts others, which would outlive it: all of them
    end with us, and this private directory of theirs is removed if we were killed.

    Raises:
        Unreachable: it did not end in time and was killed. PermanentError: it is not installed.
    """
    name = " ".join(arguments[:2])
    # setpriv sets the parent-death signal between fork and exec; doing it in Python code there is
    # not safe in a process with threads.
    guard = ["setpriv", "--pdeathsig", "KILL", "--"]
    if tethered_directory is not None:
        script = str(ansible_tether.__file__)
        guard = [sys.executable, "-I", script, str(os.getpid()), str(tethered_directory)]
    try:
        child = subprocess.Popen(
            [*guard, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=directory,
        )
    except FileNotFoundError as error:
        raise PermanentError(
            f"Unable to run {name}: {guard[0]} is not installed. Install it (util-linux)."
        ) from error
    with child:
        try:
            output, complaint = child.communicate(stdin, timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            raise Unreachable(
                f"Unable to wait for {name}: it did not end within {timeout_seconds:.0f} s. "
                "Check the system that it speaks to."
            ) from None
        finally:
            # Asked first: a tether that is killed cannot end those below it.
            end_child(child)
    if child.returncode == 127:
        raise PermanentError(f"Unable to run {name}: it is not installed. Install it.")
    return Ended(child.returncode, output, complaint.decode(errors="replace"))


def end_child(child: subprocess.Popen[bytes]) -> None:
    """End a program that still runs: by request, then by force."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
