from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.ssh_command import run_command, wait_for_ssh
from blocks.ssh_identity import SshIdentity
from domain.errors import LifecycleError, PermanentError, Unauthorized, Unreachable

SECRET = "planted-secret-4711"


@pytest.fixture
def identity(tmp_path: Path) -> SshIdentity:
    return SshIdentity(tmp_path / "id", tmp_path / "id-cert.pub", tmp_path / "known_hosts")


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the place of the ssh client."""

    def becomes(script: str) -> None:
        program = tmp_path / "bin" / "ssh"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return becomes


def test_the_output_is_what_the_command_printed(
    identity: SshIdentity, ssh: Callable[[str], None]
) -> None:
    ssh("echo 'banner' >&2; echo out")
    assert run_command(identity, "infraflows", "10.0.0.1", "true") == "out\n"


@pytest.mark.parametrize(
    ("message", "code", "kind"),
    [
        ("Host key verification failed.", 255, Unauthorized),
        ("infraflows@10.0.0.1: Permission denied (publickey).", 255, Unauthorized),
        ("ssh: connect to host 10.0.0.1 port 22: Connection refused", 255, Unreachable),
        ("cat: /etc/rancher/rke2/rke2.yaml: No such file or directory", 1, PermanentError),
    ],
)
def test_a_failure_is_of_the_kind_that_tells_what_may_be_done(
    identity: SshIdentity,
    ssh: Callable[[str], None],
    message: str,
    code: int,
    kind: type[LifecycleError],
) -> None:
    ssh(f"echo {SECRET}; echo '{message}' >&2; exit {code}")
    with pytest.raises(kind) as error:
        run_command(identity, "infraflows", "10.0.0.1", "cat")
    assert type(error.value) is kind
    assert message.rstrip(".") in str(error.value)
    assert SECRET not in str(error.value)


def test_a_command_without_an_end_is_cut_off(
    identity: SshIdentity, ssh: Callable[[str], None]
) -> None:
    ssh(f"echo {SECRET}; exec sleep 30")
    with pytest.raises(Unreachable, match="no end within") as error:
        run_command(identity, "infraflows", "10.0.0.1", "cat", deadline_seconds=0.5)
    assert SECRET not in str(error.value)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("blocks.ssh_command.SSH_PORT", listener.getsockname()[1])

    def greets_with(text: bytes) -> None:
        def serve() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                connection.sendall(text)
                connection.close()

        threading.Thread(target=serve, daemon=True).start()

    yield greets_with
    listener.close()


def test_a_server_that_greets_is_reached(server: Callable[[bytes], None]) -> None:
    server(b"SSH-2.0-OpenSSH_9.2\r\n")
    wait_for_ssh(["127.0.0.1"], deadline_seconds=5)


def test_a_port_that_greets_otherwise_is_no_ssh_server(server: Callable[[bytes], None]) -> None:
    server(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(PermanentError, match=r"127\.0\.0\.1 by SSH within 1 s"):
        wait_for_ssh(["127.0.0.1"], deadline_seconds=0.6)
