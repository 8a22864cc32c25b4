"""Fixtures for every test that needs the lab.

`lab` brings the lab of the environment up (once per session) and takes it away at the end, unless
INFRAFLOWS_LAB_KEEP=1. `inside_lab` moves the test itself into the lab's network, where its
addresses exist. A machine that cannot run the lab fails these tests in the lab's own words; it does
not skip them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from lab.layout import Layout
from lab.services.namespace import inside

# A busy machine is slow; no test may fail for that.
settings.register_profile("infraflows", deadline=None)
settings.load_profile("infraflows")

UP_TIMEOUT_SECONDS = 600
DOWN_TIMEOUT_SECONDS = 180


def lab_command(*arguments: str) -> list[str]:
    """The lab's command line, of this very interpreter."""
    return [sys.executable, "-m", "lab.cli", *arguments]


@pytest.fixture(scope="session")
def lab() -> Iterator[Layout]:
    """The lab of the environment, up and healthy."""
    done = subprocess.run(
        lab_command("up"),
        capture_output=True,
        text=True,
        timeout=UP_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
    yield Layout.from_environment()
    if os.environ.get("INFRAFLOWS_LAB_KEEP") != "1":
        gone = subprocess.run(
            lab_command("down", "--purge"),
            capture_output=True,
            text=True,
            timeout=DOWN_TIMEOUT_SECONDS,
            check=False,
        )
        if gone.returncode != 0:
            pytest.fail(f"{gone.stdout}\n{gone.stderr}", pytrace=False)


@pytest.fixture
def inside_lab(lab: Layout) -> Iterator[Layout]:
    """The test's own thread, and those that it starts, stand inside the lab's network."""
    with inside(lab.namespace_path):
        yield lab
