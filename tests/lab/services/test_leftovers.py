"""What a lab left is read from the kernel's own tables, and nobody else's things are counted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab import leftovers
from lab.layout import Layout
from lab.lifecycle import _purge
from lab.preflight import HOME_MARK
from lab.services.processes import SERVICE_MARK

_TABLE = """\
24 1 8:1 / / rw - ext4 /dev/sda1 rw
90 24 0:40 / /var/lab/guests/101 rw - overlay overlay rw
91 90 0:41 / /var/lab/guests/101/root\\040dir rw - overlay overlay rw
92 24 0:42 / /var/lab-2/guests/101 rw - overlay overlay rw
93 24 0:43 / /var/lab rw - tmpfs tmpfs rw
"""


def test_mounts_are_found_deepest_first_and_a_neighbours_are_not(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(_TABLE)
    assert leftovers.mounts_under(Path("/var/lab"), table) == [
        "/var/lab/guests/101/root dir",
        "/var/lab/guests/101",
        "/var/lab",
    ]


def test_a_marked_process_is_a_leftover_and_is_swept(layout: Layout) -> None:
    process = subprocess.Popen(
        ["sleep", "1000"],
        env={SERVICE_MARK: f"{layout.instance}:worker", "PATH": os.environ["PATH"]},
    )
    found = leftovers.find(layout)
    assert process.pid in found.pids
    assert any("sleep 1000" in line for line in found.lines())
    leftovers.sweep(layout)
    assert process.wait(timeout=5) != 0
    assert not leftovers.find(layout)


def test_nothing_is_left_of_a_lab_that_never_was(layout: Layout) -> None:
    assert not leftovers.find(layout)
    assert leftovers.sweep(layout) == []


def test_a_directory_that_is_no_labs_home_is_not_deleted(layout: Layout) -> None:
    layout.home.mkdir()
    (layout.home / "thesis.tex").write_text("years of work")
    assert "does not look like a lab's home" in _purge(layout)[0]
    assert (layout.home / "thesis.tex").exists()


def test_a_home_is_not_deleted_through_a_mount(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.home.mkdir()
    (layout.home / HOME_MARK).touch()
    monkeypatch.setattr(leftovers, "mounts_under", lambda home: [f"{home}/guests/root"])
    assert "still mounted" in _purge(layout)[0]
    assert layout.home.exists()


def test_a_purge_that_was_cut_off_can_be_repeated(layout: Layout) -> None:
    (layout.home / "postgresql").mkdir(parents=True)
    (layout.home / HOME_MARK).touch()
    assert _purge(layout) == []
    assert not layout.home.exists()
    assert _purge(layout) == []
