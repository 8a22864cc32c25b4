from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tasks.ansible.module_utils import host_lock

HOLD = """
import sys, time
from pathlib import Path
from tasks.ansible.module_utils import host_lock
host_lock.LOCK = Path(sys.argv[1])
with host_lock.exclusive():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(pending: ModuleType) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(host_lock.LOCK)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def take() -> None:
    with host_lock.exclusive():
        pass


def test_a_change_waits_for_the_one_that_goes_on(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_lock, "WAIT_SECONDS", 0.3)
    try:
        with pytest.raises(TimeoutError, match="still goes on"):
            take()
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_holder_holds_nothing(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    take()
