"""The process between a worker and `ansible-playbook`: when the worker is gone, so is the playbook.

Promises that after the end of the process that started it, by any signal, no process that it
started runs on (forks, `ssh` masters in sessions of their own) and the private directory with the
run's secrets is removed. Runs as a script in a fresh interpreter and so imports nothing of ours.
Refuses to start when its parent is already gone.

    python ansible_tether.py PARENT_PID PRIVATE_DIRECTORY COMMAND...
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ENDED_BY_TETHER = 254
PID_FILE = "tether.pid"
PATIENCE_SECONDS = 3.0


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _descendants() -> list[int]:
    """Return every process below this one; orphans are ours too, since we are their subreaper."""
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        parent = pending.pop()
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(pid) for pid in file.read_text().split()]
            except OSError:
                continue
            found += children
            pending += children
    return found


def _end(signal_number: int) -> None:
    for pid in _descendants():
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            continue


def end_everything() -> None:
    """End all descendants: politely, so that `ssh` closes its sockets, then by force."""
    _end(signal.SIGTERM)
    until = time.monotonic() + PATIENCE_SECONDS
    while _descendants():
        if time.monotonic() > until:
            _end(signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


def main(arguments: list[str]) -> int:
    """Run the command until it ends or the parent does."""
    parent, directory, command = int(arguments[0]), Path(arguments[1]), arguments[2:]

    def leave(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_everything()
        if os.getppid() != parent:
            shutil.rmtree(directory, ignore_errors=True)
        os._exit(ENDED_BY_TETHER)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        shutil.rmtree(directory, ignore_errors=True)
        return ENDED_BY_TETHER
    (directory / PID_FILE).write_text(str(os.getpid()))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Should the tether itself be killed, the playbook still goes with it.
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execvp(command[0], command)  # noqa: S606 - a list of arguments, no shell
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end_everything()
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
