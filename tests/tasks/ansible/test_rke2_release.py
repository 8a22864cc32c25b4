from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

VERSION = "v1.36.3+rke2r1"


def archive(members: dict[str, str], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
        if link:
            entry = tarfile.TarInfo("bin/link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry)
    return buffer.getvalue()


class Mirror:
    """Serves what a test puts into it in place of the network."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def publish(self, version: str, content: bytes, checksum: str | None = None) -> None:
        base = f"https://mirror.example.org/rke2/{version}"
        right = checksum or hashlib.sha256(content).hexdigest()
        self.files[f"{base}/rke2.linux-amd64.tar.gz"] = content
        lines = f"{'0' * 64}  rke2-images.tar.gz\n{right}  rke2.linux-amd64.tar.gz\n"
        self.files[f"{base}/sha256sum-amd64.txt"] = lines.encode()

    def opened(self, url: str, ca_certificate: str) -> io.BytesIO:
        return io.BytesIO(self.files[url])


@pytest.fixture
def mirror(rke2_release: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    found = Mirror()
    monkeypatch.setattr(rke2_release, "opened", found.opened)
    return found


def order(prefix: Path, version: str = VERSION) -> Any:
    params = {
        "url": "https://mirror.example.org/rke2",
        "version": version,
        "prefix": str(prefix),
        "ca_certificate": "",
        "restart_action": "restart-rke2",
    }
    return SimpleNamespace(params=params, run_command=lambda *_, **__: (0, "", ""))


def test_a_release_is_installed_once(
    rke2_release: ModuleType, mirror: Mirror, tmp_path: Path, pending: ModuleType
) -> None:
    mirror.publish(VERSION, archive({"bin/rke2": "one", "lib/systemd/system/x.service": "unit"}))
    prefix = tmp_path / "usr"
    assert not rke2_release.is_installed(order(prefix))
    rke2_release.install(order(prefix))
    assert rke2_release.is_installed(order(prefix))
    assert (prefix / "bin/rke2").read_text() == "one"
    assert (prefix / "bin/rke2").stat().st_mode & 0o111
    assert not pending.is_owed("restart-rke2"), "nothing ran that has to be restarted"
    assert not list(prefix.glob(".infraflows*"))


def test_another_release_replaces_it_and_owes_a_restart(
    rke2_release: ModuleType, mirror: Mirror, tmp_path: Path, pending: ModuleType
) -> None:
    mirror.publish(VERSION, archive({"bin/rke2": "one"}))
    mirror.publish("v1.36.4+rke2r1", archive({"bin/rke2": "two"}))
    rke2_release.install(order(tmp_path))
    assert not rke2_release.is_installed(order(tmp_path, "v1.36.4+rke2r1"))
    rke2_release.install(order(tmp_path, "v1.36.4+rke2r1"))
    assert (tmp_path / "bin/rke2").read_text() == "two"
    assert pending.is_owed("restart-rke2")


def test_a_wrong_checksum_installs_nothing(
    rke2_release: ModuleType, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.publish(VERSION, archive({"bin/rke2": "one"}), checksum="f" * 64)
    with pytest.raises(rke2_release.Failed, match="its SHA-256 is"):
        rke2_release.install(order(tmp_path / "usr"))
    assert not (tmp_path / "usr/bin").exists()
    assert not rke2_release.is_installed(order(tmp_path / "usr"))


def test_an_archive_that_the_list_does_not_name_is_refused(
    rke2_release: ModuleType, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.publish(VERSION, archive({"bin/rke2": "one"}))
    key = next(name for name in mirror.files if name.endswith(".txt"))
    mirror.files[key] = b"0000  other.tar.gz\n"
    with pytest.raises(rke2_release.Failed, match="does not list it"):
        rke2_release.install(order(tmp_path))


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "bin/../../outside"])
def test_an_archive_that_would_write_elsewhere_is_refused(
    rke2_release: ModuleType, mirror: Mirror, tmp_path: Path, name: str
) -> None:
    mirror.publish(VERSION, archive({name: "x"}))
    with pytest.raises(rke2_release.Failed, match="not a plain file"):
        rke2_release.install(order(tmp_path / "usr"))
    assert not (tmp_path / "outside").exists()


def test_an_archive_with_links_is_refused(
    rke2_release: ModuleType, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.publish(VERSION, archive({"bin/rke2": "x"}, link="/etc/shadow"))
    with pytest.raises(rke2_release.Failed, match="not a plain file"):
        rke2_release.install(order(tmp_path))


def test_an_installation_that_was_cut_off_is_done_again(
    rke2_release: ModuleType, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.publish(VERSION, archive({"bin/rke2": "one"}))
    rke2_release.install(order(tmp_path))
    rke2_release.STATE.unlink()
    assert not rke2_release.is_installed(order(tmp_path))
