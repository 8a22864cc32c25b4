"""One run of the `tofu` binary: its arguments, its surroundings, its words and its end.

Promises that secrets are handed over in the environment only and never appear in an error, that
the command ends when its caller does, and that a failure arrives as one of the product's errors.
Refuses to inherit the worker's environment: what is not named here is not passed on.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_terraform import Terraform

from blocks import tofu_tether
from domain.errors import (
    Conflict,
    LifecycleError,
    PermanentError,
    QuotaExceeded,
    TemporaryError,
    Unauthorized,
    Unreachable,
)

GRACE_SECONDS = 20.0
RUN_LOCK_SECONDS = 60.0
READ_SECONDS = 0.1
SHOWN_CHARACTERS = 400
OnLine = Callable[[str], None]

_KINDS: tuple[tuple[str, type[LifecycleError], str], ...] = (
    (r"saved plan is stale", Conflict, "Plan again"),
    (r"state lock|already locked", Conflict, "Wait for the run that holds the lock"),
    (r"sealed", Unreachable, "Unseal OpenBao: bao operator unseal"),
    (
        r"no space left|out of space|not enough (?:free )?(?:space|memory)|quota"
        r"|storage \S+ is full",
        QuotaExceeded,
        "Free space or choose another storage",
    ),
    (
        r"\b40[13]\b|permission (?:check failed|denied)|authentication failed|unauthori[sz]ed",
        Unauthorized,
        "Check the credential's rights",
    ),
    (
        # A clone whose answer was lost, or that failed in its task: what it left is settled first.
        r"already exists|clone failed|unable to create (?:VM|image)|task (?:error|failed)",
        TemporaryError,
        "It may pass: try again",
    ),
    (r"certificate|x509", PermanentError, "Check the CA files of the blocks"),
    (
        r"connection (?:refused|reset)|no route to host|timed? ?out|timeout|deadline exceeded|EOF"
        r"|\b5\d\d\b|no quorum|is locked|can't lock|temporarily|i/o timeout|task .*hang",
        Unreachable,
        "It may pass: try again",
    ),
)


@dataclass(frozen=True)
class Diagnostic:
    """One error or warning of `tofu`."""

    severity: str
    summary: str
    detail: str


@dataclass
class Outcome:
    """How a command ended."""

    exit_code: int
    output: str
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """The errors in one line."""
        found = [d for d in self.diagnostics if d.severity == "error"]
        texts = [_one_line(f"{d.summary}: {d.detail}" if d.detail else d.summary) for d in found]
        return "; ".join(dict.fromkeys(texts)) or "no reason given"


def _one_line(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def failure(act: str, problem: str) -> LifecycleError:
    """Return the error that a problem of `tofu` stands for."""
    for pattern, kind, advice in _KINDS:
        if re.search(pattern, problem, re.IGNORECASE):
            return kind(f"Unable to {act}: {problem}. {advice}.")
    return PermanentError(f"Unable to {act}: {problem}. Mend it and run again.")


@contextmanager
def run_lock(directory: Path) -> Iterator[int]:
    """Yield a descriptor that is handed to the command, and held until its last process ended.

    So a `tofu` that still writes its state after its worker was killed is waited for.

    Raises:
        TemporaryError: another command still runs.
    """
    descriptor = os.open(directory / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + RUN_LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TemporaryError(
                        "Unable to start tofu: an earlier command on this cluster still runs "
                        f"after {RUN_LOCK_SECONDS:.0f} s. Wait for it or end it."
                    ) from None
                time.sleep(READ_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


class TofuProcess(Terraform):  # type: ignore[misc]
    """python-terraform, with the environment, the end and the output in our own hands.

    Its `generate_cmd_string` turns options into arguments; `cmd` is ours, because the original
    hands on the whole environment of the worker and leaves `tofu` running when the worker dies.
    """

    def __init__(
        self, binary: str, directory: Path, environment: Mapping[str, str], secrets: list[str]
    ) -> None:
        """Run `binary` with exactly `environment`; no text that comes back holds a secret."""
        super().__init__(working_dir=str(directory), terraform_bin_path=binary)
        self._directory = directory
        self._environment = dict(environment)
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def cmd(self, cmd: str, *args: str, on_line: OnLine | None = None, **options: Any) -> Outcome:
        """Run one command to its end.

        Raises:
            TemporaryError: an earlier command still runs.
            PermanentError: the binary cannot be started.
        """
        command = self.generate_cmd_string(cmd, *args, **options)
        tether = [sys.executable, "-I", tofu_tether.__file__, str(os.getpid()), str(GRACE_SECONDS)]
        with run_lock(self._directory) as lock:
            # Files and not pipes: a broken pipe would end tofu before it wrote its state.
            output, trouble = self._directory / "output.txt", self._directory / "errors.txt"
            with output.open("wb") as out, trouble.open("wb") as err:
                child = subprocess.Popen(
                    [*tether, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=self._directory,
                    env=self._environment,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            try:
                text = self._follow(child, output, on_line)
            except BaseException:
                child.terminate()
                child.wait(GRACE_SECONDS + 10)
                raise
            errors = self._clean(trouble.read_text("utf-8", "replace"))
            for file in (output, trouble):
                file.unlink(missing_ok=True)
        return Outcome(child.returncode, text, _diagnostics(text, errors))

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "(secret)")
        return text

    def _follow(self, child: subprocess.Popen[bytes], output: Path, on_line: OnLine | None) -> str:
        lines: list[str] = []
        with output.open("r", encoding="utf-8", errors="replace") as file:
            rest = ""
            while True:
                # Asked before reading: what was written before the end is then read for sure.
                ended = child.poll() is not None
                *whole, rest = (rest + file.read()).split("\n")
                for line in whole:
                    lines.append(self._clean(line))
                    if on_line is not None:
                        on_line(lines[-1])
                if ended:
                    return "\n".join([*lines, self._clean(rest)]).strip("\n")
                time.sleep(READ_SECONDS)


def _diagnostics(output: str, errors: str) -> list[Diagnostic]:
    """Collect diagnostics from JSON lines, or from the plain text of a command without them."""
    found = []
    for line in output.splitlines():
        if '"diagnostic"' not in line:
            continue
        try:
            told = json.loads(line).get("diagnostic")
        except (ValueError, AttributeError):
            continue
        if isinstance(told, Mapping):
            found.append(
                Diagnostic(
                    str(told.get("severity", "error")),
                    str(told.get("summary", "")),
                    str(told.get("detail", "")),
                )
            )
    plain = re.sub(r"\x1b\[[0-9;]*m|[│╷╵]", "", errors).strip()
    if plain:
        is_error = bool(re.search(r"^\s*Error:", plain, re.MULTILINE))
        text = re.sub(r"^\s*Error:\s*", "", plain) if is_error else plain
        found.append(Diagnostic("error" if is_error else "warning", text, ""))
    return found
