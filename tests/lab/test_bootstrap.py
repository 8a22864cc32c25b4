"""From an empty pool to a cluster, and every later change of its spec, on real guests."""

from __future__ import annotations

import copy
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import network
from lab.driver import Driver, RunView
from lab.layout import GIT_BRANCH, GIT_REPOSITORY
from lab.services.state_store import StateStore

pytestmark = pytest.mark.lab

VERSION = "v1.36.3+rke2r1"
GATE_SECONDS = 300.0


@pytest.fixture(scope="module")
def kubeconfig(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kubeconfig") / "demo.kubeconfig"
    demo.driver.command("infraflows", "kubeconfig", demo.name, "--output", str(path))
    return path


def kubectl(driver: Driver, kubeconfig: Path, *arguments: str) -> Any:
    kubectl_program = Path(sys.executable).with_name("kubectl")
    argv = [str(kubectl_program), "--kubeconfig", str(kubeconfig), *arguments, "-o", "json"]
    done = network.run_inside(driver.layout.instance, argv, timeout_seconds=60.0)
    return json.loads(done.stdout)


def nodes(driver: Driver, kubeconfig: Path) -> dict[str, str]:
    """Return by name whether each node is ready: `True`, `False` or `Unknown`."""
    return {
        item["metadata"]["name"]: next(
            c["status"] for c in item["status"]["conditions"] if c["type"] == "Ready"
        )
        for item in kubectl(driver, kubeconfig, "get", "nodes")["items"]
    }


def git(demo: Any, *arguments: str) -> str:
    repository = demo.driver.layout.git_directory / GIT_REPOSITORY
    argv = ["git", "-c", "safe.directory=*", f"--git-dir={repository}", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def ledger(demo: Any) -> Path:
    path: Path = demo.driver.layout.ledger_directory / f"{demo.name}.jsonl"
    return path


def lines_of(demo: Any, run: RunView) -> list[tuple[str, str]]:
    entries = [json.loads(line) for line in ledger(demo).read_text().splitlines()]
    return [(e["step"], e["outcome"]) for e in entries if e["run_id"] == run.run_id]


def machine_names(demo: Any) -> list[str]:
    return [vm.name for vm in demo.driver.inventory().of(demo.name).machines]


def test_every_phase_of_the_first_run_ended_well(demo: Any) -> None:
    assert set(demo.first.phases.values()) == {"done"}
    assert list(demo.first.phases) == [
        "preflight", "plan", "gate", "apply", "inventory",
        "configure", "platform", "verify", "record",
    ]  # fmt: skip


def test_all_nodes_are_ready_behind_the_virtual_address(demo: Any, kubeconfig: Path) -> None:
    assert nodes(demo.driver, kubeconfig) == {
        "demo-server-1": "True",
        "demo-server-2": "True",
        "demo-server-3": "True",
        "demo-worker-1": "True",
        "demo-worker-2": "True",
    }
    server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    assert server == f"https://{demo.spec['control_plane']['virtual_ip']}:6443"
    assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600


def test_the_machines_are_spread_over_the_hypervisors(demo: Any) -> None:
    found = {vm.name: vm for vm in demo.driver.inventory().of("demo").machines}
    servers = [found[f"demo-server-{i}"].node for i in (1, 2, 3)]
    workers = [found[f"demo-worker-{i}"].node for i in (1, 2)]
    assert len(set(servers)) == 3
    assert len(set(workers)) == 2
    assert {vm.status for vm in found.values()} == {"running"}
    assert {vm.pool for vm in found.values()} == {"demo"}


def test_the_plan_showed_what_would_be_made(demo: Any) -> None:
    rows = demo.driver.artifacts(demo.first.run_id)["demo-plan"]
    assert {(row["action"], row["machine"]) for row in rows} == {
        ("create", name) for name in machine_names(demo)
    }
    assert "VMID 200, 2 cores, 3072 MiB, 20 GiB, 10.90.0.51/24" in [r["what changes"] for r in rows]


def test_the_report_tells_machines_changes_and_checks(demo: Any) -> None:
    report = demo.driver.artifacts(demo.first.run_id)["demo-report"]
    assert report.startswith("# Bootstrap of demo\n\n**Succeeded** in ")
    assert f"| demo-server-1 | server | pve1 | 10.90.0.51 | {VERSION} | Ready |" in report
    assert "| OpenTofu | 5 of 5 resources |" in report
    assert "✘" not in report
    assert report.count("data:image/svg+xml;base64,") == 2


def test_a_second_run_changes_nothing_in_any_system(demo: Any) -> None:
    artifacts = demo.driver.artifacts(demo.second.run_id)
    report = artifacts["demo-report"]
    assert "**Unchanged**" in report
    assert "No change: the cluster is as its spec says." in report
    assert "| OpenTofu | 0 of 5 resources |" in report
    assert "| Ansible | 0 of " in report
    assert "| Kubernetes | 0 of " in report
    assert "| Git inventory | unchanged |" in report
    assert {row["changed"] for row in artifacts["demo-hosts"]} == {"0"}
    assert {row["action"] for row in artifacts["demo-plan"]} == {"unchanged"}
    assert {row["result"] for row in artifacts["demo-platform"]} == {"unchanged"}
    assert lines_of(demo, demo.second) == [("bootstrap", "no change")]
    assert demo.second.phases["apply"] == "skipped"


def test_every_change_of_the_first_run_is_in_the_ledger(demo: Any) -> None:
    assert lines_of(demo, demo.first) == [
        ("create pool", "changed"),
        ("apply plan", "begins"),
        ("apply plan", "changed"),
        ("commit inventory", "changed"),
        ("publish names", "changed"),
        ("create join tokens", "changed"),
        ("configure machines", "changed"),
        ("store kubeconfig", "changed"),
        ("commit platform", "changed"),
        ("apply platform", "changed"),
        ("bootstrap", "changed"),
    ]


def test_the_ledger_is_verified_offline_and_a_changed_line_is_found(
    demo: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "deployments.cli", "verify-ledger"]
    good = subprocess.run([*command, str(ledger(demo))], capture_output=True, text=True, check=True)
    assert "chain and signatures are right" in good.stdout

    forged = tmp_path / "demo.jsonl"
    forged.write_text(ledger(demo).read_text().replace('"begins"', '"changed"', 1))
    keys = ledger(demo).with_suffix(".keys.json")
    bad = subprocess.run(
        [*command, str(forged), "--keys", str(keys)], capture_output=True, text=True, check=False
    )
    assert bad.returncode == 1
    assert "Unable to trust the ledger" in bad.stderr


def test_the_inventory_in_git_names_the_run_that_made_it(demo: Any) -> None:
    path = "clusters/demo/inventory.yaml"
    message = git(demo, "log", "-1", "--format=%B", GIT_BRANCH, "--", path)
    assert f"Run-Id: {demo.first.run_id}" in message
    inventory = yaml.safe_load(git(demo, "show", f"{GIT_BRANCH}:{path}"))
    assert "demo-server-1" in json.dumps(inventory)
    assert "10.90.0.62" in json.dumps(inventory)


def test_the_state_is_stored_encrypted(demo: Any) -> None:
    store = StateStore(demo.driver.layout.state_directory)
    versions = list(demo.driver.layout.state_directory.rglob("*.json"))
    assert versions
    for version in versions:
        content = version.read_bytes()
        assert b"demo-server" not in content, version
        assert b"10.90.0.51" not in content, version
    assert "encrypted_data" in json.loads(store.read("lab-demo") or b"{}")


def test_the_api_and_every_machine_have_names(demo: Any) -> None:
    assert set(demo.driver.inventory().of("demo").names) == {"demo-api", *machine_names(demo)}


def test_the_command_lists_runs_and_machines(demo: Any) -> None:
    runs = demo.driver.command("infraflows", "runs")
    assert demo.first.run_id in runs
    assert demo.second.run_id in runs
    spec = Path(__file__).parents[2] / "deployments" / "environments" / "lab.yaml"
    machines = demo.driver.command("infraflows", "check-spec", str(spec))
    assert machines.splitlines()[0].startswith("200  demo-server-1  pve1  10.90.0.51  2 cores")


def changed_spec(demo: Any, **workers: Any) -> dict[str, Any]:
    spec = copy.deepcopy(demo.spec)
    spec["workers"].update(workers)
    return spec


def at_the_gate(driver: Driver, run: str) -> RunView:
    return driver.wait_until(run, lambda v: v.state == "PAUSED", "the gate", GATE_SECONDS)


def plan_of(driver: Driver, run: str) -> dict[str, list[str]]:
    rows = driver.artifacts(run)["demo-plan"]
    return {
        action: sorted(row["machine"] for row in rows if row["action"] == action)
        for action in {row["action"] for row in rows}
    }


def test_other_memory_plans_just_the_workers_and_a_rejection_changes_nothing(demo: Any) -> None:
    driver = demo.driver
    driver.set_gate("approval")
    try:
        run = driver.start("bootstrap-cluster/lab", changed_spec(demo, memory_mib=1536))
        at_the_gate(driver, run)
        rows = driver.artifacts(run)["demo-plan"]
        assert plan_of(driver, run) == {"update": ["demo-worker-1", "demo-worker-2"]}
        assert {row["what changes"] for row in rows} == {"memory.0.dedicated: 1024 -> 1536"}
        said = driver.command("infraflows", "approve", run, "--reject", "--by", "Ada")
        assert said.startswith("Rejected plan ")
        ended = driver.wait_end(run)
    finally:
        driver.set_gate("automatic")
    assert ended.state == "FAILED"
    assert "Ada rejected the plan" in ended.message
    assert lines_of(demo, ended) == []


@pytest.fixture(scope="module")
def grown(demo: Any) -> Iterator[RunView]:
    """The cluster with a third worker; as its spec says again afterwards."""
    spec = changed_spec(demo, count=3)
    yield demo.driver.complete(demo.driver.start("bootstrap-cluster/lab", spec))
    if "demo-worker-3" in machine_names(demo):
        run = demo.driver.start("bootstrap-cluster/lab", demo.spec)
        demo.driver.complete(run, is_approved=True)


def test_a_third_worker_is_all_that_is_planned_and_becomes_ready(
    demo: Any, grown: RunView, kubeconfig: Path
) -> None:
    assert plan_of(demo.driver, grown.run_id) == {"create": ["demo-worker-3"]}
    assert nodes(demo.driver, kubeconfig)["demo-worker-3"] == "True"
    assert len(nodes(demo.driver, kubeconfig)) == 6
    # The firewalls of the others let the new one in; RKE2 itself is touched on the new one only.
    others = [line for line in demo.driver.log_lines(grown.run_id) if line.startswith("demo-")]
    others = [line for line in others if not line.startswith("demo-worker-3: ")]
    assert len(others) == 5
    assert all(": hardening: Configure SSH, firewall, " in line for line in others)


def test_a_removed_worker_waits_for_approval_and_leaves_no_node(
    demo: Any, grown: RunView, kubeconfig: Path
) -> None:
    driver = demo.driver
    run = driver.start("bootstrap-cluster/lab", demo.spec)
    at_the_gate(driver, run)
    assert plan_of(driver, run) == {"destroy": ["demo-worker-3"]}
    assert "demo-worker-3" in machine_names(demo)

    said = driver.command("infraflows", "approve", run, "--by", "Ada")
    assert said.startswith("Approved plan ")
    ended = driver.complete(run)

    assert "demo-worker-3" not in machine_names(demo)
    assert sorted(nodes(driver, kubeconfig)) == [
        "demo-server-1", "demo-server-2", "demo-server-3", "demo-worker-1", "demo-worker-2",
    ]  # fmt: skip
    assert ("remove stale nodes", "changed") in lines_of(demo, ended)
    entries = [json.loads(line) for line in ledger(demo).read_text().splitlines()]
    approvals = [
        e["details"]["approved_by"]
        for e in entries
        if e["run_id"] == run and e["step"] == "apply plan" and "approved_by" in e["details"]
    ]
    assert approvals == ["Ada"]
