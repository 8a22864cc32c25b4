"""Runs one Ansible playbook and tells, while it runs, what happens on each host.

Promises typed events, a deadline, and that neither a cancellation nor the death of the calling
process leaves a playbook running. Secrets reach Ansible by a file in a private directory in
memory alone: never by argv, by an environment variable or by an artifact, and their literal values
are masked in all that is handed back. Refuses to take over the caller's environment, signal
handlers or SSH settings.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from ansible_runner import Runner, RunnerConfig

from blocks import ansible_tether
from blocks.private_directory import write_private
from domain.errors import PermanentError
from domain.host_reports import HostEvent, TaskStatus

OUTPUT_LIMIT = 2000
MASK = "********"
SHORTEST_SECRET = 4
PASSED_VARIABLES = ("PATH", "TZ", "TMPDIR", "VIRTUAL_ENV")
IDENT = "playbook"
END_SECONDS = 8.0


class RunStatus(StrEnum):
    """How a playbook's run ended."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class PlaybookRun:
    """What to run, on what, with what."""

    playbook: Path
    inventory: Mapping[str, Any]
    directory: Path
    """A private directory (`blocks.private_directory`) of this run alone."""
    roles: Path | None = None
    library: Path | None = None
    module_utils: Path | None = None
    secret_variables: Mapping[str, str] = field(default_factory=dict)
    ssh_options: Sequence[str] = ()
    user: str = "infraflows"
    forks: int = 10
    deadline_seconds: float = 1800.0
    connect_timeout_seconds: int = 15
    details_of: frozenset[str] = frozenset()
    """Names of the tasks whose results are handed back in the events."""


@dataclass(frozen=True)
class PlaybookResult:
    """How it ended; the events are complete also when it failed."""

    status: RunStatus
    exit_code: int
    seconds: float
    events: tuple[HostEvent, ...]
    console: str
    """The last lines that belong to no host: a syntax error, an unknown variable. Masked."""


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without any of the literal `secrets`."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return text


def _masked_value(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return masked(value, secrets)
    if isinstance(value, Mapping):
        return {key: _masked_value(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked_value(item, secrets) for item in value]
    return value


def _cut(text: str, limit: int = OUTPUT_LIMIT) -> str:
    """Keep the beginning and the end: causes stand at either."""
    if len(text) <= limit:
        return text
    half = limit // 2 - 10
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"


def failure_message(result: Mapping[str, Any]) -> str:
    """Return a failed task's own words from Ansible's result."""
    if "censored" in result:
        return "the output is withheld, because the task handles a secret"
    parts: list[str] = []
    for item in result.get("results") or []:
        if isinstance(item, Mapping) and item.get("failed"):
            parts.append(failure_message(item))
    for key in ("msg", "stderr", "stdout", "module_stderr", "module_stdout"):
        text = str(result.get(key) or "").strip()
        if text and not any(text in part for part in parts):
            parts.append(text)
    return "\n".join(parts) or "the host gave no reason"


class _Listener:
    """Turns the runner's raw events into typed ones."""

    def __init__(self, run: PlaybookRun, on_event: Callable[[HostEvent], None] | None) -> None:
        self.events: list[HostEvent] = []
        self.console: deque[str] = deque(maxlen=40)
        self._run = run
        self._on_event = on_event
        self._secrets = list(run.secret_variables.values())

    def __call__(self, raw: Mapping[str, Any]) -> bool:
        """Take one event; `False` tells the runner not to write it to a file."""
        kind = str(raw.get("event", ""))
        if kind in ("verbose", "error", "warning", "deprecated", "system_warning"):
            line = str(raw.get("stdout", "")).strip()
            if line:
                self.console.append(masked(line, self._secrets))
        event = self._typed(kind, raw.get("event_data") or {}, str(raw.get("stdout", "")))
        if event is not None:
            self.events.append(event)
            if self._on_event is not None:
                self._on_event(event)
        return False

    def _typed(self, kind: str, data: Mapping[str, Any], line: str) -> HostEvent | None:
        result = data.get("res") or {}
        # Of a task that handles a secret the whole result is withheld: only the line that Ansible
        # prints still says whether something was changed.
        is_changed = result.get("changed") or ("censored" in result and line.startswith("changed:"))
        status = {
            "runner_on_start": TaskStatus.STARTED,
            "runner_on_ok": TaskStatus.CHANGED if is_changed else TaskStatus.OK,
            "runner_on_skipped": TaskStatus.SKIPPED,
            "runner_on_failed": (
                TaskStatus.IGNORED if data.get("ignore_errors") else TaskStatus.FAILED
            ),
            "runner_on_unreachable": TaskStatus.UNREACHABLE,
        }.get(kind)
        if status is None or not data.get("host"):
            return None
        message, details = "", None
        if status in (TaskStatus.FAILED, TaskStatus.UNREACHABLE, TaskStatus.IGNORED):
            message = _cut(masked(failure_message(result), self._secrets))
        elif data.get("task") in self._run.details_of and status is not TaskStatus.STARTED:
            details = _masked_value(result, self._secrets)
        return HostEvent(
            host=str(data["host"]),
            task=str(data.get("task", "")),
            role=str(data.get("role", "")),
            status=status,
            seconds=float(data.get("duration") or 0.0),
            message=message,
            details=details,
        )


def configuration(run: PlaybookRun) -> str:
    """Return the text of the run's own ansible.cfg."""
    ssh = [*run.ssh_options, "-o", "ControlMaster=auto", "-o", "ControlPersist=60s"]
    lines = [
        "[defaults]",
        f"forks = {run.forks}",
        "gathering = explicit",
        "host_key_checking = True",
        "interpreter_python = /usr/bin/python3",
        "inject_facts_as_vars = False",
        "retry_files_enabled = False",
        "display_args_to_stdout = False",
        "deprecation_warnings = False",
        "no_target_syslog = True",
        "nocows = True",
        "nocolor = True",
        f"remote_user = {run.user}",
        f"timeout = {run.connect_timeout_seconds}",
        f"local_tmp = {run.directory / 'tmp'}",
        "fact_caching = memory",
        *([f"roles_path = {run.roles}"] if run.roles else []),
        *([f"library = {run.library}"] if run.library else []),
        *([f"module_utils = {run.module_utils}"] if run.module_utils else []),
        "[ssh_connection]",
        "pipelining = True",
        "retries = 2",
        f"ssh_args = {shlex.join(ssh)}",
        # The kernel allows 107 characters for a socket's path, so it is kept short.
        f"control_path_dir = {run.directory / 'c'}",
        "control_path = %(directory)s/%%h-%%p",
    ]
    return "\n".join(lines) + "\n"


def _prepare(run: PlaybookRun) -> RunnerConfig:
    """Lay out the private directory and return the runner's configuration for it."""
    data = run.directory / "run"
    for folder in (data, data / "env", run.directory / "tmp", run.directory / "c"):
        folder.mkdir(mode=0o700, exist_ok=True)
    config = write_private(run.directory / "ansible.cfg", configuration(run))
    inventory = write_private(
        run.directory / "inventory.yaml", yaml.safe_dump(dict(run.inventory), sort_keys=False)
    )
    variables = run.directory / "variables.json"
    write_private(variables, json.dumps(dict(run.secret_variables)))
    settings = {"pexpect_timeout": 1, "suppress_output_file": True, "suppress_ansible_output": True}
    write_private(data / "env" / "settings", json.dumps(settings))
    program = Path(sys.executable).parent / "ansible-playbook"
    if not program.exists():
        raise PermanentError(
            f"Unable to run a playbook: {program.name} is not beside the Python interpreter. "
            "Install the package's dependencies."
        )
    command = ["-I", ansible_tether.__file__, str(os.getpid()), str(run.directory)]
    command += [str(program), str(run.playbook), "-i", str(inventory), "-e", f"@{variables}"]
    runner = RunnerConfig(
        private_data_dir=str(data),
        binary=sys.executable,
        cmdline=shlex.join(command),
        ident=IDENT,
        rotate_artifacts=1,
        fact_cache_type="memory",
        suppress_output_file=True,
        suppress_ansible_output=True,
        envvars={
            "ANSIBLE_CONFIG": str(config),
            "ANSIBLE_HOST_KEY_CHECKING": "True",
            "ANSIBLE_HOME": str(run.directory / "tmp"),
            "HOME": str(run.directory),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
        },
    )
    runner.prepare()
    # The runner copies the caller's whole environment, which may hold its credentials.
    runner.env = {
        name: value
        for name, value in runner.env.items()
        if name in PASSED_VARIABLES or os.environ.get(name) != value
    }
    return runner


class _Watch(threading.Thread):
    """Ends the tether at the deadline, or when the caller cancels."""

    def __init__(self, run: PlaybookRun, is_cancelled: Callable[[], bool] | None) -> None:
        super().__init__(name="playbook-watch", daemon=True)
        self._run = run
        self._is_cancelled = is_cancelled
        self._finished = threading.Event()
        self.verdict: RunStatus | None = None

    def run(self) -> None:
        deadline = time.monotonic() + self._run.deadline_seconds
        while not self._finished.wait(0.2):
            if time.monotonic() > deadline:
                self.verdict = RunStatus.TIMED_OUT
            elif self._is_cancelled is not None and self._is_cancelled():
                self.verdict = RunStatus.CANCELLED
            if self.verdict is not None:
                end_tether(self._run.directory)
                return

    def finish(self) -> None:
        self._finished.set()
        self.join(timeout=END_SECONDS)


def end_tether(directory: Path) -> None:
    """End the playbook of `directory` and all that it started; nothing running is success."""
    try:
        pid = int((directory / ansible_tether.PID_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return
    for signal_number, patience_seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, 2.0)):
        until = time.monotonic() + patience_seconds
        while _is_tether(pid, directory):
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                return
            time.sleep(0.05)
            if time.monotonic() > until:
                break


def _is_tether(pid: int, directory: Path) -> bool:
    """Return whether `pid` still is the tether of `directory`; a zombie has no command line."""
    try:
        return str(directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_playbook(
    run: PlaybookRun,
    on_event: Callable[[HostEvent], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> PlaybookResult:
    """Run the playbook to its end and return what happened; failed hosts are no exception here.

    `on_event` is called in the caller's thread for every event. Whatever is raised in the
    meantime, a termination signal's exception too, ends the playbook before it is passed on.
    """
    started = time.monotonic()
    listener = _Listener(run, on_event)
    runner = Runner(_prepare(run), event_handler=listener, remove_partials=True)
    watch = _Watch(run, is_cancelled)
    watch.start()
    try:
        runner.run()
    finally:
        watch.finish()
        end_tether(run.directory)
    status = RunStatus.SUCCESSFUL if runner.rc == 0 else RunStatus.FAILED
    return PlaybookResult(
        status=watch.verdict or status,
        exit_code=int(runner.rc if runner.rc is not None else ansible_tether.ENDED_BY_TETHER),
        seconds=round(time.monotonic() - started, 3),
        events=tuple(listener.events),
        console=_cut("\n".join(listener.console)),
    )
