"""Guests are confined on every layout of control groups."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.hypervisor.guests.cgroups import CgroupError, GuestCgroup, Hierarchy, hierarchies, joining


@pytest.fixture(autouse=True)
def _no_guest_outlives_its_test():
    """No guest is booted here."""


def _v2_tree(root: Path) -> Hierarchy:
    for directory in (root, root / "lab", root / "lab/101"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.subtree_control").write_text("")
    return Hierarchy(root, frozenset({"cpu", "memory"}), is_v2=True)


def test_limits_are_written_in_the_words_of_v2(tmp_path):
    GuestCgroup("lab/101", [_v2_tree(tmp_path)]).create(cores=2, memory_mib=512)
    assert (tmp_path / "lab/101/cpu.max").read_text() == "200000 100000"
    assert (tmp_path / "lab/101/memory.max").read_text() == str(512 * 1024**2)
    for parent in (tmp_path, tmp_path / "lab"):
        assert (parent / "cgroup.subtree_control").read_text() in ("+cpu", "+memory")
    assert (tmp_path / "lab/101/cgroup.subtree_control").read_text() == ""


def test_limits_are_written_in_the_words_of_v1(tmp_path):
    cpu = Hierarchy(tmp_path / "cpu", frozenset({"cpu"}), is_v2=False)
    memory = Hierarchy(tmp_path / "memory", frozenset({"memory"}), is_v2=False)
    GuestCgroup("lab/101", [cpu, memory]).create(cores=3, memory_mib=256)
    assert (tmp_path / "cpu/lab/101/cpu.cfs_quota_us").read_text() == "300000"
    assert (tmp_path / "memory/lab/101/memory.limit_in_bytes").read_text() == str(256 * 1024**2)


def test_a_machine_without_the_memory_controller_is_refused_by_name(tmp_path):
    cpu = Hierarchy(tmp_path / "cpu", frozenset({"cpu"}), is_v2=False)
    with pytest.raises(CgroupError, match="memory controller"):
        GuestCgroup("lab/101", [cpu]).create(memory_mib=256)


def test_the_hierarchies_leave_out_cpuset_and_read_both_versions(tmp_path):
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb\n")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "cgroup /c/memory cgroup rw,relatime,memory 0 0\n"
        "cgroup /c/cpuset cgroup rw,relatime,cpuset 0 0\n"
        "cgroup /c/cpu cgroup rw,nosuid,cpu,cpuacct 0 0\n"
        f"cgroup2 {tmp_path}/unified cgroup2 rw 0 0\n"
        "proc /proc proc rw 0 0\n"
    )
    found = {str(h.root): (h.controllers, h.is_v2) for h in hierarchies(mounts)}
    assert found == {
        "/c/memory": ({"memory"}, False),
        "/c/cpu": ({"cpu", "cpuacct"}, False),
        f"{tmp_path}/unified": ({"hugetlb"}, True),
    }


@pytest.mark.lab
@pytest.mark.parametrize("is_v2", [False, True])
def test_a_group_freezes_and_kills_on_the_real_hierarchies(is_v2):
    layout = [
        h for h in hierarchies() if h.is_v2 is is_v2 and (is_v2 or "freezer" in h.controllers)
    ]
    if not layout:
        pytest.skip("this machine does not mount that version")
    group = GuestCgroup("infraflows-test-freezer/1", layout)
    for hierarchy in layout:
        (hierarchy.root / "infraflows-test-freezer/1").mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(joining(group.procs_files(), ["sleep", "600"])) as sleeper:
        while sleeper.pid not in group.processes():
            assert sleeper.poll() is None
        group.set_frozen(True)
        assert group.is_frozen()
        group.kill_all()
        assert sleeper.wait(timeout=5) == -9
    GuestCgroup("infraflows-test-freezer", layout).remove()
    assert not any((h.root / "infraflows-test-freezer").exists() for h in layout)
