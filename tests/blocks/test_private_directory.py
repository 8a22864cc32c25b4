from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blocks.private_directory import (
    OWNER_FILE,
    PREFIX,
    base_directory,
    private_directory,
    sweep,
    write_private,
)
from domain.errors import PermanentError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_can_look_into_it(tmp_path: Path) -> None:
    with private_directory("test", tmp_path) as directory:
        assert mode(directory) == 0o700
        assert mode(write_private(directory / "token", "s3cret")) == 0o600


def test_it_is_gone_after_the_act_and_after_a_failure(tmp_path: Path) -> None:
    def act() -> None:
        with private_directory("test", tmp_path) as directory:
            write_private(directory / "token", "s3cret")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        act()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_owner_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from blocks.private_directory import private_directory, write_private\n"
        "with private_directory('test', Path(sys.argv[1])) as d:\n"
        "    write_private(d / 'token', 's3cret'); print('ready', flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout is not None
    owner.stdout.readline()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    left = list(tmp_path.glob(PREFIX + "*/token"))
    assert left, "the killed owner could not remove it"
    assert sweep(tmp_path) == [left[0].parent]
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_a_living_owner_is_left_alone(tmp_path: Path) -> None:
    with private_directory("test", tmp_path) as directory:
        assert sweep(tmp_path) == []
        assert directory.exists()


def test_a_reused_process_number_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    directory = tmp_path / f"{PREFIX}test-1"
    directory.mkdir()
    (directory / OWNER_FILE).write_text(f"{os.getpid()} 1")
    assert sweep(tmp_path) == [directory]


def test_one_that_is_being_made_is_not_swept(tmp_path: Path) -> None:
    directory = tmp_path / f"{PREFIX}test-2"
    directory.mkdir()
    assert sweep(tmp_path) == []
    long_ago = time.time() - 3600
    os.utime(directory, (long_ago, long_ago))
    assert sweep(tmp_path) == [directory]


def test_a_disk_is_no_place_for_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blocks.private_directory._file_system", lambda path: "ext4")
    with pytest.raises(PermanentError, match="is a writable tmpfs"):
        base_directory()


def test_secrets_lie_on_a_tmpfs() -> None:
    assert base_directory().is_dir()
