"""The real OpenTofu and the real provider against the simulator, with encrypted, locked state."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from blocks.state_backend import StateBackend
from blocks.tofu import Progress, TofuSession, TofuWorkspace
from domain.adoption import StateEntry
from domain.errors import Conflict, LifecycleError, TemporaryError
from domain.machines import machines
from domain.ownership import pool_comment
from domain.specs import EXAMPLE, ClusterSpec, parse_spec
from domain.tofu_plan import parse_plan
from lab.toolchain.paths import bin_dir, provider_mirror
from tasks.terraform import workspace
from tasks.terraform.leftovers import settle

TOFU = bin_dir() / "tofu"
PROVIDER = provider_mirror() / "registry.opentofu.org/bpg/proxmox/0.111.1"
SSH_CA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHvZ0nAXuTQsTLRRvx6ABGl9TmXdAjvEVA/Jw1DZtKEY"
STATE_LOGIN = {"username": "tofu", "password": "state-password-canary"}

pytestmark = pytest.mark.skipif(
    not (TOFU.exists() and PROVIDER.exists()), reason="the toolchain is not built on this machine"
)


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory of the test's own, as the worker's may be in use."""
    import shutil
    import tempfile

    made = tempfile.mkdtemp(dir="/dev/shm", prefix="tofu-test-")
    monkeypatch.setenv("INFRAFLOWS_PRIVATE_DIRECTORY", made)
    yield
    shutil.rmtree(made)


@pytest.fixture(autouse=True)
def quiet_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps' helpers log to a run; here is none."""
    import logging

    monkeypatch.setattr("tasks.terraform.leftovers.get_run_logger", lambda: logging.getLogger())


class Cluster:
    """One small cluster on the simulator."""

    def __init__(self, name: str, first_vm_id: int, site: Site) -> None:
        data: dict[str, Any] = copy.deepcopy(EXAMPLE)
        data |= {"name": name, "workers": {"count": 1, "first_address": "10.90.0.61"}}
        data["control_plane"] |= {"count": 1, "memory_mib": 2048, "disk_gib": 10}
        data["proxmox"] |= {"pool": name, "first_vm_id": first_vm_id}
        self.spec: ClusterSpec = parse_spec(data)
        self.site = site
        self.api = site.simulator.block().api(site.simulator.credential)
        self.api.create_pool(name, pool_comment(name))

    def block(self) -> TofuWorkspace:
        return TofuWorkspace(
            binary=str(TOFU),
            provider_mirror=str(provider_mirror()),
            url=self.site.states.url,
            ca_file=self.site.states.ca_file,
            credential="infraflows/lab/state",
        )

    def variables(self) -> dict[str, Any]:
        template = workspace.find_template(self.spec, self.api)
        return workspace.variables(
            "lab", self.spec, template, SSH_CA, ("transit", "infraflows-state")
        )

    def environment(self) -> dict[str, str]:
        credential = self.site.simulator.credential
        return {
            **self.site.transit,
            "PROXMOX_VE_ENDPOINT": self.api.endpoint,
            "PROXMOX_VE_API_TOKEN": f"{credential['token_id']}={credential['token_secret']}",
        }

    def session(self) -> TofuSession:
        return self.block().session(
            f"lab-{self.spec.name}",
            workspace.MODULE,
            self.variables(),
            self.environment(),
            STATE_LOGIN,
            [self.site.states.ca_file],
        )

    def opened(self) -> workspace.Opened:
        return workspace.Opened(self.api, self.session(), self.block(), STATE_LOGIN, 2)

    def state_url(self) -> str:
        return self.site.states.address(f"lab-{self.spec.name}")

    def http(self) -> httpx.Client:
        return httpx.Client(
            verify=self.site.states._verification(),
            auth=(STATE_LOGIN["username"], STATE_LOGIN["password"]),
            trust_env=False,
        )

    def apply_all(self) -> None:
        session = self.session()
        path, _ = session.plan()
        session.apply(path, parallelism=2)


class Site:
    def __init__(self, simulator: Any, states: StateBackend, transit: dict[str, str]) -> None:
        self.simulator, self.states, self.transit = simulator, states, transit


@pytest.fixture
def site(healthy: Any, states: StateBackend, transit: dict[str, str]) -> Site:
    return Site(healthy, states, transit)


def test_a_cluster_is_planned_applied_unchanged_and_destroyed(site: Site) -> None:
    cluster = Cluster("whole", 300, site)
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
    assert session.remove_state(STATE_LOGIN) is False


def test_state_and_plan_are_unreadable_and_no_credential_is_on_disk(site: Site) -> None:
    cluster = Cluster("sealed", 330, site)
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
    site: Site,
) -> None:
    cluster = Cluster("hashed", 360, site)
    first = parse_plan(cluster.session().plan()[1])
    assert parse_plan(cluster.session().plan()[1]).plan_hash == first.plan_hash
    data = cluster.spec.model_dump(mode="json")
    data["workers"]["memory_mib"] = 8192
    cluster.spec = parse_spec(data)
    assert parse_plan(cluster.session().plan()[1]).plan_hash != first.plan_hash


def test_a_lock_of_a_dead_run_on_this_host_is_broken(site: Site) -> None:
    cluster = Cluster("stale", 390, site)
    session = cluster.session()
    held = _lock(f"root@{socket.gethostname()}", "2026-01-01T00:00:00Z")
    with cluster.http() as client:
        assert client.request("LOCK", cluster.state_url(), json=held).status_code == 200
    assert parse_plan(session.plan()[1]).counts == {"create": 2}


def test_a_fresh_lock_of_another_host_is_respected(site: Site) -> None:
    cluster = Cluster("respected", 420, site)
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


def test_a_whole_machine_that_no_state_knows_is_adopted(site: Site) -> None:
    cluster = Cluster("adopted", 450, site)
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


def test_a_half_made_clone_is_removed_and_made_again(site: Site) -> None:
    cluster = Cluster("half", 480, site)
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


def test_a_foreign_machine_in_the_place_is_named_and_left_alone(site: Site) -> None:
    cluster = Cluster("foreign", 510, site)
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


def test_a_failed_clone_is_an_error_that_may_pass_and_what_it_left_is_settled(site: Site) -> None:
    cluster = Cluster("failing", 540, site)
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


def test_an_aborted_clone_that_only_root_can_unlock_is_one_clear_error(site: Site) -> None:
    cluster = Cluster("aborted", 555, site)
    session = cluster.session()
    path, _ = session.plan()
    site.simulator.fault("clone-fails", count="1", vmid="555", leave="machine")
    with pytest.raises(LifecycleError):
        session.apply(path, parallelism=1)
    with pytest.raises(Conflict, match="On pve1 run: qm unlock 555 && qm destroy 555"):
        settle(cluster.spec, cluster.opened())


def test_a_stale_plan_is_a_conflict(site: Site) -> None:
    cluster = Cluster("outdated", 570, site)
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
    site: Site, tmp_path: Path
) -> None:
    cluster = Cluster("killed", 600, site)
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
    session = cluster.session()  # waits until the killed worker's tofu has ended
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


def test_an_api_that_is_away_is_an_error_that_may_pass(site: Site) -> None:
    cluster = Cluster("away", 630, site)
    session = cluster.session()
    path, _ = session.plan()
    site.simulator.fault("api-error", status="596")
    with pytest.raises(TemporaryError) as caught:
        session.apply(path, parallelism=2)
    assert site.simulator.secret not in str(caught.value)


def test_versions_are_told(site: Site) -> None:
    block = Cluster("versions", 660, site).block()
    assert block.version() is not None
    assert block.provider_version() == "0.111.1"


def test_errors_keep_the_family(site: Site) -> None:
    cluster = Cluster("family", 690, site)
    broken = {**cluster.environment(), "BAO_TOKEN": "wrong"}
    with pytest.raises(LifecycleError) as caught:
        cluster.block().session(
            "lab-family", workspace.MODULE, cluster.variables(), broken, STATE_LOGIN, []
        ).plan()
    assert str(caught.value).startswith("Unable to ")
