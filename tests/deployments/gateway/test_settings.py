"""What a site's file says of its gateway, and what the gateway must not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import app
from deployments.gateway.serve import settings_of
from deployments.site_file import SiteFile
from domain.errors import InvalidSpec
from lab.layout import Layout
from lab.site import site_document

ROOT = Path(__file__).parents[3]


def test_the_labs_site_has_a_gateway_with_files_of_its_own() -> None:
    layout = Layout("trial", Path("/var/lib/infraflows-lab-trial"))
    settings = settings_of(SiteFile.model_validate(site_document(layout)))
    assert settings.directory == layout.webhook_directory
    assert settings.certificate_file == str(layout.server_certificate_file)
    assert settings.is_dispatching


@pytest.mark.parametrize("missing", ["gateway", "onboarding"])
def test_a_site_without_a_gateway_is_told_what_to_add(missing: str, tmp_path: Path) -> None:
    document = site_document(Layout("trial", Path("/var/lib/infraflows-lab-trial")))
    del document[missing]
    with pytest.raises(InvalidSpec, match="Add both"):
        settings_of(SiteFile.model_validate(document))
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(document))
    done = CliRunner().invoke(app, ["gateway", "--site", str(file)])
    assert done.exit_code == 1
    assert "Add both to run a gateway" in done.output
    assert "Traceback" not in done.output


def test_the_gateway_loads_no_flow_and_no_lab() -> None:
    code = (
        "import sys, deployments.gateway.serve; "
        "print([n for n in sys.modules if n.split('.')[0] in ('flows', 'tasks', 'lab')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
