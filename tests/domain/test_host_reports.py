from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.host_reports import (
    HostEvent,
    TaskStatus,
    failure_text,
    final_reports,
    overall_percent,
    running_reports,
    table_rows,
)

CASES = yaml.safe_load((Path(__file__).parents[1] / "cases" / "host_reports.yaml").read_text())
EXPECTED_TASKS = 4


def events(rows: list[list[Any]]) -> list[HostEvent]:
    return [HostEvent(host, task, TaskStatus(status), seconds=s) for host, task, status, s in rows]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_reports_follow_from_the_events(case: dict[str, Any]) -> None:
    hosts = case.get("hosts", ["a"])
    reports = final_reports(hosts, events(case["events"]), case["is_complete"])
    assert [report.host for report in reports] == hosts
    for report in reports:
        for name, value in case["expected"].get(report.host, {}).items():
            found = report.percent(EXPECTED_TASKS) if name == "percent" else getattr(report, name)
            assert (list(found) if isinstance(value, list) else found) == value, name


def test_progress_reaches_the_end_only_when_the_run_does() -> None:
    done = [["a", str(i), "ok", 1] for i in range(EXPECTED_TASKS)]
    assert overall_percent(running_reports(["a"], events(done)), EXPECTED_TASKS) == 99.0
    assert overall_percent(final_reports(["a"], events(done), True), EXPECTED_TASKS) == 100.0


def test_progress_is_the_mean_over_the_hosts() -> None:
    half = events([["a", "1", "ok", 1], ["a", "2", "ok", 1]])
    assert overall_percent(running_reports(["a", "b"], half), EXPECTED_TASKS) == 25.0


def test_the_failure_text_tells_where_and_in_the_hosts_words() -> None:
    failed = HostEvent("a", "Start", TaskStatus.FAILED, role="rke2", message="port 6443 is taken")
    text = failure_text(final_reports(["a", "b"], [failed], False))
    assert text == "a (failed) at 'rke2: Start': port 6443 is taken"


def test_a_row_names_the_task_that_failed() -> None:
    failed = HostEvent("a", "Start", TaskStatus.FAILED, role="rke2")
    row = table_rows(final_reports(["a"], [failed], False), EXPECTED_TASKS)[0]
    assert (row["state"], row["task"], row["failed"]) == ("✘ failed", "rke2: Start", "1")


def test_a_row_tells_where_a_host_failed_in_its_words_and_where_it_is() -> None:
    failed = HostEvent("a", "Start", TaskStatus.FAILED, role="rke2", message="port 6443 is taken")
    works = HostEvent("b", "Write files", TaskStatus.STARTED, role="base")
    rows = table_rows(running_reports(["a", "b"], [failed, works]), EXPECTED_TASKS)
    assert [(row["state"], row["task"]) for row in rows] == [
        ("✘ failed", "rke2: Start: port 6443 is taken"),
        ("▶ running", "base: Write files"),
    ]
