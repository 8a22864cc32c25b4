"""Machines: cloned, configured, started, snapshotted, moved, backed up and removed."""

from __future__ import annotations

import threading
from typing import Any

QEMU = "/nodes/pve1/qemu"
GIB = 1024**3


def test_a_clone_is_a_task_that_ends_ok_and_leaves_a_typed_unlocked_machine(cluster: Any) -> None:
    assert cluster.clone(101) == "OK"
    config = cluster.get(f"{QEMU}/101/config")
    assert config["cores"] == 1
    assert config["memory"] == "1024"
    assert config["scsi0"] == "vmstore:vm-101-disk-0,size=4G"
    assert config["ide2"].startswith("vmstore:vm-101-cloudinit,media=cdrom")
    assert "lock" not in config
    assert "template" not in config
    template = cluster.get(f"{QEMU}/9000/config")
    assert config["net0"] != template["net0"]
    assert config["smbios1"] != template["smbios1"]


def test_a_clone_writes_progress_into_its_log(cluster: Any) -> None:
    upid = cluster.do("POST", f"{QEMU}/9000/clone", newid=101, full=1)
    cluster.wait(upid)
    lines = [entry["t"] for entry in cluster.get(f"/nodes/pve1/tasks/{upid}/log")]
    assert lines[0] == "create full clone of drive scsi0 (vmstore:base-9000-disk-0)"
    assert "transferred 4.0 GiB of 4.0 GiB (100.00%)" in lines
    assert lines[-1] == "TASK OK"


def test_a_taken_id_is_refused_in_proxmox_words(cluster: Any) -> None:
    cluster.clone(101)
    status, reason = cluster.refused("POST", f"{QEMU}/9000/clone", newid=101)
    assert (status, reason) == (500, "unable to create VM 101: config file already exists")


def test_a_missing_machine_is_500_with_does_not_exist(cluster: Any) -> None:
    expected = (500, "Configuration file 'nodes/pve1/qemu-server/101.conf' does not exist")
    assert cluster.refused("GET", f"{QEMU}/101/config") == expected
    assert cluster.refused("GET", f"{QEMU}/101/status/current") == expected
    assert cluster.refused("DELETE", f"{QEMU}/101") == expected


def test_the_providers_big_put_is_taken_and_absent_keys_may_be_deleted(cluster: Any) -> None:
    cluster.clone(101)
    put: dict[str, Any] = {
        "agent": "enabled=1,fstrim_cloned_disks=0,type=virtio",
        "cores": 2,
        "memory": 2048,
        "net0": "model=virtio,bridge=vmbr0,firewall=0,macaddr=BC:24:11:00:00:01,tag=30",
        "ide2": "file=vmstore:cloudinit,media=cdrom",
        "scsi0": "file=vmstore:vm-101-disk-0,size=4294967296,discard=on",
        "ipconfig0": "gw=10.1.0.1,ip=10.1.0.5/24",
        "sshkeys": "ssh-ed25519%20AAAA%20someone",
        "ciuser": "infraflows",
        "tags": "env-lab;infraflows",
        "delete": "balloon,ide1,numa3,cicustom",
    }
    assert cluster.do("PUT", f"{QEMU}/101/config", **put) is None
    config = cluster.get(f"{QEMU}/101/config")
    assert config["cores"] == 2
    assert config["net0"] == "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=0,tag=30"
    assert config["scsi0"] == "vmstore:vm-101-disk-0,discard=on,size=4G"
    assert config["ide2"] == "vmstore:vm-101-cloudinit,media=cdrom,size=4M"
    assert config["tags"] == "env-lab;infraflows"


def test_the_guest_gets_what_the_configuration_says(cluster: Any) -> None:
    cluster.clone(101, name="demo-server-1")
    cluster.do(
        "PUT",
        f"{QEMU}/101/config",
        ciuser="infraflows",
        sshkeys="ssh-ed25519%20AAAA%20a%0Assh-ed25519%20BBBB%20b",
        ipconfig0="ip=10.1.0.5/24,gw=10.1.0.1",
        nameserver="10.1.0.2 10.1.0.3",
        searchdomain="lab.internal",
        net0="virtio,bridge=vmbr0,tag=12",
        cores=2,
        memory=2048,
    )
    assert cluster.run("POST", f"{QEMU}/101/status/start") == "OK"
    guest = cluster.runtime.guests[101]
    assert guest.ssh_keys == ("ssh-ed25519 AAAA a", "ssh-ed25519 BBBB b")
    assert guest.addresses == ("10.1.0.5/24",)
    assert (guest.gateway, guest.vlan, guest.user) == ("10.1.0.1", 12, "infraflows")
    assert guest.nameservers == ("10.1.0.2", "10.1.0.3")
    assert (guest.cores, guest.memory_mib, guest.name) == (2, 2048, "demo-server-1")
    assert guest.disk_id == "vmstore.vm-101-disk-0"


def test_a_password_is_shown_to_nobody_and_given_to_the_guest_as_a_hash(cluster: Any) -> None:
    cluster.clone(101)
    cluster.do("PUT", f"{QEMU}/101/config", cipassword="planted-secret", ipconfig0="ip=10.1.0.5/24")
    assert cluster.get(f"{QEMU}/101/config")["cipassword"] == "**********"
    cluster.run("POST", f"{QEMU}/101/status/start")
    assert cluster.runtime.guests[101].password_hash.startswith("$5$")
    state = b"".join(path.read_bytes() for path in (cluster.directory / "state").glob("cluster*"))
    assert b"planted-secret" not in state


def test_a_resize_in_bytes_is_stored_in_gigabytes_and_reaches_the_disk(cluster: Any) -> None:
    cluster.clone(101)
    assert cluster.run("PUT", f"{QEMU}/101/resize", disk="scsi0", size=str(10 * GIB)) == "OK"
    assert "size=10G" in cluster.get(f"{QEMU}/101/config")["scsi0"]
    assert cluster.runtime.disks["vmstore.vm-101-disk-0"]["size"] == 10 * GIB
    assert cluster.run("PUT", f"{QEMU}/101/resize", disk="scsi0", size="+2G") == "OK"
    assert cluster.runtime.disks["vmstore.vm-101-disk-0"]["size"] == 12 * GIB
    exit_status = cluster.run("PUT", f"{QEMU}/101/resize", disk="scsi0", size="5G")
    assert exit_status == "shrinking disks is not supported"


def test_a_running_machine_takes_cores_only_at_its_next_start(cluster: Any) -> None:
    cluster.running(101)
    cluster.do("PUT", f"{QEMU}/101/config", cores=4, description="now")
    assert cluster.get(f"{QEMU}/101/config", current=1)["cores"] == 1
    assert cluster.get(f"{QEMU}/101/config")["cores"] == 4
    assert cluster.get(f"{QEMU}/101/config", current=1)["description"] == "now"
    pending = {entry["key"]: entry for entry in cluster.get(f"{QEMU}/101/pending")}
    assert pending["cores"] == {"key": "cores", "value": "1", "pending": "4"}
    assert cluster.run("POST", f"{QEMU}/101/status/reboot") == "OK"
    assert cluster.runtime.guests[101].cores == 4


def test_a_stale_digest_is_refused(cluster: Any) -> None:
    cluster.clone(101)
    digest = cluster.get(f"{QEMU}/101/config")["digest"]
    cluster.do("PUT", f"{QEMU}/101/config", cores=2, digest=digest)
    status, reason = cluster.refused("PUT", f"{QEMU}/101/config", cores=3, digest=digest)
    assert status == 500
    assert reason.startswith("detected modified configuration")


def test_power_acts_change_the_guests_state(cluster: Any) -> None:
    cluster.running(101)
    assert cluster.get(f"{QEMU}/101/status/current")["status"] == "running"
    assert cluster.run("POST", f"{QEMU}/101/status/start") == "VM 101 already running"
    assert cluster.run("POST", f"{QEMU}/101/status/suspend") == "OK"
    assert cluster.get(f"{QEMU}/101/status/current")["qmpstatus"] == "paused"
    assert cluster.run("POST", f"{QEMU}/101/status/resume") == "OK"
    assert cluster.run("POST", f"{QEMU}/101/status/reset") == "OK"
    assert cluster.run("POST", f"{QEMU}/101/status/shutdown") == "OK"
    assert cluster.get(f"{QEMU}/101/status/current")["status"] == "stopped"


def test_a_deaf_guest_is_shut_down_only_by_force(cluster: Any) -> None:
    cluster.running(101)
    cluster.runtime.deaf.add(101)
    refused = cluster.run("POST", f"{QEMU}/101/status/shutdown", timeout=1)
    assert refused == "VM quit/powerdown failed - got timeout"
    assert cluster.run("POST", f"{QEMU}/101/status/shutdown", timeout=1, forceStop=1) == "OK"
    assert 101 not in cluster.runtime.guests


def test_a_running_machine_is_not_destroyed(cluster: Any) -> None:
    cluster.running(101)
    expected = (500, "VM 101 is running - destroy failed")
    assert cluster.refused("DELETE", f"{QEMU}/101") == expected
    cluster.run("POST", f"{QEMU}/101/status/stop")
    assert cluster.run("DELETE", f"{QEMU}/101/", purge=1, destroy__unreferenced__disks=1) == "OK"
    assert cluster.refused("GET", f"{QEMU}/101/config")[0] == 500
    assert list(cluster.runtime.disks) == ["vmstore.base-9000-disk-0"]
    volumes = cluster.get("/nodes/pve1/storage/vmstore/content")
    assert {volume["vmid"] for volume in volumes} == {9000}


def test_a_template_is_neither_started_nor_removed_under_its_linked_clones(cluster: Any) -> None:
    assert "template" in cluster.run("POST", f"{QEMU}/9000/status/start")
    assert cluster.clone(101, full=0) == "OK"
    disk = cluster.get(f"{QEMU}/101/config")["scsi0"]
    assert disk.startswith("vmstore:base-9000-disk-0/vm-101-disk-0")
    exit_status = cluster.run("DELETE", f"{QEMU}/9000")
    assert "still in use by linked cloned" in exit_status


def test_a_snapshot_brings_back_disk_and_configuration(cluster: Any) -> None:
    cluster.running(101)
    disk = cluster.runtime.disks["vmstore.vm-101-disk-0"]
    disk["content"] = "good"
    assert cluster.run("POST", f"{QEMU}/101/snapshot", snapname="before") == "OK"
    disk["content"] = "bad"
    cluster.do("PUT", f"{QEMU}/101/config", description="changed")
    assert cluster.run("POST", f"{QEMU}/101/snapshot/before/rollback") == "OK"
    assert disk["content"] == "good"
    assert "description" not in cluster.get(f"{QEMU}/101/config")
    names = [entry["name"] for entry in cluster.get(f"{QEMU}/101/snapshot")]
    assert names == ["before", "current"]
    assert cluster.run("DELETE", f"{QEMU}/101/snapshot/before") == "OK"
    assert disk["snapshots"] == {}


def test_a_rollback_to_an_unknown_snapshot_fails_in_its_task(cluster: Any) -> None:
    cluster.clone(101)
    exit_status = cluster.run("POST", f"{QEMU}/101/snapshot/nothing/rollback")
    assert exit_status == "snapshot 'nothing' does not exist"


def test_a_migration_moves_the_machine(cluster: Any) -> None:
    cluster.running(101)
    status, reason = cluster.refused("POST", f"{QEMU}/101/migrate", target="pve2")
    assert (status, reason) == (500, "can't migrate running VM without --online")
    assert cluster.run("POST", f"{QEMU}/101/migrate", target="pve2", online=1) == "OK"
    assert cluster.get("/nodes/pve2/qemu/101/status/current")["status"] == "running"
    assert cluster.refused("GET", f"{QEMU}/101/config")[0] == 500


def test_a_backup_is_content_and_its_restore_brings_the_data_back(cluster: Any) -> None:
    cluster.running(101)
    cluster.runtime.disks["vmstore.vm-101-disk-0"]["content"] = "precious"
    assert cluster.run("POST", "/nodes/pve1/vzdump", vmid="101", storage="local") == "OK"
    (backup,) = cluster.get("/nodes/pve1/storage/local/content", content="backup")
    assert backup["vmid"] == 101
    assert cluster.get("/nodes/pve2/storage/local/content", content="backup") == []
    assert 101 in cluster.runtime.guests
    assert 101 not in cluster.runtime.paused
    exit_status = cluster.run("POST", QEMU, vmid=150, archive=backup["volid"], unique=1)
    assert exit_status == "OK"
    assert cluster.runtime.disks["vmstore.vm-150-disk-0"]["content"] == "precious"
    old, new = cluster.get(f"{QEMU}/101/config"), cluster.get(f"{QEMU}/150/config")
    assert old["net0"] != new["net0"]
    assert cluster.run("DELETE", f"/nodes/pve1/storage/local/content/{backup['volid']}") == "OK"
    assert cluster.get("/nodes/pve1/storage/local/content") == []


def test_a_machine_is_created_from_nothing(cluster: Any) -> None:
    created = cluster.run(
        "POST", QEMU, vmid=120, name="fresh", scsi0="vmstore:8", net0="virtio,bridge=vmbr0"
    )
    assert created == "OK"
    assert cluster.get(f"{QEMU}/120/config")["scsi0"] == "vmstore:vm-120-disk-0,size=8G"
    assert cluster.run("POST", f"{QEMU}/120/template") == "OK"
    assert cluster.get(f"{QEMU}/120/config")["scsi0"] == "vmstore:base-120-disk-0,size=8G"


def test_clones_of_one_source_wait_for_its_lock_and_give_up(slow_cluster: Any) -> None:
    upids = [
        slow_cluster.do("POST", f"{QEMU}/9000/clone", newid=vmid, full=1) for vmid in (101, 102)
    ]
    ends = [slow_cluster.wait(upid) for upid in upids]
    text = "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout"
    assert ends == ["OK", text]


def test_a_machine_that_is_being_cloned_is_locked(slow_cluster: Any) -> None:
    upid = slow_cluster.do("POST", f"{QEMU}/9000/clone", newid=101, full=1)
    poll = threading.Event()
    while slow_cluster.refused("GET", f"{QEMU}/101/config")[0] != 200:
        poll.wait(0.01)
    assert slow_cluster.get(f"{QEMU}/101/config")["lock"] == "clone"
    assert slow_cluster.refused("POST", f"{QEMU}/101/status/start") == (
        500,
        "VM is locked (clone)",
    )
    assert slow_cluster.wait(upid) == "OK"


def test_a_stopped_clone_removes_what_it_made(slow_cluster: Any) -> None:
    upid = slow_cluster.do("POST", f"{QEMU}/9000/clone", newid=101, full=1)
    poll = threading.Event()
    while len(slow_cluster.get("/nodes/pve1/storage/vmstore/content")) < 4:
        poll.wait(0.01)
    slow_cluster.do("DELETE", f"/nodes/pve1/tasks/{upid}")
    assert slow_cluster.wait(upid) == "interrupted by signal"
    assert slow_cluster.refused("GET", f"{QEMU}/101/config")[0] == 500
    volumes = slow_cluster.get("/nodes/pve1/storage/vmstore/content")
    assert {volume["vmid"] for volume in volumes} == {9000}
