from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.kubernetes_api import KubernetesApi
from domain.cluster_checks import server_facts
from lab.bare_control_plane import Authority, BareControlPlane, bare_control_plane, free_ports
from lab.toolchain.paths import NotBuiltError, tool
from tasks.ansible.module_utils import control_plane_reading as reading


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareControlPlane]:
    try:
        tool("kube-apiserver")
    except NotBuiltError as error:
        pytest.skip(str(error))
    with bare_control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


def test_a_real_etcd_lists_its_member_with_its_health(control_plane: BareControlPlane) -> None:
    (found,) = reading.members(control_plane.etcd_url)

    assert isinstance(found, dict)
    assert found["name"] == "default"
    assert found["peer_urls"][0].startswith("http://127.0.0.1:")
    assert (found["is_healthy"], found["is_learner"]) == (True, False)


def test_a_secret_in_clear_is_seen_in_etcd_and_none_is_unknown(
    control_plane: BareControlPlane,
) -> None:
    assert reading.has_encrypted_secrets(control_plane.etcd_url) == reading.UNKNOWN
    with KubernetesApi.from_kubeconfig(control_plane.kubeconfig) as api:
        metadata = {"name": "clear", "namespace": "default"}
        api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})

    assert reading.has_encrypted_secrets(control_plane.etcd_url) is False


@pytest.fixture
def server_data(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An etcd over TLS with client certificates, laid out as RKE2 lays it out."""
    tls = tmp_path / "tls" / "etcd"
    tls.mkdir(parents=True)
    authority = Authority(tls)
    authority.issue("server-client", "etcd-server", "infraflows")
    authority.issue("client", "etcd-client", "infraflows")
    (tls / "ca.crt").rename(tls / "server-ca.crt")
    client, peer = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [
        *("setpriv", "--pdeathsig", "KILL", str(tool("etcd"))),
        f"--data-dir={tmp_path}/db",
        f"--listen-client-urls=https://{client}",
        f"--advertise-client-urls=https://{client}",
        f"--listen-peer-urls=http://{peer}",
        f"--initial-advertise-peer-urls=http://{peer}",
        f"--initial-cluster=default=http://{peer}",
        f"--cert-file={tls}/server-client.crt",
        f"--key-file={tls}/server-client.key",
        f"--trusted-ca-file={tls}/server-ca.crt",
        "--client-cert-auth",
        "--unsafe-no-fsync",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"https://{client}", tmp_path
    finally:
        process.terminate()
        process.wait(10)


def test_etcd_is_asked_with_the_servers_own_certificates(server_data: tuple[str, Path]) -> None:
    endpoint, data = server_data
    deadline = time.monotonic() + 30
    while (found := reading.members(endpoint, data)) == reading.UNKNOWN:
        assert time.monotonic() < deadline, (data / "log").read_text()[-2000:]
        time.sleep(0.2)

    assert [member["is_healthy"] for member in found] == [True]  # type: ignore[index]
    stranger = Authority(data / "tls" / "etcd")
    stranger.issue("client", "stranger", "infraflows")
    assert reading.members(endpoint, data) == reading.UNKNOWN


def test_an_etcd_that_does_not_answer_is_unknown() -> None:
    silent = "http://127.0.0.1:9"

    assert reading.members(silent) == reading.UNKNOWN
    assert reading.has_encrypted_secrets(silent) == reading.UNKNOWN
    assert reading.is_healthy([silent], Path("/nowhere")) is False


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**63])
def test_numbers_are_read_as_they_were_written(number: int) -> None:
    assert list(reading.fields(reading.message({3: number, 1: b"text"}))) == [
        (3, number),
        (1, b"text"),
    ]


def processes(tmp_path: Path, *arguments: str) -> Path:
    directory = tmp_path / "proc" / "41"
    directory.mkdir(parents=True)
    (directory / "cmdline").write_bytes("\0".join(arguments).encode() + b"\0")
    (tmp_path / "proc" / "self").mkdir()
    return tmp_path / "proc"


EVENT = json.dumps({"kind": "Event", "stage": "ResponseComplete"}) + "\n"


@pytest.mark.parametrize(
    ("text", "is_written"),
    [
        (EVENT, True),
        (EVENT + '{"kind": "Ev', True),
        ("x" * 70000 + "\n" + EVENT, True),
        (json.dumps({"kind": "Event", "requestObject": "x" * 1_500_000}) + "\n", True),
        ("", False),
        ('{"kind": "Other"}\n', False),
        ("nothing\n", False),
    ],
    ids=[
        "one",
        "the next is being written",
        "after others",
        "a large one",
        "empty",
        "other",
        "text",
    ],
)
def test_an_audit_log_is_on_when_events_are_in_it(
    tmp_path: Path, text: str, is_written: bool
) -> None:
    log = tmp_path / "audit.log"
    log.write_text(text)

    running = processes(tmp_path, "/bin/kube-apiserver", f"--audit-log-path={log}")

    assert reading.has_audit_log(running) is is_written


def test_an_api_server_without_the_setting_or_the_file_writes_none(tmp_path: Path) -> None:
    assert not reading.has_audit_log(processes(tmp_path / "a", "kube-apiserver", "--v=2"))
    absent = f"--audit-log-path={tmp_path}/absent"
    assert not reading.has_audit_log(processes(tmp_path / "b", "kube-apiserver", absent))
    assert not reading.has_audit_log(processes(tmp_path / "c", "sshd", absent))


def test_a_machine_that_is_no_server_tells_nothing(tmp_path: Path) -> None:
    assert reading.control_plane(tmp_path) == {}
    assert server_facts(reading.control_plane(tmp_path)).etcd_members is None
