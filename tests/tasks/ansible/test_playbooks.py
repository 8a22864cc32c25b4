from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from blocks.ansible_run import PlaybookResult, RunStatus
from domain.errors import PermanentError, TemporaryError, Unreachable
from domain.host_reports import HostEvent, TaskStatus, final_reports
from domain.inventory import ArtifactSource, build_inventory
from domain.machines import machines
from domain.specs import EXAMPLE, parse_spec
from tasks.ansible.tasks import CONFIGURE, HERE, PROBE, count_tasks, explained

ROLES = HERE / "roles"


def ansible(*arguments: str, inventory: Path) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(inventory.parent),
        "LANG": "C.UTF-8",
        "ANSIBLE_ROLES_PATH": str(ROLES),
        "ANSIBLE_LIBRARY": str(HERE / "library"),
        "ANSIBLE_MODULE_UTILS": str(HERE / "module_utils"),
    }
    program = Path(sys.executable).parent / "ansible-playbook"
    ended = subprocess.run(
        [program, "-i", inventory, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    spec = parse_spec(EXAMPLE)
    found = machines(spec)
    document = build_inventory(
        spec, found, {m.name: m.address for m in found}, ArtifactSource("https://m.example.org")
    )
    file = tmp_path / "inventory.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


@pytest.mark.parametrize("playbook", [CONFIGURE, PROBE], ids=lambda path: path.stem)
def test_the_counted_tasks_are_the_ones_that_ansible_lists(playbook: Path, inventory: Path) -> None:
    listed = ansible("--list-tasks", str(playbook), inventory=inventory)
    lines = [line for line in listed.splitlines() if "TAGS:" in line and "play #" not in line]
    assert count_tasks(playbook) == len(lines) > 0


def tasks_of(role: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((role / "tasks" / "main.yaml").read_text())
    return found


ALL_TASKS = [
    pytest.param(role.name, task, id=f"{role.name}: {task['name']}")
    for role in sorted(ROLES.iterdir())
    for task in tasks_of(role)
]


@pytest.mark.parametrize(("role", "task"), ALL_TASKS)
def test_a_task_that_names_a_secret_hides_its_result(role: str, task: dict[str, Any]) -> None:
    names_secret = any(
        word in yaml.safe_dump(task) for word in ("server_token", "agent_token", "vrrp_password")
    )
    assert task.get("no_log", False) is names_secret


def test_no_template_holds_a_secret() -> None:
    words = ("server_token", "agent_token", "vrrp_password")
    for template in ROLES.rglob("*.j2"):
        assert not [word for word in words if word in template.read_text()], template


@pytest.mark.parametrize(("role", "task"), ALL_TASKS)
def test_roles_need_nothing_but_ansible_core(role: str, task: dict[str, Any]) -> None:
    ours = {path.stem for path in (HERE / "library").glob("*.py")}
    actions = [key for key in task if key in ours or "." in key]
    assert len(actions) == 1
    assert actions[0] in ours or actions[0].startswith("ansible.builtin.")


def test_every_role_says_what_its_variables_mean() -> None:
    text = (HERE / "README.md").read_text()
    for defaults in ROLES.glob("*/defaults/main.yaml"):
        for name in yaml.safe_load(defaults.read_text()):
            assert f"`{name}`" in text, f"{name} is not in the README's table"


def result(status: RunStatus, code: int, console: str = "") -> PlaybookResult:
    return PlaybookResult(status, code, 12.0, (), console)


def reports(*events: HostEvent) -> Any:
    return final_reports(["a", "b"], events, False)


FAILED = HostEvent("a", "Start", TaskStatus.FAILED, role="rke2", message="port taken")
SILENT = HostEvent("b", "Start", TaskStatus.UNREACHABLE, message="timed out")


def test_a_run_that_succeeded_is_no_error() -> None:
    assert explained(result(RunStatus.SUCCESSFUL, 0), reports()) is None


def test_a_host_that_failed_is_not_tried_again_and_is_quoted() -> None:
    error = explained(result(RunStatus.FAILED, 2), reports(FAILED, SILENT))
    assert isinstance(error, PermanentError)
    assert "port taken" in str(error)
    assert "timed out" in str(error)


def test_hosts_that_only_did_not_answer_are_tried_again() -> None:
    assert isinstance(explained(result(RunStatus.FAILED, 4), reports(SILENT)), Unreachable)


def test_an_ansible_that_was_ended_from_outside_is_tried_again() -> None:
    assert isinstance(explained(result(RunStatus.FAILED, 254), reports()), TemporaryError)


def test_a_run_without_an_end_names_the_hosts_that_were_at_work() -> None:
    at_work = HostEvent("a", "Start", TaskStatus.STARTED, role="rke2")
    error = explained(result(RunStatus.TIMED_OUT, 254), reports(at_work))
    assert isinstance(error, PermanentError)
    assert "a (rke2: Start)" in str(error)


def test_a_playbook_that_cannot_be_read_is_quoted() -> None:
    error = explained(result(RunStatus.FAILED, 4, "no such role: x"), reports())
    assert isinstance(error, PermanentError)
    assert "no such role: x" in str(error)
