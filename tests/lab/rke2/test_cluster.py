"""The lab's RKE2 does to a cluster what RKE2 does: real etcd and control plane, four hosts."""

import base64
import ipaddress
import json
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.lab

WORKLOADS = Path(__file__).with_name("workloads.yaml")


def _are_pods_in_their_nodes_network(first: Any) -> bool:
    networks = {n["metadata"]["name"]: n["spec"]["podCIDR"] for n in first.objects("nodes")}
    pods = first.objects("pods", "-n", "default")
    return bool(pods) and all(
        "podIP" in pod["status"]
        and ipaddress.ip_address(pod["status"]["podIP"])
        in ipaddress.ip_network(networks[pod["spec"]["nodeName"]])
        for pod in pods
    )


def test_servers_carry_rke2s_roles_and_agents_none(cluster: list[Any]) -> None:
    for node in cluster[0].objects("nodes"):
        roles = {
            label.partition("/")[2]
            for label in node["metadata"]["labels"]
            if label.startswith("node-role.kubernetes.io/")
        }
        is_server = node["metadata"]["name"].startswith("server")
        assert roles == ({"control-plane", "etcd"} if is_server else set())
        assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.3+rke2r1"
        assert node["metadata"]["annotations"]["infraflows.lab/kubelet"] == "kwok"


def test_every_server_is_a_voter_of_etcd(cluster: list[Any]) -> None:
    members = cluster[0].members()
    assert len(members) == 3
    assert not any(member.get("isLearner") for member in members)


def test_workloads_of_every_kind_run_in_their_nodes_network(
    cluster: list[Any], patience: Callable[..., None]
) -> None:
    first = cluster[0]
    first.kubectl("apply", "-f", str(WORKLOADS))
    first.kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=60s")
    first.kubectl("wait", "--for=condition=Complete", "job/once", "--timeout=60s")
    patience(
        "the DaemonSet runs on every host",
        lambda: first.objects("daemonsets")[0]["status"].get("numberReady") == len(cluster),
    )
    patience("pods have their nodes' addresses", lambda: _are_pods_in_their_nodes_network(first))


def test_secrets_are_encrypted_at_rest_and_strangers_are_refused(cluster: list[Any]) -> None:
    first = cluster[0]
    first.kubectl("create", "secret", "generic", "planted", "--from-literal=key=PLAINTEXT")
    stored = first.etcdctl("get", "/registry/secrets/default/planted", "-w", "json")
    value = base64.b64decode(json.loads(stored)["kvs"][0]["value"])
    assert value.startswith(b"k8s:enc:aescbc:v1:")
    assert b"PLAINTEXT" not in value
    for url in ("https://127.0.0.1:6443/readyz", "https://127.0.0.1:9345/v1-rke2/server-bootstrap"):
        command = first.inside("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", url)
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "401"


def test_files_lie_where_rke2_puts_them_and_only_root_reads_them(cluster: list[Any]) -> None:
    first = cluster[0]
    server = first.data / "server"
    for path in (
        server / "token",
        server / "agent-token",
        server / "cred" / "encryption-config.json",
        first.root / "etc" / "node" / "password",
        first.root / "etc" / "rke2" / "rke2.yaml",
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert (server / "token").read_text().startswith("K10")
    assert (server / "node-token").resolve() == server / "token"
    assert (first.data / "bin" / "kubectl").exists()


def test_no_token_is_in_a_log(cluster: list[Any]) -> None:
    for host in cluster:
        logs = [host.log, *(host.data / "agent" / "logs").glob("*.log")]
        for log in logs:
            content = log.read_text(errors="replace")
            assert "planted-server-token" not in content
            assert "planted-agent-token" not in content


def test_a_host_with_another_node_password_is_refused_in_rke2s_words(
    cluster: list[Any], patience: Callable[..., None]
) -> None:
    agent = cluster[3]
    password = agent.root / "etc" / "node" / "password"
    original = password.read_text()
    agent.end()
    password.write_text("another\n")
    agent.start()
    patience("the refusal", lambda: "Node password rejected, duplicate hostname" in agent.text())
    agent.end()
    password.write_text(original)
    agent.start_and_await()


def test_a_token_of_another_cluster_is_not_sent(
    cluster: list[Any], patience: Callable[..., None]
) -> None:
    agent = cluster[3]
    agent.end()
    agent.configure(token=f"K10{'0' * 64}::node:planted-agent-token")
    agent.start()
    patience("the refusal", lambda: "token CA hash does not match" in agent.text())
    agent.end()
    agent.configure()
    agent.start_and_await()


def test_a_snapshot_is_saved_listed_and_deleted(cluster: list[Any]) -> None:
    first = cluster[0]
    subprocess.run(first.rke2("etcd-snapshot", "save", "--name", "test"), check=True)
    listing = first.rke2("etcd-snapshot", "ls", "--output", "json")
    found = json.loads(subprocess.run(listing, capture_output=True, check=True).stdout)
    assert [item["Name"].startswith("test-server-1-") for item in found] == [True]
    assert Path(found[0]["Path"]).stat().st_size > 100_000
    subprocess.run(first.rke2("etcd-snapshot", "delete", found[0]["Name"]), check=True)
    assert not Path(found[0]["Path"]).exists()


@pytest.mark.parametrize("delay_seconds", [0.2, 0.35, 0.6, 1.2])
def test_a_join_that_is_killed_is_taken_up_again(
    cluster: list[Any], patience: Callable[..., None], delay_seconds: float
) -> None:
    first, third = cluster[0], cluster[2]
    third.end(signal.SIGKILL)
    first.kubectl("delete", "node", third.name)
    patience("the deleted server's member is gone", lambda: len(first.members()) == 2)
    shutil.rmtree(third.data)
    third.start()
    assert third.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        third.process.wait(timeout=delay_seconds)
    third.end(signal.SIGKILL)
    third.start_and_await()
    members = first.members()
    assert len(members) == 3
    assert not any(member.get("isLearner") for member in members)


def test_the_cluster_comes_back_after_all_hosts_are_killed(
    cluster: list[Any],
    readiness: Callable[[Any], set[str]],
    patience: Callable[..., None],
) -> None:
    for host in cluster:
        host.end(signal.SIGKILL)
    listing = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True)
    prefix = str(cluster[0].prefix)
    alive = [line for line in listing.stdout.splitlines() if prefix in line and line[0] != "Z"]
    assert alive == [], "children outlive their parent"
    for host in cluster:
        host.start()
    patience(
        "all four are Ready again",
        lambda: readiness(cluster[0]) == {host.name for host in cluster},
        120,
    )
    assert len(cluster[0].members()) == 3
    patience(
        "pods have their nodes' addresses",
        lambda: _are_pods_in_their_nodes_network(cluster[0]),
    )


def test_a_second_token_does_not_open_the_cluster(
    cluster: list[Any], patience: Callable[..., None]
) -> None:
    third = cluster[2]
    third.end()
    third.configure(token="another")
    third.start()
    patience("the refusal", lambda: "encrypted with different token" in third.text())
    third.end()
    third.configure()
    third.start_and_await()
