"""The real OpenTofu and the real provider against the simulator, with encrypted, locked state."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from blocks.tofu import Progress
from domain.adoption import StateEntry
from domain.errors import Conflict, LifecycleError, TemporaryError
from domain.machines import machines
from domain.specs import parse_spec
from domain.tofu_plan import parse_plan
from tasks.terraform import workspace
from tasks.terraform.leftovers import settle

STATE_LOGIN = {"username": "tofu", "password": "state-password-canary"}


def test_a_cluster_is_planned_applied_unchanged_and_destroyed(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("whole", 300)
    session = cluster.session()
    path, document = session.plan()
    plan = parse_plan(document)
    assert plan.counts == {"create": 2}
    assert [(row.name, row.node) for row in plan.rows] == [
        ("whole-server-1", "pve1"),
        ("whole-worker-1", "pve2"),
    ]
    assert "10.90.0.51/24" in plan.rows[0].changes
    events: list[Progress] = []
    session.apply(path, parallelism=2, on_progress=events.append)
    assert {e.address for e in events if e.stage == "complete"} == {r.address for r in plan.rows}

    by_id = {vm.vm_id: vm for vm in cluster.api.machines()}
    for machine in machines(cluster.spec):
        made = by_id[machine.vm_id]
        assert made.name == machine.name
        assert made.is_running
        assert made.pool == "whole"
        assert {"infraflows", "cluster-whole"} <= made.tags
        assert made.mac_addresses == {machine.mac_address}
        assert made.addresses == {machine.address}
    guest = site.simulator.runtime.guests[300]
    assert guest.user == "infraflows"
    assert guest.ssh_keys[0].startswith('cert-authority,principals="infraflows" ssh-ed25519 ')
    cards = cluster.api.agent_interfaces(300, "pve1")
    assert "10.90.0.51" in cards[0].addresses
    assert cluster.api.agent_read_file(300, "pve1", "/etc/ssh/ssh_host_ed25519_key.pub")

    assert parse_plan(cluster.session().plan()[1]).is_empty
    assert session.state_machines() == {
        "whole-server-1": StateEntry(300),
        "whole-worker-1": StateEntry(310),
    }
    with pytest.raises(Conflict, match="still holds whole-server-1, whole-worker-1"):
        session.remove_state(STATE_LOGIN)

    path, document = session.plan(destroy=True)
    assert parse_plan(document).destroys == 2
    session.apply(path, parallelism=2)
    assert not {300, 310} & {vm.vm_id for vm in cluster.api.machines()}
    assert session.remove_state(STATE_LOGIN) is True
    assert cluster.session().remove_state(STATE_LOGIN) is False


def test_state_and_plan_are_unreadable_and_no_credential_is_on_disk(
    site: Any, make_cluster: Any
) -> None:
    cluster = make_cluster("sealed", 330)
    session = cluster.session()
    path, _ = session.plan()
    session.apply(path, parallelism=2)
    with cluster.http() as client:
        state = client.get(cluster.state_url()).text
    assert "encrypted_data" in state
    assert "sealed-server-1" not in state
    secrets = [site.simulator.secret, site.transit["BAO_TOKEN"], STATE_LOGIN["password"]]
    directory = cluster.block().directory("lab-sealed")
    files = [file for file in directory.rglob("*") if file.is_file() and not file.is_symlink()]
    assert path in files
    for file in files:
        content = file.read_bytes()
        assert not [s for s in secrets if s.encode() in content], file
        if file.suffix == ".tfplan":
            assert b"sealed-server-1" not in content


def test_the_plan_hash_is_the_same_when_nothing_changed_and_another_when_it_did(
    site: Any, make_cluster: Any
) -> None:
    cluster = make_cluster("hashed", 360)
    first = parse_plan(cluster.session().plan()[1])
    assert parse_plan(cluster.session().plan()[1]).plan_hash == first.plan_hash
    data = cluster.spec.model_dump(mode="json")
    data["workers"]["memory_mib"] = 8192
    cluster.spec = parse_spec(data)
    assert parse_plan(cluster.session().plan()[1]).plan_hash != first.plan_hash


def test_a_lock_of_a_dead_run_on_this_host_is_broken(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("stale", 390)
    session = cluster.session()
    held = _lock(f"root@{socket.gethostname()}", "2026-01-01T00:00:00Z")
    with cluster.http() as client:
        assert client.request("LOCK", cluster.state_url(), json=held).status_code == 200
    assert parse_plan(session.plan()[1]).counts == {"create": 2}


def test_a_fresh_lock_of_another_host_is_respected(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("respected", 420)
    session = cluster.session()
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with cluster.http() as client:
        client.request("LOCK", cluster.state_url(), json=_lock("ann@workstation", now))
        with pytest.raises(Conflict, match="ann@workstation holds the state's lock"):
            session.plan()
        client.request("UNLOCK", cluster.state_url())


def _lock(who: str, created: str) -> dict[str, str]:
    return {
        "ID": "11111111-2222-4333-8444-555555555555",
        "Operation": "OperationTypeApply",
        "Info": "",
        "Who": who,
        "Version": "1.12.6",
        "Created": created,
        "Path": "",
    }


def test_a_whole_machine_that_no_state_knows_is_adopted(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("adopted", 450)
    cluster.apply_all()
    with cluster.http() as client:
        client.delete(cluster.state_url())
    told = settle(cluster.spec, cluster.opened())
    assert [sentence.split(":")[0] for sentence in told] == [
        "adopted-server-1 (450 on pve1) was adopted",
        "adopted-worker-1 (460 on pve2) was adopted",
    ]
    after = parse_plan(cluster.session().plan()[1])
    assert after.destroys == 0
    assert "create" not in after.counts
    assert settle(cluster.spec, cluster.opened()) == []


def test_a_half_made_clone_is_removed_and_made_again(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("half", 480)
    template = workspace.find_template(cluster.spec, cluster.api)
    upid = cluster.api._http.post(
        "clone",
        f"nodes/{template.node}/qemu/{template.vm_id}/clone",
        newid=480,
        name="half-server-1",
        full=1,
        pool="half",
    )
    cluster.api.wait_task(upid, "the clone")
    told = settle(cluster.spec, cluster.opened())
    assert told == [
        "half-server-1 (480 on pve1) was removed: it is half-made: it never got its address"
    ]
    cluster.apply_all()
    assert parse_plan(cluster.session().plan()[1]).is_empty


def test_a_foreign_machine_in_the_place_is_named_and_left_alone(
    site: Any, make_cluster: Any
) -> None:
    cluster = make_cluster("foreign", 510)
    template = workspace.find_template(cluster.spec, cluster.api)
    upid = cluster.api._http.post(
        "clone",
        f"nodes/{template.node}/qemu/{template.vm_id}/clone",
        newid=510,
        name="somebody-elses",
        full=1,
    )
    cluster.api.wait_task(upid, "the clone")
    with pytest.raises(Conflict, match="VMID 510 is 'somebody-elses', which is not this cluster's"):
        settle(cluster.spec, cluster.opened())
    assert cluster.api.machine(510).name == "somebody-elses"


def test_a_failed_clone_is_an_error_that_may_pass_and_what_it_left_is_settled(
    site: Any, make_cluster: Any
) -> None:
    cluster = make_cluster("failing", 540)
    session = cluster.session()
    path, _ = session.plan()
    site.simulator.fault("clone-fails", count="1", leave="disk")
    with pytest.raises(TemporaryError, match="apply the plan of lab-failing"):
        session.apply(path, parallelism=1)
    site.simulator.heal()
    settle(cluster.spec, cluster.opened())
    cluster.apply_all()
    assert parse_plan(cluster.session().plan()[1]).is_empty
    names = [vm.name for vm in cluster.api.machines() if vm.name.startswith("failing-")]
    assert sorted(names) == ["failing-server-1", "failing-worker-1"]


def test_an_aborted_clone_that_only_root_can_unlock_is_one_clear_error(
    site: Any, make_cluster: Any
) -> None:
    cluster = make_cluster("aborted", 555)
    session = cluster.session()
    path, _ = session.plan()
    site.simulator.fault("clone-fails", count="1", vmid="555", leave="machine")
    with pytest.raises(LifecycleError):
        session.apply(path, parallelism=1)
    with pytest.raises(Conflict, match="On pve1 run: qm unlock 555 && qm destroy 555"):
        settle(cluster.spec, cluster.opened())


def test_a_stale_plan_is_a_conflict(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("outdated", 570)
    session = cluster.session()
    path, _ = session.plan()
    session.apply(path, parallelism=2)
    with pytest.raises(Conflict, match="stale"):
        session.apply(path, parallelism=2)


KILLED = """
import json, sys
from pathlib import Path
from blocks.tofu import TofuWorkspace
given = json.loads(Path(sys.argv[1]).read_text())
session = TofuWorkspace(**given["block"]).session(
    given["name"], Path(given["module"]), given["variables"], given["environment"],
    given["login"], given["ca_files"])
path, _ = session.plan()
print("applying", flush=True)
session.apply(path, parallelism=2)
"""


def test_when_the_worker_is_killed_tofu_ends_and_the_next_run_converges(
    site: Any, make_cluster: Any, tmp_path: Path
) -> None:
    cluster = make_cluster("killed", 600)
    given = tmp_path / "given.json"
    given.write_text(
        json.dumps(
            {
                "block": cluster.block().model_dump(mode="json", exclude={"block_type_slug"}),
                "name": "lab-killed",
                "module": str(workspace.MODULE),
                "variables": cluster.variables(),
                "environment": cluster.environment(),
                "login": STATE_LOGIN,
                "ca_files": [site.states.ca_file],
            }
        )
    )
    site.simulator.fault("task-hangs", type="qmclone", count="1")
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(given)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "applying\n"
    _until(lambda: any(vm.vm_id == 600 for vm in cluster.api.machines()))
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    site.simulator.heal()
    session = cluster.session()
    session.state_machines()  # waits until the killed worker's tofu has ended
    assert not _processes_in(cluster.block().directory("lab-killed"))
    settle(cluster.spec, cluster.opened())
    path, document = session.plan()
    assert parse_plan(document).destroys == 0
    session.apply(path, parallelism=2)
    assert parse_plan(session.plan()[1]).is_empty
    names = [vm.name for vm in cluster.api.machines() if vm.name.startswith("killed-")]
    assert sorted(names) == ["killed-server-1", "killed-worker-1"]


def _until(happens: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.05)


def _processes_in(directory: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == directory:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_an_api_that_is_away_is_an_error_that_may_pass(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("away", 630)
    session = cluster.session()
    path, _ = session.plan()
    site.simulator.fault("api-error", status="596")
    with pytest.raises(TemporaryError) as caught:
        session.apply(path, parallelism=2)
    assert site.simulator.secret not in str(caught.value)


def test_versions_are_told(site: Any, make_cluster: Any) -> None:
    block = make_cluster("versions", 660).block()
    assert block.version() is not None
    assert block.provider_version() == "0.111.1"


def test_errors_keep_the_family(site: Any, make_cluster: Any) -> None:
    cluster = make_cluster("family", 690)
    broken = {**cluster.environment(), "BAO_TOKEN": "wrong"}
    with pytest.raises(LifecycleError) as caught:
        cluster.block().session(
            "lab-family", workspace.MODULE, cluster.variables(), broken, STATE_LOGIN, []
        ).plan()
    assert str(caught.value).startswith("Unable to ")
