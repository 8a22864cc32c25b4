from __future__ import annotations

import stat
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def file(path: Path, content: str | None = "wanted\n", **more: Any) -> dict[str, Any]:
    blank = {"link_to": None, "absent": False, "mode": "0640", "check": None, "then": []}
    return {
        "path": str(path),
        "content": content,
        "owner": "root",
        "group": "root",
        **blank,
        **more,
    }


class Host:
    """Applies a wanted state as Ansible would, and keeps what was reported."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def apply(
        self,
        files: list[dict[str, Any]],
        actions: dict[str, str] | None = None,
        check: bool = False,
    ) -> dict[str, Any]:
        result = {"changed": False, "changed_paths": [], "actions_done": [], "services_changed": []}
        params = {"files": files, "actions": actions or {}, "services": []}
        self.module.apply(SimpleNamespace(params=params, check_mode=check), result)
        return result


@pytest.fixture
def host(host_configuration: ModuleType) -> Host:
    return Host(host_configuration)


def test_a_second_time_changes_nothing(host: Host, tmp_path: Path) -> None:
    files = [
        file(tmp_path / "deep" / "a.conf"),
        file(tmp_path / "link", None, link_to="a.conf"),
        file(tmp_path / "absent", None, absent=True),
    ]
    assert host.apply(files)["changed_paths"] == [files[0]["path"], files[1]["path"]]
    assert host.apply(files)["changed"] is False


def test_a_wrong_mode_alone_is_a_change(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "a.conf"
    host.apply([file(target)])
    target.chmod(0o666)
    assert host.apply([file(target)])["changed"] is True
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(
    host: Host, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("untouched")
    (tmp_path / "a.conf").symlink_to("other")
    host.apply([file(tmp_path / "a.conf")])
    assert (tmp_path / "other").read_text() == "untouched"
    assert not (tmp_path / "a.conf").is_symlink()


def test_what_its_checker_refuses_never_takes_the_files_place(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "a.conf"
    host.apply([file(target, "good\n", check="grep -q good %s")])
    with pytest.raises(host.module.Failed, match="grep"):
        host.apply([file(target, "bad\n", check="grep -q good %s")])
    assert target.read_text() == "good\n"
    assert not list(tmp_path.glob(".infraflows*"))


def test_a_changed_file_calls_for_its_act_once(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "log"
    actions = {"reload": f"echo reloaded >> {log}"}
    files = [file(tmp_path / name, then=["reload"]) for name in ("a", "b")]
    assert host.apply(files, actions)["actions_done"] == ["reload"]
    assert host.apply(files, actions)["actions_done"] == []
    assert log.read_text() == "reloaded\n"


def test_an_act_that_a_killed_run_owed_is_done_by_the_next(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL: nothing in between may handle it."""

    log = tmp_path / "log"
    files = [file(tmp_path / "a", then=["reload"])]
    actions = {"reload": f"echo reloaded >> {log}"}

    def killed(command: list[str], timeout_seconds: float = 0) -> str:
        raise Killed

    real = host.module.run
    monkeypatch.setattr(host.module, "run", killed)
    with pytest.raises(Killed):
        host.apply(files, actions)
    monkeypatch.setattr(host.module, "run", real)
    assert (tmp_path / "a").read_text() == "wanted\n"
    assert not log.exists()
    result = host.apply(files, actions)
    assert (result["changed_paths"], result["actions_done"]) == ([], ["reload"])
    assert log.read_text() == "reloaded\n"


def test_an_act_that_fails_is_still_owed(host: Host, tmp_path: Path, pending: ModuleType) -> None:
    with pytest.raises(host.module.Failed):
        host.apply([file(tmp_path / "a", then=["reload"])], {"reload": "exit 3"})
    assert pending.is_owed("reload")


def test_an_act_without_a_command_is_left_to_another_module(
    host: Host, tmp_path: Path, pending: ModuleType
) -> None:
    result = host.apply([file(tmp_path / "a", then=["restart-rke2"])], {"restart-rke2": ""})
    assert result["actions_done"] == []
    assert pending.is_owed("restart-rke2")


def test_check_mode_reports_and_touches_nothing(
    host: Host, tmp_path: Path, pending: ModuleType
) -> None:
    files = [file(tmp_path / "a", then=["reload"])]
    assert host.apply(files, {"reload": "exit 3"}, check=True)["changed_paths"] == [
        str(tmp_path / "a")
    ]
    assert not (tmp_path / "a").exists()
    assert not pending.is_owed("reload")


def test_an_act_that_is_not_described_is_an_error_before_the_file_is_written(
    host: Host, tmp_path: Path
) -> None:
    with pytest.raises(host.module.Failed, match="no action"):
        host.apply([file(tmp_path / "a", then=["typo"])], {"reload": "true"})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["../x", "a b", "", "a/b"])
def test_an_acts_name_cannot_leave_its_folder(pending: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an action"):
        pending.owe(name)
