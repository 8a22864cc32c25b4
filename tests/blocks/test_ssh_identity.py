from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.ssh_identity import known_hosts_lines, make_identity
from domain.errors import InvalidSpec, PermanentError

HOST_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000000 root@x"
)


@pytest.fixture
def sign(tmp_path: Path) -> Callable[[str], str]:
    authority = tmp_path / "authority"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", authority], check=True)

    def signed(public_key: str) -> str:
        file = tmp_path / "to-sign.pub"
        file.write_text(public_key)
        command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", "-n", "infraflows"]
        subprocess.run([*command, "-V", "+5m", str(file)], check=True)
        return (tmp_path / "to-sign-cert.pub").read_text()

    return signed


def test_the_certificate_belongs_to_the_key(tmp_path: Path, sign: Callable[[str], str]) -> None:
    identity = make_identity(tmp_path, sign, {"10.0.0.1": HOST_KEY})
    shown = subprocess.run(
        ["ssh-keygen", "-L", "-f", identity.certificate], capture_output=True, text=True, check=True
    ).stdout
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", identity.private_key], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert fingerprint in shown
    assert "infraflows" in shown
    assert stat.S_IMODE(identity.private_key.stat().st_mode) == 0o600


def test_only_the_given_host_keys_are_believed(tmp_path: Path, sign: Callable[[str], str]) -> None:
    identity = make_identity(tmp_path, sign, {"10.0.0.2": HOST_KEY, "10.0.0.1": HOST_KEY})
    key = " ".join(HOST_KEY.split()[:2])
    assert identity.known_hosts.read_text() == f"10.0.0.1 {key}\n10.0.0.2 {key}\n"
    options = identity.options()
    assert "StrictHostKeyChecking=yes" in options
    assert f"UserKnownHostsFile={identity.known_hosts}" in options
    assert "GlobalKnownHostsFile=/dev/null" in options


@pytest.mark.parametrize("key", ["", "ssh-dss AAAA", "*", f"{HOST_KEY}\n* ssh-ed25519 AAAA"])
def test_what_is_no_host_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidSpec, match=r"10\.0\.0\.1: is not a public host key"):
        known_hosts_lines({"10.0.0.1": key})


def test_a_name_in_place_of_an_address_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="not an address"):
        known_hosts_lines({"*": HOST_KEY})


def test_an_answer_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="not an OpenSSH certificate"):
        make_identity(tmp_path, lambda key: key, {"10.0.0.1": HOST_KEY})
