"""Fixtures for every test that needs the lab.

`lab` brings the lab of the environment up (once per session) and takes it away at the end, unless
it was up before or INFRAFLOWS_LAB_KEEP=1: then it is left as it is. `inside_lab` moves the test
itself into the lab's network, where its addresses exist. A machine that cannot run the lab fails
these tests in the lab's own words; it does not skip them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from lab.layout import Layout
from lab.network import network_exists
from lab.services.namespace import inside

# A busy machine is slow; no test may fail for that.
settings.register_profile("infraflows", deadline=None)
settings.load_profile("infraflows")

UP_TIMEOUT_SECONDS = 600
DOWN_TIMEOUT_SECONDS = 180


def lab_command(*arguments: str) -> list[str]:
    """The lab's command line, of this very interpreter."""
    return [sys.executable, "-m", "lab.cli", *arguments]


def run_lab(timeout_seconds: float, *arguments: str) -> None:
    done = subprocess.run(
        lab_command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)


@pytest.fixture(scope="session")
def lab() -> Iterator[Layout]:
    """The lab of the environment, up and healthy."""
    layout = Layout.from_environment()
    was_up = network_exists(layout.instance)
    if not was_up:
        run_lab(UP_TIMEOUT_SECONDS, "up")
    yield layout
    if not was_up and os.environ.get("INFRAFLOWS_LAB_KEEP") != "1":
        run_lab(DOWN_TIMEOUT_SECONDS, "down", "--purge")


@pytest.fixture
def inside_lab(lab: Layout) -> Iterator[Layout]:
    """The test's own thread, and those that it starts, stand inside the lab's network."""
    with inside(lab.namespace_path):
        yield lab


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one folder share servers, so they run one after another in one process.

    The largest folder's servers are all private to a process; its files are shared out.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return file if folder == "tests/blocks/rotation" else folder

    return ByFolder(config, log)
