"""Services start once, are told from strangers, end completely, and come back only if wanted."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.layout import Layout
from lab.services import processes, supervisor
from lab.services.restart_policy import LIMIT, RestartPolicy
from lab.services.service import (
    BrokenOnPurpose,
    Launch,
    Record,
    Service,
    ServiceFailed,
    read_record,
)

_PROGRAM = """
import os, signal, subprocess, sys, time
ready, mode = sys.argv[1], sys.argv[2]
if mode == "dies":
    print("cannot read my configuration", file=sys.stderr); sys.exit(3)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
open(ready, "w").write(str(child.pid))
time.sleep(1000)
"""


def make(tmp_path: Path, mode: str = "good", **changes: object) -> Service:
    ready = tmp_path / "ready"
    settings: dict[str, object] = {
        "name": "demo",
        "summary": "a service of the test",
        "launch": lambda _: Launch(
            command=[sys.executable, "-c", _PROGRAM, str(ready), mode], is_inside_namespace=False
        ),
        "prepare": lambda _: ready.unlink(missing_ok=True),
        "is_healthy": lambda _: None if ready.exists() and ready.read_text() else "not ready",
        "start_timeout_seconds": 10.0,
        "stop_timeout_seconds": 1.0,
        **changes,
    }
    return Service(**settings)  # type: ignore[arg-type]


@pytest.fixture
def demo(tmp_path: Path, layout: Layout) -> Iterator[Service]:
    service = make(tmp_path)
    yield service
    supervisor.stop(layout, service)


def child_of(tmp_path: Path) -> processes.Identity:
    identity = processes.Identity.of(int((tmp_path / "ready").read_text()))
    assert identity is not None
    return identity


def pid(layout: Layout) -> int:
    return read_record(layout, "demo").pid


def test_a_second_start_leaves_the_first_process_alone(layout: Layout, demo: Service) -> None:
    assert not supervisor.start(layout, demo).was_running
    first = pid(layout)
    assert supervisor.start(layout, demo).was_running
    assert pid(layout) == first


def test_a_stop_ends_children_that_left_the_session(
    layout: Layout, demo: Service, tmp_path: Path
) -> None:
    supervisor.start(layout, demo)
    child = child_of(tmp_path)
    supervisor.stop(layout, demo)
    assert not child.is_alive()
    assert supervisor.owned_pids(layout, demo) == []
    supervisor.stop(layout, demo)


def test_a_process_that_ignores_term_is_killed(layout: Layout, tmp_path: Path) -> None:
    stubborn = make(tmp_path, "stubborn")
    supervisor.start(layout, stubborn)
    running = read_record(layout, "demo").identity
    assert running is not None
    supervisor.stop(layout, stubborn)
    assert not running.is_alive()


def test_a_service_that_ends_at_once_is_told_with_the_end_of_its_log(
    layout: Layout, tmp_path: Path
) -> None:
    with pytest.raises(ServiceFailed, match="its process ended") as caught:
        supervisor.start(layout, make(tmp_path, "dies"))
    assert "cannot read my configuration" in str(caught.value)
    assert str(layout.log_file("demo")) in str(caught.value)


def test_a_service_that_never_answers_is_told_with_its_reason(
    layout: Layout, tmp_path: Path
) -> None:
    silent = make(tmp_path, is_healthy=lambda _: "says 503", start_timeout_seconds=0.5)
    with pytest.raises(ServiceFailed, match=r"not healthy after 0.5 s \(says 503\)"):
        supervisor.start(layout, silent)
    supervisor.stop(layout, silent)


def test_a_failed_set_up_is_repeated_by_the_next_start(layout: Layout, tmp_path: Path) -> None:
    tries: list[int] = []

    def settle(_: Layout) -> None:
        tries.append(pid(layout))
        if len(tries) == 1:
            raise RuntimeError("the disk was full")

    service = make(tmp_path, settle=settle)
    with pytest.raises(ServiceFailed, match="its set-up failed"):
        supervisor.start(layout, service)
    supervisor.start(layout, service)
    assert len(tries) == 2
    assert tries[0] == tries[1], "the process that ran was kept"
    supervisor.stop(layout, service)


def test_a_fault_that_was_set_on_purpose_does_not_cost_the_process(
    layout: Layout, tmp_path: Path
) -> None:
    def settle(_: Layout) -> None:
        raise BrokenOnPurpose("sealed on purpose")

    service = make(tmp_path, settle=settle)
    for _ in range(2):
        with pytest.raises(BrokenOnPurpose):
            supervisor.start(layout, service)
    assert read_record(layout, "demo").is_alive
    supervisor.stop(layout, service)


def test_a_record_of_another_boot_names_nobody(layout: Layout, demo: Service) -> None:
    supervisor.start(layout, demo)
    record = read_record(layout, "demo")
    record.boot = "00000000-another-boot"
    record.store(layout)
    assert not read_record(layout, "demo").is_alive
    assert not supervisor.start(layout, demo).was_running


def test_a_reused_pid_is_not_taken_for_the_service(layout: Layout, demo: Service) -> None:
    me = processes.Identity.of(os.getpid())
    assert me is not None
    Record("demo", True, me.pid, me.start_ticks - 1, me.boot, is_settled=True).store(layout)
    supervisor.start(layout, demo)
    assert pid(layout) != os.getpid()


@pytest.mark.parametrize("content", ["", "{", '{"unknown": 1}'])
def test_a_broken_record_reads_as_never_started(
    layout: Layout, demo: Service, content: str
) -> None:
    layout.record_file("demo").parent.mkdir(parents=True)
    layout.record_file("demo").write_text(content)
    assert not supervisor.start(layout, demo).was_running


def test_what_a_lost_record_left_running_is_ended_before_a_new_start(
    layout: Layout, demo: Service, tmp_path: Path
) -> None:
    supervisor.start(layout, demo)
    old = [read_record(layout, "demo").identity, child_of(tmp_path)]
    layout.record_file("demo").unlink()
    supervisor.start(layout, demo)
    assert not any(identity.is_alive() for identity in old if identity)


def test_a_frozen_process_is_replaced(layout: Layout, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    frozen: set[int] = set()
    service = make(
        tmp_path,
        is_healthy=lambda _: "hangs" if pid(layout) in frozen or not ready.exists() else None,
    )
    supervisor.start(layout, service)
    os.kill(pid(layout), signal.SIGSTOP)
    frozen.add(pid(layout))
    assert not supervisor.start(layout, service).was_running
    assert pid(layout) not in frozen
    supervisor.stop(layout, service)


def test_a_killed_service_comes_back_only_if_it_is_wanted(layout: Layout, demo: Service) -> None:
    supervisor.start(layout, demo)
    supervisor.kill(layout, demo, comes_back=False)
    assert not supervisor.restart_dead(layout, demo)
    assert not read_record(layout, "demo").is_alive
    supervisor.start(layout, demo)
    supervisor.kill(layout, demo, comes_back=True)
    assert supervisor.restart_dead(layout, demo)
    record = read_record(layout, "demo")
    assert record.is_alive
    assert record.restarts == 1


def test_nothing_of_the_callers_environment_reaches_a_service(
    layout: Layout, demo: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_CALLER", "planted")
    supervisor.start(layout, demo)
    assert b"planted" not in Path(f"/proc/{pid(layout)}/environ").read_bytes()


def test_a_process_of_another_lab_is_not_found(layout: Layout, demo: Service) -> None:
    supervisor.start(layout, demo)
    assert processes.marked("unit-tests:")
    assert not processes.marked("unit-tests-2:")
    assert not processes.marked_exactly("unit-tests:dem")


def test_the_caller_and_its_parents_are_never_ended() -> None:
    assert processes.end([os.getpid(), os.getppid(), 1], grace_seconds=0) == []


def test_restarts_come_ever_later_and_end() -> None:
    policy, now, waited = RestartPolicy(), 1000.0, []
    while not policy.has_given_up(now):
        died = now
        policy.note_death(now)
        while not policy.may_restart(now):
            now += 0.25
        waited.append(now - died)
        policy.note_restart(now)
    assert len(waited) == LIMIT
    assert waited == sorted(waited)
    assert waited[-1] >= 8 * waited[0]
    policy.note_death(now)
    assert not policy.may_restart(now + 60)


def test_a_service_that_ran_well_for_long_is_tried_again() -> None:
    policy = RestartPolicy(restarts=[float(number) for number in range(LIMIT)])
    policy.note_death(10_000.0)
    assert policy.may_restart(10_001.0)


def test_two_starts_at_once_make_one_process(layout: Layout, demo: Service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(lambda _: supervisor.start(layout, demo), range(4)))
    assert [started.was_running for started in results].count(False) == 1
    time.sleep(0.1)
    assert len(processes.marked_exactly("unit-tests:demo")) == 2, "the service and its child"
