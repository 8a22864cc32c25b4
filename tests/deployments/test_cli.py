from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml
from prefect.exceptions import PrefectHTTPStatusError
from typer.testing import CliRunner

from deployments.cli import _read_parameters, _refused, app
from domain.specs import EXAMPLE

runner = CliRunner()


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("INFRAFLOWS_SITE", raising=False)


def _file(tmp_path: Path, content: object) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_a_right_spec_lists_its_machines(tmp_path: Path) -> None:
    result = runner.invoke(app, ["check-spec", _file(tmp_path, EXAMPLE)])
    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stdout.splitlines()] == [
        "demo-server-1",
        "demo-server-2",
        "demo-server-3",
        "demo-worker-1",
        "demo-worker-2",
    ]


def test_every_problem_of_a_spec_is_told_at_once(tmp_path: Path) -> None:
    wrong = {**EXAMPLE, "name": "Demo!", "colour": "blue"}
    result = runner.invoke(app, ["check-spec", _file(tmp_path, wrong)])
    assert result.exit_code == 1
    assert "2 problems found" in result.stderr
    assert "name: 'Demo!' is not a valid name" in result.stderr
    assert "colour: is no field of a cluster's spec" in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [("a: [", "is not YAML"), ("- 1", "is not a group of fields")],
)
def test_a_file_that_is_no_spec_is_told(tmp_path: Path, content: str, said: str) -> None:
    result = runner.invoke(app, ["check-spec", _file(tmp_path, content)])
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_spec_is_told(tmp_path: Path) -> None:
    result = runner.invoke(app, ["check-spec", str(tmp_path / "none.yaml")])
    assert result.exit_code == 1
    assert "No such file or directory. Name an existing file" in result.stderr


def test_a_command_that_needs_the_server_says_how_to_name_it() -> None:
    result = runner.invoke(app, ["run", "bootstrap-cluster/lab"])
    assert result.exit_code == 1
    assert "Unable to find the Prefect server" in result.stderr
    assert "--site site.yaml" in result.stderr


def test_a_missing_ledger_is_told(tmp_path: Path) -> None:
    result = runner.invoke(app, ["verify-ledger", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 1
    assert "Unable to verify the ledger" in result.stderr


def test_a_parameter_that_is_no_pair_is_told() -> None:
    result = runner.invoke(app, ["run", "rotate-secrets/one", "--parameter", "path"])
    assert result.exit_code == 1
    assert "--parameter 'path': is not name=value" in result.stderr


def test_a_parameter_is_json_or_the_text_that_it_is() -> None:
    given = ["path=apps/shop/database", "dry_run=true", 'leak={"kind": "path", "value": "a=b"}']
    assert _read_parameters(given) == {
        "path": "apps/shop/database",
        "dry_run": True,
        "leak": {"kind": "path", "value": "a=b"},
    }


def test_a_refusal_of_parameters_does_not_repeat_what_was_given() -> None:
    detail = "Validation failed for field 'leak.value'. Failure reason: 'hvs.X' does not match '^a'"
    response = httpx.Response(
        409, json={"detail": detail}, request=httpx.Request("POST", "http://x")
    )
    error = PrefectHTTPStatusError("refused", request=response.request, response=response)
    text = str(_refused("rotate-secrets/leak", error))
    assert "leak.value" in text
    assert "hvs.X" not in text
