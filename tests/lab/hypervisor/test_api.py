"""Who may do what, what is refused, and what survives."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from proxmoxer import ProxmoxAPI, ResourceException

from lab.hypervisor import urls
from lab.hypervisor.faults import UnknownFault, main

QEMU = "/nodes/pve1/qemu"
AUDITOR = "audit@pve!reader"
SECRET = "8f6f3f5e-0b43-4f0c-9a39-5d5a1f2b7a11"


def test_a_request_without_a_token_is_401(cluster: Any) -> None:
    answer = cluster.http.get(f"{cluster.url}/api2/json/version")
    assert (answer.status_code, answer.reason_phrase) == (401, "No ticket")


def test_a_wrong_secret_and_an_unknown_token_are_401_in_proxmox_words(cluster: Any) -> None:
    assert cluster.refused("GET", "/version", secret="x") == (401, "invalid token value!")
    status, reason = cluster.refused("GET", "/version", token="a@pve!b")
    assert (status, reason) == (401, "no such token 'b' for user 'a@pve'")


def test_a_missing_privilege_is_403_with_path_and_privilege(cluster: Any) -> None:
    refused = cluster.refused("POST", f"{QEMU}/9000/clone", token=AUDITOR, newid=101)
    assert refused == (403, "Permission check failed (/vms/9000, VM.Clone)")
    assert cluster.get(f"{QEMU}/9000/config", token=AUDITOR)["template"] == 1


def test_only_root_may_set_the_upgrade_flag(cluster: Any) -> None:
    cluster.clone(101)
    refused = cluster.refused("PUT", f"{QEMU}/101/config", ciupgrade=1)
    assert refused == (500, "only root can set 'ciupgrade' config")


def test_permissions_lists_what_the_token_holds(cluster: Any) -> None:
    held = cluster.get("/access/permissions")
    assert held["/vms"]["VM.Clone"] == 1
    assert "VM.Clone" not in held["/storage"]
    below = cluster.get("/access/permissions?path=/vms/101")
    assert "VM.Clone" in below["/vms/101"]


def test_unknown_and_ill_typed_parameters_are_named_all_at_once(cluster: Any) -> None:
    cluster.clone(101)
    answer = cluster.send("PUT", f"{QEMU}/101/config", cores="many", colour="red", sockets=0)
    assert (answer.status_code, answer.reason_phrase) == (400, "Parameter verification failed.")
    body = answer.json()
    assert body["data"] is None
    assert body["errors"] == {
        "cores": "type check ('integer') failed - got 'many'",
        "colour": "property is not defined in schema and the schema does not allow additional"
        " properties",
        "sockets": "value must have a minimum value of 1",
    }


def test_a_missing_parameter_is_named(cluster: Any) -> None:
    answer = cluster.send("POST", f"{QEMU}/9000/clone")
    assert answer.json()["errors"] == {"newid": "property is missing and it is not optional"}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nodes/pve1/lxc"), ("POST", "/cluster/ha/resources"), ("GET", "/access/users")],
)
def test_what_is_not_simulated_is_501_with_its_name(cluster: Any, method: str, path: str) -> None:
    assert cluster.refused(method, path) == (501, f"Method '{method} {path}' not implemented")


def test_a_real_parameter_that_is_not_simulated_is_501_with_its_name(cluster: Any) -> None:
    cluster.clone(101)
    status, reason = cluster.refused("PUT", f"{QEMU}/101/config", hostpci0="0000:01:00")
    assert (status, reason) == (
        501,
        "Parameter 'hostpci0' is not simulated by the lab's hypervisor",
    )


def test_tls_below_1_3_is_refused(cluster: Any) -> None:
    context = ssl.create_default_context(cafile=str(cluster.certificate))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        httpx.Client(verify=context) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.get(f"{cluster.url}/api2/json/version")


def test_next_id_is_a_string_and_says_when_an_id_is_taken(cluster: Any) -> None:
    assert cluster.get("/cluster/nextid") == "100"
    answer = cluster.send("GET", "/cluster/nextid", vmid=9000)
    assert answer.json()["errors"] == {"vmid": "VM 9000 already exists"}


def test_a_pool_with_members_is_not_removed(cluster: Any) -> None:
    cluster.do("POST", "/pools", poolid="demo", comment="c")
    assert cluster.clone(101, pool="demo") == "OK"
    assert cluster.refused("DELETE", "/pools/demo") == (
        500,
        "delete pool failed: pool 'demo' is not empty",
    )
    members = cluster.get("/pools/demo")["members"]
    assert [member["vmid"] for member in members] == [101]
    cluster.do("PUT", "/pools/demo", vms="101", delete=1)
    cluster.do("DELETE", "/pools/demo")
    assert cluster.get("/pools") == []


def test_a_storage_refuses_what_does_not_fit_and_keeps_its_books(cluster: Any) -> None:
    before = cluster.get("/nodes/pve1/storage/vmstore/status")
    cluster.clone(101)
    after = cluster.get("/nodes/pve2/storage/vmstore/status")
    assert after["used"] - before["used"] == 4 * 1024**3 + 4 * 1024**2
    exit_status = cluster.run("PUT", f"{QEMU}/101/resize", disk="scsi0", size="600G")
    assert exit_status == "zfs error: cannot create 'vmstore/vm-101-disk-0': out of space"
    assert "size=4G" in cluster.get(f"{QEMU}/101/config")["scsi0"]


def test_state_survives_a_restart_and_a_running_task_is_found_dead(
    slow_cluster: Any,
) -> None:
    slow_cluster.fault("task-hangs", type="qmstart")
    assert slow_cluster.clone(101) == "OK"
    slow_cluster.do("PUT", f"{QEMU}/101/config", cores=3, ipconfig0="ip=10.1.0.5/24")
    upid = slow_cluster.do("POST", f"{QEMU}/101/status/start")
    slow_cluster.stop()
    slow_cluster.start()
    assert slow_cluster.get(f"{QEMU}/101/config")["cores"] == 3
    status = slow_cluster.get(f"/nodes/pve1/tasks/{upid}/status")
    assert status["status"] == "stopped"
    assert status["exitstatus"] in ("unexpected status", "interrupted by signal")
    assert [fault["name"] for fault in slow_cluster.faults()] == ["task-hangs"]


def test_proxmoxer_reads_words_and_parameter_errors(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    api = ProxmoxAPI(
        "127.0.0.1",
        port=cluster.port,
        user="infraflows@pve",
        token_name="worker",
        token_value=SECRET,
        verify_ssl=str(cluster.certificate),
    )
    assert api.version.get()["version"].startswith("8.4")
    with pytest.raises(ResourceException, match=r"101\.conf' does not exist"):
        api.nodes("pve1").qemu(101).config.get()
    with pytest.raises(ResourceException) as caught:
        api.nodes("pve1").qemu(9000).clone.post(newid=5)
    assert caught.value.errors == {"newid": "value must have a minimum value of 100"}
    upid = api.nodes("pve1").qemu(9000).clone.post(newid=101, full=1, name="demo")
    assert cluster.wait(upid) == "OK"
    assert api.nodes("pve1").tasks(upid).status.get()["exitstatus"] == "OK"


def test_the_agent_answers_from_the_guest_and_says_when_it_cannot(cluster: Any) -> None:
    cluster.clone(101)
    agent = f"{QEMU}/101/agent"
    assert cluster.refused("POST", f"{agent}/ping") == (500, "VM 101 is not running")
    cluster.do("PUT", f"{QEMU}/101/config", ipconfig0="ip=10.1.0.5/24")
    cluster.run("POST", f"{QEMU}/101/status/start")
    (eth0,) = cluster.get(f"{agent}/network-get-interfaces")["result"]
    assert eth0["ip-addresses"][0]["ip-address"] == "10.1.0.5"
    assert cluster.get(f"{agent}/get-host-name") == {"result": {"host-name": "vm101"}}
    cluster.do("POST", f"{agent}/file-write", file="/etc/x", content="héllo")
    assert cluster.get(f"{agent}/file-read", file="/etc/x")["content"] == "hÃ©llo"
    status, reason = cluster.refused("GET", f"{agent}/file-read", file="/nothing")
    assert status == 500
    assert "No such file or directory" in reason
    pid = cluster.do("POST", f"{agent}/exec", command=["cat", "-"], input__data="hello")["pid"]
    for _ in range(100):
        done = cluster.get(f"{agent}/exec-status", pid=pid)
        if done["exited"]:
            break
    assert (done["exitcode"], done["out-data"]) == (0, "hello")
    cluster.run("POST", f"{QEMU}/101/status/suspend")
    assert cluster.refused("POST", f"{agent}/ping") == (500, "QEMU guest agent is not running")
    cluster.run("POST", f"{QEMU}/101/status/stop")
    cluster.do("PUT", f"{QEMU}/101/config", agent="0")
    assert cluster.refused("POST", f"{agent}/ping") == (500, "No QEMU guest agent configured")


def test_a_clone_that_fails_half_way_leaves_what_the_fault_says(cluster: Any) -> None:
    cluster.fault("clone-fails", count=1)
    assert cluster.clone(101) == "unexpected status"
    assert cluster.refused("GET", f"{QEMU}/101/config")[0] == 500
    volumes = [v["volid"] for v in cluster.get("/nodes/pve1/storage/vmstore/content", vmid=101)]
    assert volumes == ["vmstore:vm-101-disk-0"]
    cluster.fault("clone-fails", count=1, leave="machine")
    assert cluster.clone(102) == "unexpected status"
    assert cluster.get(f"{QEMU}/102/config")["lock"] == "clone"
    cluster.fault("clone-fails", count=1, leave="nothing")
    assert cluster.clone(103).startswith("clone failed: ")
    assert cluster.get("/nodes/pve1/storage/vmstore/content", vmid=103) == []
    assert cluster.clone(104) == "OK"


def test_a_clone_over_the_remains_of_a_dead_one_still_works(cluster: Any) -> None:
    cluster.fault("clone-fails", count=1)
    cluster.clone(101)
    assert cluster.clone(101) == "OK"


def test_a_full_storage_fails_the_clone_and_leaves_nothing(cluster: Any) -> None:
    cluster.fault("storage-full", storage="vmstore")
    assert "out of space" in cluster.clone(101)
    assert cluster.get("/nodes/pve1/storage/vmstore/status")["avail"] == 0
    assert cluster.get("/nodes/pve1/storage/vmstore/content", vmid=101) == []
    cluster.clear_faults("storage-full")
    assert cluster.clone(101) == "OK"


def test_a_hanging_task_ends_when_it_is_stopped(cluster: Any) -> None:
    cluster.fault("task-hangs", type="qmclone")
    upid = cluster.do("POST", f"{QEMU}/9000/clone", newid=101, full=1)
    assert cluster.get(f"/nodes/pve1/tasks/{upid}/status")["status"] == "running"
    cluster.do("DELETE", f"/nodes/pve1/tasks/{upid}")
    assert cluster.wait(upid) == "interrupted by signal"


def test_a_hanging_task_goes_on_when_the_fault_is_cleared(cluster: Any) -> None:
    cluster.fault("task-hangs")
    upid = cluster.do("POST", f"{QEMU}/9000/clone", newid=101, full=1)
    assert cluster.get(f"/nodes/pve1/tasks/{upid}/status")["status"] == "running"
    cluster.clear_faults()
    assert cluster.wait(upid) == "OK"


def test_api_errors_strike_as_often_as_they_were_ordered(cluster: Any) -> None:
    cluster.fault("api-error", status="596", count=2, path="/cluster/*")
    assert cluster.refused("GET", "/cluster/nextid") == (596, "Connection timed out")
    assert cluster.refused("GET", "/version")[0] == 200
    assert cluster.refused("GET", "/cluster/nextid")[0] == 596
    assert cluster.refused("GET", "/cluster/nextid")[0] == 200
    assert cluster.faults()[0]["fired"] == 2


def test_an_answer_can_be_lost_after_the_act(cluster: Any) -> None:
    cluster.clone(101)
    cluster.fault("api-error", status="reset", when="after", count=1, method="PUT")
    with pytest.raises(httpx.RemoteProtocolError):
        cluster.send("PUT", f"{QEMU}/101/config", cores=4)
    assert cluster.get(f"{QEMU}/101/config")["cores"] == 4


def test_a_lost_quorum_refuses_changes_and_allows_reads(cluster: Any) -> None:
    cluster.fault("quorum-lost")
    assert cluster.get("/cluster/status")[0]["quorate"] == 0
    refused = cluster.refused("POST", f"{QEMU}/9000/clone", newid=101)
    assert refused == (500, "cluster not ready - no quorum?")
    cluster.clear_faults()
    assert cluster.get("/cluster/status")[0]["quorate"] == 1


def test_a_node_that_is_gone_takes_its_guests_and_is_595(cluster: Any) -> None:
    cluster.running(101)
    cluster.fault("node-offline", node="pve1")
    assert 101 not in cluster.runtime.guests
    assert cluster.refused("GET", f"{QEMU}/101/config") == (595, "No route to host")
    nodes = {entry["node"]: entry["status"] for entry in cluster.get("/nodes")}
    assert nodes == {"pve1": "offline", "pve2": "online", "pve3": "online"}
    (vm,) = [v for v in cluster.get("/cluster/resources", type="vm") if v["vmid"] == 101]
    assert vm["status"] == "unknown"
    assert cluster.get("/cluster/status")[0]["quorate"] == 1
    cluster.fault("node-offline", node="pve2")
    assert cluster.get("/cluster/status")[0]["quorate"] == 0


def test_a_node_that_comes_back_boots_what_is_marked_for_it(cluster: Any) -> None:
    for vmid, onboot in ((101, 1), (102, 0)):
        cluster.running(vmid)
        cluster.do("PUT", f"{QEMU}/{vmid}/config", onboot=onboot)
    cluster.fault("node-offline", node="pve1")
    cluster.clear_faults("node-offline")
    (task,) = [t for t in cluster.get("/cluster/tasks") if t["type"] == "startall"]
    assert cluster.wait(task["upid"]) == "OK"
    assert list(cluster.runtime.guests) == [101]


def test_requests_to_the_address_of_a_node_that_is_gone_are_cut(
    tmp_path: Path, furnish: Any
) -> None:
    addresses = {"pve1": "127.0.0.1", "pve2": "10.0.0.2", "pve3": "10.0.0.3"}
    with furnish(tmp_path, node_addresses=addresses) as own:
        own.fault("node-offline", node="pve1")
        with pytest.raises(httpx.RemoteProtocolError):
            own.send("GET", "/version")
        own.clear_faults()
        assert own.get("/version")["release"] == "8.4"


def test_a_lock_left_by_a_dead_worker_is_taken_away_by_an_administrator(cluster: Any) -> None:
    cluster.fault("clone-fails", count=1, leave="machine")
    cluster.clone(101)
    assert cluster.refused("DELETE", f"{QEMU}/101") == (500, "VM is locked (clone)")
    place = ["--socket", str(cluster.directory / "state" / "faults.sock")]
    assert main([*place, "unlock", "101"]) == 0
    assert cluster.run("DELETE", f"{QEMU}/101", destroy__unreferenced__disks=1) == "OK"
    assert cluster.get("/nodes/pve1/storage/vmstore/content", vmid=101) == []


def test_a_start_that_waited_for_a_removal_finds_nothing(slow_cluster: Any) -> None:
    slow_cluster.clone(101)
    slow_cluster.fault("task-hangs", type="qmdestroy", count=1)
    removal = slow_cluster.do("DELETE", f"{QEMU}/101")
    start = slow_cluster.do("POST", f"{QEMU}/101/status/start")
    slow_cluster.clear_faults()
    assert slow_cluster.wait(removal) == "OK"
    assert "does not exist" in slow_cluster.wait(start)
    assert slow_cluster.refused("GET", f"{QEMU}/101/config")[0] == 500


def test_a_revoked_token_is_401_until_the_fault_is_cleared(cluster: Any) -> None:
    cluster.fault("token-revoked", token="infraflows@pve!worker")
    assert cluster.refused("GET", "/version")[0] == 401
    assert cluster.refused("GET", "/version", token=AUDITOR)[0] == 200
    cluster.clear_faults()
    assert cluster.refused("GET", "/version")[0] == 200


def test_a_machine_locked_by_somebody_else_is_a_lock_timeout(cluster: Any) -> None:
    cluster.clone(101)
    cluster.fault("machine-locked", vmid=101)
    expected = "can't lock file '/var/lock/qemu-server/lock-101.conf' - got timeout"
    assert cluster.refused("PUT", f"{QEMU}/101/config", cores=2) == (500, expected)


def test_an_unknown_fault_is_refused_with_the_known_ones(cluster: Any) -> None:
    with pytest.raises(UnknownFault, match="Known: api-error, clone-fails"):
        cluster.fault("gremlins")
    with pytest.raises(UnknownFault, match="storage"):
        cluster.fault("storage-full")


def test_the_command_line_sets_lists_and_clears(
    cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--socket", str(cluster.directory / "state" / "faults.sock")]
    assert main([*place, "set", "clone-fails", "count=2"]) == 0
    assert main([*place, "list"]) == 0
    assert '"remaining": 2' in capsys.readouterr().out
    assert main([*place, "set", "clone-fails", "nonsense"]) == 1
    assert "name=value" in capsys.readouterr().err
    assert main([*place, "clear"]) == 0
    assert cluster.faults() == []


def test_every_simulated_route_is_in_the_readme() -> None:
    readme = (Path(urls.__file__).parent / "README.md").read_text()
    missing = [
        f"{route.method} {route.path}"
        for route in urls.ROUTES
        if f"`{route.path.removeprefix('/nodes/{node}').removeprefix('/qemu/{vmid}') or '/'}`"
        not in readme
    ]
    assert missing == []
