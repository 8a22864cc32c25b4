"""The token and the encryption keys of the lab's RKE2 are rotated on one server."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from blocks.rotation.hosts import Host
from blocks.rotation.rke2_secrets_encryption import Rke2SecretsEncryption, read_status
from blocks.rotation.rke2_server_token import Rke2ServerToken
from domain.errors import Conflict
from domain.rotation.contract import SecretRef

FIRST = {"server_token": "planted-server-token-of-this-test", "agent_token": "an-agent-token"}


@pytest.fixture(scope="module")
def machine(hosts: list[Any]) -> Iterator[Any]:
    """The first host alone, its token in a file as the product writes it."""
    first = hosts[0]
    settings = first.root / "etc" / "rke2" / "config.yaml"
    document = json.loads(settings.read_text())
    del document["token"]
    document |= {"token-file": str(first.root / "server-token"), "agent-token": "an-agent-token"}
    settings.write_text(json.dumps(document))
    (first.root / "server-token").write_text(FIRST["server_token"] + "\n")
    first.start_and_await()
    return first


def shell_of(machine: Any) -> Host:
    """What SSH is on a real server: a way to run commands inside it."""

    def shell(command: Sequence[str], content: bytes) -> tuple[int, bytes, str]:
        words = list(command)
        if words[0] == "rke2":
            words = machine.rke2(*words[1:])
        elif "rke2" in words:
            at = words.index("rke2")
            words = machine.inside(*words[:at], *machine.rke2(*words[at + 1 :]))
        elif words == ["restart", "rke2"]:
            machine.end()
            machine.start_and_await()
            return 0, b"", ""
        else:
            words = machine.inside(*words)
        done = subprocess.run(words, input=content, capture_output=True, check=False)
        complaint = done.stderr.decode().strip().splitlines() or [""]
        return done.returncode, done.stdout, complaint[-1]

    return Host(machine.name, shell)


def token_secret(machine: Any) -> SecretRef:
    return SecretRef(
        "clusters/test/rke2",
        Rke2ServerToken.kind,
        "test",
        {
            "hosts": "first",
            "token_file": str(machine.root / "server-token"),
            "data_directory": str(machine.data),
            "restart": "restart rke2",
        },
    )


@pytest.mark.lab
def test_a_server_token_rotates_and_the_old_one_is_refused(machine: Any) -> None:
    adapter = Rke2ServerToken(lambda _secret: [shell_of(machine)])
    secret = token_secret(machine)
    assert not adapter.prove_dead(secret, FIRST).is_dead
    new = adapter.create(secret, 1, FIRST)
    adapter.set(secret, new, FIRST)
    adapter.test(secret, new)

    adapter.distribute(secret, new)
    adapter.distribute(secret, new)

    assert all(seen.is_on_new for seen in adapter.observe(secret, new, FIRST))
    assert adapter.prove_dead(secret, FIRST).answer == "HTTP 401"
    assert new["agent_token"] == FIRST["agent_token"]
    assert (machine.root / "server-token").read_text().strip() == new["server_token"]
    machine.end()
    machine.start_and_await()
    assert adapter.observe(secret, new, FIRST)[0].is_on_new

    adapter.rollback(secret, new, FIRST)
    assert adapter.observe(secret, FIRST, new)[0].is_on_new
    assert adapter.prove_dead(secret, new).is_dead
    assert machine.objects("nodes")


@pytest.mark.lab
def test_a_token_that_is_not_the_clusters_is_not_rotated(machine: Any) -> None:
    adapter = Rke2ServerToken(lambda _secret: [shell_of(machine)])
    wrong = {"server_token": "not-this-clusters"}

    with pytest.raises(Conflict, match="accepts neither"):
        adapter.set(token_secret(machine), adapter.create(token_secret(machine), 1, wrong), wrong)


@pytest.mark.lab
def test_encryption_keys_rotate_and_the_old_one_is_gone(machine: Any) -> None:
    adapter = Rke2SecretsEncryption(lambda _secret: [shell_of(machine)])
    secret = SecretRef("clusters/test/encryption", adapter.kind, "test", {"hosts": "first"})
    machine.kubectl("create", "secret", "generic", "planted", "--from-literal=key=PLAINTEXT")
    old = adapter.current(secret)
    assert old is not None
    new = adapter.create(secret, 1, old)

    adapter.set(secret, new, old)
    adapter.set(secret, new, old)
    adapter.test(secret, new)

    for _look in range(600):
        if all(seen.is_on_new for seen in adapter.observe(secret, new, old)):
            break
    assert adapter.current(secret) != old
    assert adapter.prove_dead(secret, old).is_dead
    assert "planted" in machine.kubectl("get", "secrets")
    answer = machine.etcdctl("get", "/registry/secrets/default/planted", "-w", "json")
    stored = base64.b64decode(json.loads(answer)["kvs"][0]["value"])
    current = adapter.current(secret)
    assert current is not None
    assert current["active"].encode() in stored


def test_the_table_of_rke2_is_read() -> None:
    status = read_status(
        "Encryption Status: Enabled\n"
        "Current Rotation Stage: start\n"
        "Server Encryption Hashes: All hashes match\n"
        "\n"
        "Active  Key Type  Name\n"
        "------  --------  ----\n"
        " *      AES-CBC   aescbckey\n"
        "        AES-CBC   aescbckey-2\n"
    )

    assert (status.is_enabled, status.stage, status.do_hashes_match) == (True, "start", True)
    assert status.active == "aescbckey"
    assert status.names == ("aescbckey", "aescbckey-2")
    apart = "Server Encryption Hashes: hash does not match between servers: b\n"
    assert not read_status(apart).do_hashes_match
