from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.ansible_run import (
    MASK,
    PlaybookResult,
    PlaybookRun,
    RunStatus,
    failure_message,
    run_playbook,
)
from blocks.private_directory import base_directory, private_directory
from domain.host_reports import HostEvent, TaskStatus

ROOT = Path(__file__).parents[2]
SECRET = "planted-secret-4711"
INVENTORY = {"all": {"hosts": {"here": {"ansible_connection": "local"}}}}


@pytest.fixture
def private() -> Iterator[Path]:
    with private_directory("test") as directory:
        yield directory


def playbook(folder: Path, tasks: str) -> Path:
    file = folder / "playbook.yaml"
    head = "- hosts: all\n  gather_facts: false\n  tasks:\n"
    file.write_text(head + textwrap.indent(textwrap.dedent(tasks), "    "))
    return file


Run = Callable[..., PlaybookResult]


@pytest.fixture
def run(tmp_path: Path, private: Path) -> Run:
    def now(tasks: str, **options: Any) -> PlaybookResult:
        handlers = {k: options.pop(k) for k in ("on_event", "is_cancelled") if k in options}
        order = PlaybookRun(
            playbook=playbook(tmp_path, tasks),
            inventory=INVENTORY,
            directory=private,
            secret_variables={"planted": SECRET},
            **options,
        )
        return run_playbook(order, **handlers)

    return now


def processes_of(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def test_each_end_of_a_task_is_an_event(run: Run) -> None:
    heard: list[HostEvent] = []
    result = run(
        """
        - name: nothing to do
          ansible.builtin.assert: {that: true}
        - name: a change
          ansible.builtin.command: "true"
        - name: not wanted
          ansible.builtin.command: "true"
          when: false
        - name: a failure that does not matter
          ansible.builtin.command: "false"
          ignore_errors: true
        """,
        on_event=heard.append,
    )
    assert result.status is RunStatus.SUCCESSFUL
    ended = [e.status.value for e in result.events if e.status is not TaskStatus.STARTED]
    assert ended == ["ok", "changed", "skipped", "ignored"]
    assert tuple(heard) == result.events
    assert next(e for e in result.events if e.status is TaskStatus.CHANGED).seconds > 0


def test_a_failed_tasks_output_is_readable_and_holds_no_secret(run: Run) -> None:
    result = run(
        """
        - name: fail
          ansible.builtin.shell: "echo key {{ planted }} is wrong >&2; exit 3"
        """
    )
    assert (result.status, result.exit_code) == (RunStatus.FAILED, 2)
    message = result.events[-1].message
    assert f"key {MASK} is wrong" in message
    assert SECRET not in repr(result)


def test_a_change_of_a_task_that_hides_its_result_is_still_a_change(run: Run) -> None:
    result = run(
        """
        - name: hidden change
          ansible.builtin.command: "echo {{ planted }}"
          no_log: true
        - name: hidden and unchanged
          ansible.builtin.command: "echo {{ planted }}"
          changed_when: false
          no_log: true
        """
    )
    ended = [e.status for e in result.events if e.status is not TaskStatus.STARTED]
    assert ended == [TaskStatus.CHANGED, TaskStatus.OK]
    assert SECRET not in repr(result)


def test_long_output_is_cut_and_keeps_both_ends(run: Run) -> None:
    result = run(
        """
        - name: talk
          ansible.builtin.shell: "echo first; seq 1 5000; echo last; exit 1"
        """
    )
    message = result.events[-1].message
    assert len(message) < 2100
    assert message.endswith("last")
    assert "characters" in message


def test_a_playbook_that_cannot_be_read_tells_so(run: Run) -> None:
    result = run("- name: wrong\n  no_such_module: {}\n")
    assert result.status is RunStatus.FAILED
    assert "no_such_module" in result.console
    assert not [event for event in result.events if event.status is TaskStatus.FAILED]


def test_results_are_handed_back_only_for_the_named_tasks(run: Run) -> None:
    result = run(
        """
        - name: asked
          ansible.builtin.command: "echo {{ planted }}"
        - name: not asked
          ansible.builtin.command: "true"
        """,
        details_of=frozenset({"asked"}),
    )
    details = [event.details for event in result.events if event.details]
    assert [d["stdout"] for d in details] == [MASK]


def test_secrets_reach_neither_arguments_nor_environments_nor_files(
    run: Run, private: Path
) -> None:
    seen: list[str] = []

    def look(event: HostEvent) -> None:
        if event.status is not TaskStatus.STARTED:
            return
        for pid in processes_of(private):
            for file in ("cmdline", "environ"):
                seen.append(Path(f"/proc/{pid}/{file}").read_text(errors="replace"))
        for path in private.rglob("*"):
            if path.is_file() and SECRET in path.read_text(errors="replace"):
                seen.append(str(path.relative_to(private)))

    run(
        """
        - name: use it
          ansible.builtin.assert: {that: planted | length > 0}
          no_log: true
        - name: after it was used
          ansible.builtin.command: "true"
        """,
        on_event=look,
    )
    processes = [text for text in seen if "\0" in text]
    files = {text for text in seen if text and "\0" not in text}
    assert files == {"variables.json"}
    assert any("ansible-playbook" in text for text in processes)
    assert not [text for text in processes if SECRET in text]


def test_the_callers_environment_stays_with_the_caller(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", SECRET)
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK_OF_CALLER", "x")
    result = run(
        """
        - name: environment
          ansible.builtin.command: env
        """,
        details_of=frozenset({"environment"}),
    )
    text = json.dumps([event.details for event in result.events])
    assert "PREFECT_API_AUTH_STRING" not in text
    assert "OF_CALLER" not in text


SLEEP = """
- name: sleep
  ansible.builtin.command: "sleep 60"
"""


def test_a_deadline_ends_the_playbook_and_all_it_started(run: Run, private: Path) -> None:
    started = time.monotonic()
    result = run(SLEEP, deadline_seconds=3.0)
    assert result.status is RunStatus.TIMED_OUT
    assert time.monotonic() - started < 15
    assert processes_of(private) == []


def test_a_cancellation_ends_the_playbook_and_all_it_started(run: Run, private: Path) -> None:
    heard: list[HostEvent] = []
    result = run(SLEEP, on_event=heard.append, is_cancelled=lambda: bool(heard))
    assert result.status is RunStatus.CANCELLED
    assert processes_of(private) == []


def test_an_exception_of_the_caller_ends_the_playbook(run: Run, private: Path) -> None:
    def fail(_event: HostEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SLEEP, on_event=fail)
    assert processes_of(private) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_playbook_and_its_secrets_go_with_a_killed_worker(
    tmp_path: Path, number: signal.Signals
) -> None:
    code = f"""
from pathlib import Path
from blocks.ansible_run import PlaybookRun, run_playbook
from blocks.private_directory import private_directory
with private_directory("killed") as directory:
    print(directory, flush=True)
    run_playbook(
        PlaybookRun(Path({str(playbook(tmp_path, SLEEP))!r}), {INVENTORY!r}, directory,
                    secret_variables={{"planted": {SECRET!r}}}),
        on_event=lambda event: print(event.status.value, flush=True),
    )
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    directory = Path(worker.stdout.readline().strip())
    assert directory.parent == base_directory()
    assert worker.stdout.readline().strip() == "started"
    assert processes_of(directory)
    worker.send_signal(number)
    worker.wait(timeout=10)
    until = time.monotonic() + 10
    while (processes_of(directory) or directory.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(directory) == []
    assert not directory.exists(), "the tether removes the secrets when its worker is dead"


def test_a_failed_loop_tells_what_its_items_said() -> None:
    result = {
        "msg": "One or more items failed",
        "results": [{"failed": True, "msg": "no space"}, {"failed": False, "msg": "fine"}],
    }
    assert failure_message(result) == "no space\nOne or more items failed"


def test_a_failure_of_a_hidden_task_says_why_nothing_is_shown() -> None:
    assert "handles a secret" in failure_message({"censored": "..."})
