"""The removal of a cluster leaves every system as it was before the cluster."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.lab

GATE_SECONDS = 300.0


def test_a_removal_waits_for_approval_and_then_nothing_is_left(demo: Any) -> None:
    driver = demo.driver
    held = driver.inventory().of(demo.name)
    assert len(held.machines) == 5

    run = driver.start("decommission-cluster/lab", demo.spec)
    driver.wait_until(run, lambda view: view.state == "PAUSED", "the gate", GATE_SECONDS)
    assert len(driver.inventory().of(demo.name).machines) == 5
    rows = driver.artifacts(run)["demo-plan"]
    assert {row["action"] for row in rows} == {"destroy"}
    assert sorted(row["machine"] for row in rows) == sorted(vm.name for vm in held.machines)

    driver.command("infraflows", "approve", run, "--by", "Ada")
    ended = driver.complete(run)

    assert set(ended.phases.values()) == {"done"}
    assert driver.inventory().lines() == demo.before.lines()
    report = driver.artifacts(run)["demo-report"]
    for system in ("Proxmox", "OpenTofu state", "DNS", "Git", "OpenBao"):
        assert f"| nothing is left in {system} | ✔ passed | nothing found |" in report


def test_a_second_removal_finds_nothing_and_changes_nothing(demo: Any) -> None:
    driver = demo.driver
    ended = driver.complete(driver.start("decommission-cluster/lab", demo.spec))
    assert "**Unchanged**" in driver.artifacts(ended.run_id)["demo-report"]
    assert driver.inventory().lines() == demo.before.lines()
