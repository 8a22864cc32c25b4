"""The process between a worker and `tofu`: when the worker is gone, `tofu` ends in good order.

A killed `tofu` loses what it did since it last wrote its state. So promises that when the process
that started it ends, by any signal, `tofu` is interrupted as by a person, gets time to write its
state and release its lock, and is ended by force afterwards, providers and all. Runs as a script
in a fresh interpreter and so imports nothing of ours. Refuses to start when its parent is gone.

    python tofu_tether.py PARENT_PID GRACE_SECONDS COMMAND...
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ENDED_BY_TETHER = 254
FORCE_SECONDS = 3.0


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _descendants() -> list[int]:
    """Return every process below this one; orphans are ours too, since we are their subreaper."""
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        for file in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            try:
                children = [int(pid) for pid in file.read_text().split()]
            except OSError:
                continue
            found += children
            pending += children
    return found


def _send(pids: list[int], signal_number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            continue


def _wait_all(seconds: float) -> bool:
    """Reap until no child is left; return False when time was too short."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        time.sleep(0.02)
    return False


def end_by_force() -> None:
    """Kill all that is left below; a provider does not end by itself when `tofu` was killed."""
    until = time.monotonic() + FORCE_SECONDS
    while (left := _descendants()) and time.monotonic() < until:
        _send(left, signal.SIGKILL)
        _wait_all(0.2)


def main(arguments: list[str]) -> int:
    """Run the command until it ends or the parent does."""
    parent, grace_seconds, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    child = 0

    def leave(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Once only: a second interrupt makes tofu leave without writing its state.
        _send([child] if child else [], signal.SIGINT)
        _wait_all(grace_seconds)
        end_by_force()
        os._exit(ENDED_BY_TETHER)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Should the tether itself be killed, tofu is still interrupted in good order.
        _prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        os.execvp(command[0], command)  # noqa: S606 - a list of arguments, no shell
    signal.signal(signal.SIGTERM, leave)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        leave(signal.SIGTERM, None)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end_by_force()
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
