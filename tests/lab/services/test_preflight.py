"""What is missing is told before anything is touched, all at once and with its remedy."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from lab.layout import Layout
from lab.preflight import HOME_MARK, Machine, PreflightFailed, check
from lab.services.catalogue import SERVICES, with_needs
from lab.services.processes import Identity
from lab.services.service import Record

GIB = 1024**3
GOOD = Machine(
    platform="linux",
    effective_user=0,
    free_disk_bytes=lambda _: 50 * GIB,
    available_memory_bytes=lambda: 16 * GIB,
    has_program=lambda _: True,
    is_port_taken=lambda _: False,
)
SOME = with_needs(["ui", "openbao"])


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    (cache / "bin").mkdir(parents=True)
    (cache / "bin/tofu").touch()
    (cache / "image/current").mkdir(parents=True)
    monkeypatch.setenv("INFRAFLOWS_CACHE", str(cache))
    return cache


def problems(layout: Layout, machine: Machine, services: object = SERVICES) -> list[str]:
    with pytest.raises(PreflightFailed) as caught:
        check(layout, services, machine)  # type: ignore[arg-type]
    return list(caught.value.problems)


def test_a_machine_that_has_everything_passes(layout: Layout) -> None:
    check(layout, SERVICES, GOOD)
    assert not layout.home.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"platform": "darwin"}, "needs Linux"),
        ({"effective_user": 1000}, "Run it as root"),
        ({"free_disk_bytes": lambda _: GIB}, "1.0 GiB are free"),
        ({"available_memory_bytes": lambda: 2 * GIB}, "2.0 GiB of memory"),
        ({"has_program": lambda name: name != "named"}, "Missing: named. Run lab/setup.sh"),
        ({"is_port_taken": lambda _: True}, "Port 4299 on 127.0.0.1 is taken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_lack_is_told_in_words(layout: Layout, change: dict[str, object], words: str) -> None:
    found = problems(layout, dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert len(found) == 1
    assert words in found[0]


def test_everything_is_told_at_once(layout: Layout) -> None:
    bad = dataclasses.replace(
        GOOD,
        effective_user=1000,
        free_disk_bytes=lambda _: 0,
        has_program=lambda _: False,
        is_port_taken=lambda _: True,
    )
    found = problems(layout, bad)
    assert len(found) == 4
    assert "named" in found[3]
    assert "systemd-nspawn" in found[3]
    assert "bao" in found[3]


def test_what_was_not_built_is_named(layout: Layout, built: Path) -> None:
    (built / "bin/tofu").unlink()
    (built / "image/current").rmdir()
    (found,) = problems(layout, GOOD)
    assert "bin/tofu" in found
    assert "guests' image" in found


def test_a_part_of_the_lab_needs_only_its_own_programs(layout: Layout, built: Path) -> None:
    (built / "bin/tofu").unlink()
    (built / "image/current").rmdir()
    check(layout, SOME, dataclasses.replace(GOOD, has_program=lambda name: name != "named"))


def test_a_directory_of_somebody_else_is_refused(layout: Layout) -> None:
    layout.home.mkdir()
    (layout.home / "thesis.tex").touch()
    (found,) = problems(layout, GOOD)
    assert "not empty and not a lab's home" in found
    (layout.home / HOME_MARK).touch()
    check(layout, SERVICES, GOOD)


def test_a_home_that_the_services_users_cannot_reach_is_refused(
    layout: Layout, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    (found,) = problems(layout, GOOD)
    assert f"{tmp_path} is closed to other users" in found


def test_the_same_instance_from_another_home_is_refused(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.run_directory.mkdir()
    layout.home_marker.write_text("/elsewhere\n")
    monkeypatch.setattr(Layout, "namespace_path", property(lambda _: tmp_path))
    (found,) = problems(layout, GOOD)
    assert "from /elsewhere" in found
    assert "INFRAFLOWS_LAB_HOME=/elsewhere infraflows-lab down" in found


def test_a_marker_of_a_lab_that_is_gone_is_ignored(layout: Layout) -> None:
    layout.run_directory.mkdir()
    layout.home_marker.write_text("/elsewhere\n")
    check(layout, SERVICES, GOOD)


def test_a_running_lab_may_hold_its_own_port_and_memory(layout: Layout) -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    Record("ui", True, me.pid, me.start_ticks, me.boot).store(layout)
    busy = dataclasses.replace(GOOD, is_port_taken=lambda _: True, available_memory_bytes=lambda: 0)
    check(layout, SERVICES, busy)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("INFRAFLOWS_UI_PORT", "http", "not a port number"),
        ("INFRAFLOWS_UI_PORT", "70000", "not a port number"),
        ("INFRAFLOWS_LAB_INSTANCE", "Lab_1", "lower-case letters"),
        ("INFRAFLOWS_LAB_HOME", "relative/home", "not absolute"),
    ],
)
def test_a_wrong_variable_is_told_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=words) as caught:
        Layout.from_environment()
    assert variable in str(caught.value)
