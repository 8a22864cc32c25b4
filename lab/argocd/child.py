"""One process in place of one container: started, watched, restarted, ended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_LIMIT_BYTES = 20 * 1024 * 1024
STOP_SECONDS = 8.0
BACKOFF_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0)
CALM_SECONDS = 60.0
"""A process that lived so long is restarted at once."""


@dataclass(frozen=True)
class Command:
    """What is run. Secrets come by environment or files, never as arguments."""

    argv: Sequence[str]
    environment: Mapping[str, str]


class Child:
    """A process that ends with its parent."""

    def __init__(self, name: str, pod_uid: str, directory: Path, log: Path) -> None:
        self.name = name
        self.pod_uid = pod_uid
        self._directory = directory
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._deaths = 0
        self._may_start_at = 0.0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process; 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    def is_due(self) -> bool:
        """Note a death, and tell whether the back-off after it is over."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._deaths = 0 if now - self._started_at > CALM_SECONDS else self._deaths + 1
            pause = BACKOFF_SECONDS[min(self._deaths, len(BACKOFF_SECONDS) - 1)]
            self._may_start_at = now + pause
        return self._process is None and now >= self._may_start_at

    def start(self, command: Command) -> None:
        if self._log.exists() and self._log.stat().st_size > LOG_LIMIT_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            # setpriv: it must not outlive who looks after it.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env=dict(command.environment),
            )
        self._started_at = time.monotonic()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
