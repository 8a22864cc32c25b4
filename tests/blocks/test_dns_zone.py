"""Against a real BIND that takes signed updates."""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blocks.dns_zone import DnsZone, UpdateKey
from domain.errors import InvalidSpec, NotFound, Unauthorized, Unreachable

ZONE = "test.infraflows.internal"
KEY = UpdateKey("updates", "hmac-sha256", base64.b64encode(secrets.token_bytes(32)).decode())

pytestmark = pytest.mark.skipif(
    shutil.which("named", path=os.environ["PATH"] + ":/usr/sbin") is None,
    reason="named is not installed",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


CONFIGURATION = """
key "updates" {{ algorithm hmac-sha256; secret "{secret}"; }};
key "readers" {{ algorithm hmac-sha256; secret "{secret}"; }};
options {{
    directory "{directory}"; pid-file none; session-keyfile "{directory}/session.key";
    lock-file none; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; notify no;
}};
controls {{ }};
zone "{zone}" {{
    type primary; file "zone"; update-policy {{ grant updates zonesub ANY; }};
}};
"""
FIRST = f"""$TTL 60
@ IN SOA ns.{ZONE}. admin.{ZONE}. 1 60 60 600 60
@ IN NS ns
ns IN A 127.0.0.1
"""


@pytest.fixture(scope="module")
def zone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsZone]:
    directory: Path = tmp_path_factory.mktemp("named")
    port = free_port()
    (directory / "zone").write_text(FIRST)
    (directory / "named.conf").write_text(
        CONFIGURATION.format(secret=KEY.secret, directory=directory, port=port, zone=ZONE)
    )
    user = pwd.getpwuid(os.getuid()).pw_name
    command = ["named", "-g", "-n", "1", "-u", user, "-c", str(directory / "named.conf")]
    search = {"PATH": os.environ["PATH"] + ":/usr/sbin"}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=search)
    found = DnsZone(server="127.0.0.1", port=port, zone=ZONE, credential="infraflows/lab/dns")
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                found.serial()
                break
            except (Unreachable, NotFound):
                assert time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        process.wait(10)


def test_names_are_set_once_and_then_nothing_is_sent(zone: DnsZone) -> None:
    wanted = {"a-server-1": "10.0.0.1", "a-api": "10.0.0.50"}

    assert zone.set_addresses(wanted, KEY) == ["a-server-1", "a-api"]
    serial = zone.serial()
    assert zone.set_addresses(wanted, KEY) == []
    assert zone.serial() == serial
    assert zone.lookup("a-api") == ["10.0.0.50"]


def test_a_name_with_other_addresses_gets_exactly_the_wanted_one(zone: DnsZone) -> None:
    zone.set_addresses({"b": "10.0.0.1"}, KEY)

    assert zone.set_addresses({"b": "10.0.0.2"}, KEY) == ["b"]
    assert zone.lookup("b") == ["10.0.0.2"]


def test_removing_what_is_absent_succeeds(zone: DnsZone) -> None:
    zone.set_addresses({"c": "10.0.0.1"}, KEY)

    assert zone.remove(["c", "ghost"], KEY) == ["c"]
    assert zone.remove(["c", "ghost"], KEY) == []
    assert zone.lookup("c") == []


def test_many_names_are_looked_up_over_one_connection(zone: DnsZone) -> None:
    zone.set_addresses({"d": "10.0.0.1"}, KEY)
    began = time.monotonic()

    assert zone.lookup_all([*(f"ghost-{i}" for i in range(100)), "d"]) == {"d": ["10.0.0.1"]}
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("change", ["secret", "name"])
def test_a_wrong_key_is_unauthorized_and_changes_nothing(zone: DnsZone, change: str) -> None:
    value = {"secret": base64.b64encode(b"planted-wrong").decode(), "name": "stranger"}[change]
    wrong = replace(KEY, **{change: value})

    with pytest.raises(Unauthorized, match="infraflows/lab/dns") as caught:
        zone.set_addresses({"e": "10.0.0.1"}, wrong)
    assert value not in str(caught.value) or change == "name"
    assert zone.lookup("e") == []


def test_a_key_without_the_right_is_unauthorized(zone: DnsZone) -> None:
    with pytest.raises(Unauthorized, match="REFUSED"):
        zone.set_addresses({"f": "10.0.0.1"}, replace(KEY, name="readers"))


def test_a_name_outside_the_zone_is_refused(zone: DnsZone) -> None:
    with pytest.raises(InvalidSpec, match="outside the zone"):
        zone.set_addresses({"www.example.org.": "10.0.0.1"}, KEY)


def test_a_zone_that_the_server_does_not_have_is_not_found(zone: DnsZone) -> None:
    with pytest.raises(NotFound, match=r"other\.example"):
        zone.model_copy(update={"zone": "other.example"}).serial()


def test_a_server_that_is_away_is_unreachable(zone: DnsZone) -> None:
    with pytest.raises(Unreachable, match="no answer"):
        zone.model_copy(update={"port": free_port()}).lookup("a")


def test_a_credential_that_lacks_values_names_each() -> None:
    with pytest.raises(InvalidSpec) as caught:
        UpdateKey.from_values({"algorithm": "hmac-sha256"}, "infraflows/lab/dns")

    assert caught.value.problems == (
        "key_name: missing. Write it to OpenBao",
        "secret: missing. Write it to OpenBao",
    )
    assert KEY.secret not in repr(KEY)
