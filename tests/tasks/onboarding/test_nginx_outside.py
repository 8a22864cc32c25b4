"""The step on a real NGINX behind a real sshd that trusts a real OpenBao's certificates."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from blocks import outside_nginx
from blocks.openbao import OpenBaoServer
from blocks.rotation import hosts
from domain.errors import Conflict, NotFound, PermanentError, Unreachable
from domain.onboarding.outside_site import OutsidePlaces
from domain.onboarding.tenant import Tenant
from lab.bare_control_plane import free_ports
from lab.bare_hosts import BareNginx, bare_nginx, bare_sshd, new_sshd
from lab.bare_services import BareOpenBao, bare_openbao
from tasks.onboarding.steps import nginx_outside
from tasks.onboarding.steps.nginx_outside import NginxOutside

HOST_KEYS = "infraflows/lab/outside-hosts"
POLICY = """
path "kv/data/infraflows/lab/*" { capabilities = ["read"] }
path "ssh/sign/infraflows" { capabilities = ["update"] }
path "pki/issue/apps" { capabilities = ["update"] }
path "pki/revoke"     { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
"""
"""The worker's rights on what this step touches."""


class Killed(BaseException):
    """The process is gone."""


@dataclass
class World:
    """The host outside, the ingress that it hands on to, and OpenBao."""

    bao: BareOpenBao
    worker: OpenBaoServer
    places: OutsidePlaces
    nginx: BareNginx
    ingress_port: int
    ca: Path
    step: NginxOutside = field(default_factory=NginxOutside)

    def serial(self, name: str) -> str | None:
        """Return the serial of the certificate that is shown for a name."""
        context = ssl.create_default_context(cafile=str(self.ca))
        address = ("127.0.0.1", self.places.https_port)
        try:
            with (
                socket.create_connection(address, timeout=5) as plain,
                context.wrap_socket(plain, server_hostname=name) as tls,
            ):
                der = tls.getpeercert(binary_form=True)
        except (ssl.SSLError, OSError):
            return None
        assert der is not None
        return f"{x509.load_der_x509_certificate(der).serial_number:x}"

    def ask(self, name: str) -> str:
        """Ask as a stranger does; returns what curl prints, empty when it is refused."""
        port = self.places.https_port
        done = subprocess.run(
            [
                *("curl", "-sS", "--noproxy", "*", "--cacert", str(self.ca), "--max-time", "10"),
                *("--resolve", f"{name}:{port}:127.0.0.1", f"https://{name}:{port}/"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout if done.returncode == 0 else ""

    def wait_for(self, name: str, expected: Callable[[str], bool]) -> str:
        """Ask until the former workers of NGINX have gone."""
        deadline = time.monotonic() + 20
        while not expected(answer := self.ask(name)):
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)
        return answer

    def files(self, tenant: Tenant) -> Path:
        return Path(self.places.application(tenant.name))

    def is_revoked(self, serial: str) -> bool:
        text = "0" * (len(serial) % 2) + serial
        colons = ":".join(text[at : at + 2] for at in range(0, len(text), 2))
        found = self.bao.client().read(f"pki/cert/{colons}")
        return bool(found["data"]["revocation_time"])


def _openbao(directory: Path, bao: BareOpenBao) -> OpenBaoServer:
    client = bao.client()
    client.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
    client.sys.enable_secrets_engine("ssh")
    client.sys.enable_secrets_engine("pki")
    client.sys.enable_auth_method("approle")
    client.sys.tune_mount_configuration("pki", max_lease_ttl="87600h")
    write = client.write_data
    write("pki/root/generate/internal", data={"common_name": "trial CA", "ttl": "8760h"})
    role = {"allow_any_name": True, "key_type": "ec", "key_bits": 256, "ttl": "720h"}
    write("pki/roles/apps", data={**role, "max_ttl": "2160h", "require_cn": False})
    write("ssh/config/ca", data={"generate_signing_key": True, "key_type": "ssh-ed25519"})
    signer = {"key_type": "ca", "allow_user_certificates": True, "allowed_users": "root"}
    write("ssh/roles/infraflows", data={**signer, "ttl": "8h", "max_ttl": "8h"})
    client.sys.create_or_update_policy("worker", POLICY)
    client.auth.approle.create_or_update_approle("worker", token_policies=["worker"])
    role_id = client.auth.approle.read_role_id("worker")["data"]["role_id"]
    secret_id = client.auth.approle.generate_secret_id("worker")["data"]["secret_id"]
    for name, text in (("role_id", role_id), ("secret_id", secret_id)):
        (directory / name).write_text(text)
    return OpenBaoServer(
        address=bao.address,
        ca_file=bao.ca_file,
        role_id_file=str(directory / "role_id"),
        secret_id_file=str(directory / "secret_id"),
    )


def _host_key(directory: Path) -> str:
    """Make a host key with a certificate, which the server's configuration names."""
    place = directory / "current"
    place.mkdir(parents=True)

    def keygen(*arguments: str) -> None:
        subprocess.run(["ssh-keygen", "-q", *arguments], check=True, capture_output=True)

    keygen("-t", "ed25519", "-N", "", "-f", str(place / "key"))
    keygen("-t", "ed25519", "-N", "", "-f", str(place / "ca"))
    keygen("-s", str(place / "ca"), "-I", "host", "-h", str(place / "key.pub"))
    return (place / "key.pub").read_text().strip()


def _leaf(bao: BareOpenBao, directory: Path, name: str) -> tuple[Path, Path]:
    answer = bao.client().write_data("pki/issue/apps", data={"common_name": name})["data"]
    files = directory / f"{name}.pem", directory / f"{name}.key"
    files[0].write_text(f"{answer['certificate']}\n{answer['issuing_ca']}\n")
    files[1].write_text(answer["private_key"])
    return files


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, int]]:
    base = tmp_path_factory.mktemp("outside")
    for name in ("openbao", "sshd", "nginx", "ingress", "conf.d"):
        (base / name).mkdir()
    with bare_openbao(base / "openbao") as bao:
        worker = _openbao(base / "openbao", bao)
        ca = base / "ca.pem"
        ca.write_text(bao.client().read("pki/cert/ca")["data"]["certificate"])
        sshd = new_sshd(base / "sshd")
        key = _host_key(sshd.host_directory)
        kv = bao.client().secrets.kv.v2
        kv.create_or_update_secret(HOST_KEYS, {"127.0.0.1": key}, mount_point="kv")
        sshd.trusted_file.write_text(bao.client().read("ssh/config/ca")["data"]["public_key"])
        inside = _leaf(bao, base, "shop.apps.example.org")
        own = _leaf(bao, base, "host.example.org")
        told = 'return 200 "$host $http_x_forwarded_proto $ssl_server_name";'
        with (
            bare_sshd(sshd),
            bare_nginx(base / "ingress", *inside, told) as ingress,
            bare_nginx(base / "nginx", *own) as nginx,
        ):
            text = nginx.configuration.read_text().rstrip().removesuffix("}")
            nginx.configuration.write_text(f"{text}  include {base}/conf.d/*.conf;\n}}\n")
            subprocess.run(nginx.reload.split(), check=True)
            https_port, http_port = free_ports(2)
            places = OutsidePlaces(
                directory=str(base / "sites"),
                include_file=str(base / "conf.d" / "infraflows.conf"),
                https_port=https_port,
                http_port=http_port,
                check=nginx.check,
                show=nginx.check.replace(" -t ", " -T "),
                reload=nginx.reload,
            )
            yield World(bao, worker, places, nginx, ingress.port, ca), sshd.port


@pytest.fixture
def world(standing: tuple[World, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made, port = standing
    monkeypatch.setattr(hosts, "SSH_PORT", port)
    monkeypatch.setattr(outside_nginx, "DEFAULT_USER", "root")
    monkeypatch.setattr(nginx_outside, "openbao", lambda _: made.worker)
    monkeypatch.setattr(nginx_outside, "PLACES", made.places)
    yield made
    shutil.rmtree(made.places.directory, ignore_errors=True)
    subprocess.run(made.nginx.reload.split(), check=True)


@pytest.fixture
def make(make_tenant: Callable[..., Tenant], world: World) -> Callable[..., Tenant]:
    """Return a tenant with these outside names in production."""

    def tenant(*names: str, host: str = "127.0.0.1", **change: Any) -> Tenant:
        production = {
            "replicas": 2,
            "hostnames": ["shop.apps.example.org"],
            "outside_hostnames": list(names),
        }
        made = make_tenant(
            **{
                "name": f"shop-{secrets.token_hex(3)}",
                "environments": {"production": production},
                **change,
            }
        )
        platform = dataclasses.replace(
            made.platform,
            outside_address=host,
            ingress_address=f"127.0.0.1:{world.ingress_port}",
        )
        return dataclasses.replace(made, platform=platform)

    return tenant


def test_an_outside_name_is_answered_by_tls_and_handed_on_by_verified_tls(
    world: World, make: Callable[..., Tenant]
) -> None:
    tenant = make("www.shop.example.org", "shop.example.org")
    assert world.step.found(tenant) == {}
    world.step.apply(tenant)
    assert world.step.found(tenant) == world.step.wanted(tenant)
    told = world.wait_for("www.shop.example.org", bool)
    assert told == "www.shop.example.org https shop.apps.example.org"
    assert world.ask("shop.example.org").startswith("shop.example.org ")
    (key,) = world.files(tenant).glob("production/current/key.pem")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = world.serial("shop.example.org"), sorted(world.files(tenant).rglob("*"))
    world.step.apply(tenant)
    assert (world.serial("shop.example.org"), sorted(world.files(tenant).rglob("*"))) == before


def test_removing_takes_the_name_the_files_and_the_certificate_away(
    world: World, make: Callable[..., Tenant]
) -> None:
    tenant = make("shop.example.org")
    world.step.apply(tenant)
    world.wait_for("shop.example.org", bool)
    serial = world.serial("shop.example.org")
    assert serial
    assert not world.is_revoked(serial)
    world.step.remove(tenant)
    world.wait_for("shop.example.org", lambda answer: not answer)
    assert world.is_revoked(serial)
    assert not world.files(tenant).exists()
    assert world.step.found(tenant) == {}
    world.step.remove(tenant)


def test_another_name_is_served_and_the_former_is_not(
    world: World, make: Callable[..., Tenant]
) -> None:
    tenant = make("old.example.org")
    world.step.apply(tenant)
    world.wait_for("old.example.org", bool)
    changed = make("new.example.org", name=tenant.name)
    world.step.apply(changed)
    assert world.step.found(changed) == world.step.wanted(changed)
    world.wait_for("new.example.org", bool)
    world.wait_for("old.example.org", lambda answer: not answer)
    assert len(list(world.files(tenant).glob("production/*/"))) == 2, "one version and the link"
    none = make(name=tenant.name)
    assert world.step.wanted(none) == {}
    world.step.apply(none)
    assert world.step.found(none) == {}


def _killing(monkeypatch: pytest.MonkeyPatch, after: int | None) -> list[str]:
    """Kill after a number of commands on the host; returns the commands as they come."""
    seen: list[str] = []
    original = hosts.ssh_run

    def ssh_run(*arguments: Any, **named: Any) -> Any:
        if after is not None and len(seen) > after:
            raise Killed("the dead do nothing")
        answer = original(*arguments, **named)
        seen.append(str(arguments[4]).split(" ")[0])
        if after is not None and len(seen) > after:
            raise Killed(seen[-1])
        return answer

    monkeypatch.setattr(hosts, "ssh_run", ssh_run)
    return seen


@pytest.mark.parametrize("act", ["apply", "remove"])
def test_a_run_that_is_killed_after_any_command_is_finished_by_the_next(
    world: World, make: Callable[..., Tenant], monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    def prepared() -> Tenant:
        tenant = make(f"n{secrets.token_hex(4)}.example.org")
        if act == "remove":
            world.step.apply(tenant)
        return tenant

    def finished(tenant: Tenant, where: str) -> None:
        name = tenant.app.environments[tenant.app.stages[0]].outside_hostnames[0]
        if act == "apply":
            assert world.step.found(tenant) == world.step.wanted(tenant), where
            assert world.wait_for(name, bool).startswith(name), where
            world.step.remove(tenant)
        else:
            assert (world.step.found(tenant), world.files(tenant).exists()) == ({}, False), where
            world.wait_for(name, lambda answer: not answer)

    first = prepared()
    with monkeypatch.context() as patch:
        seen = _killing(patch, None)
        getattr(world.step, act)(first)
    finished(first, "whole")
    assert len(seen) >= 3
    for number in range(len(seen)):
        tenant = prepared()
        with monkeypatch.context() as patch:
            _killing(patch, number)
            with pytest.raises(Killed):
                getattr(world.step, act)(tenant)
        getattr(world.step, act)(tenant)
        finished(tenant, f"killed after {number}: {seen[number]}")


@pytest.mark.parametrize("place", ["check", "reload"])
def test_a_host_that_dies_before_nginx_has_read_a_version_is_put_right(
    world: World, make: Callable[..., Tenant], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name = f"n{secrets.token_hex(4)}.example.org"
    tenant = make(name)
    with monkeypatch.context() as patch:
        # The shell on the host that would go on is killed instead.
        dying = dataclasses.replace(world.places, **{place: "eval kill -9 $$"})
        patch.setattr(nginx_outside, "PLACES", dying)
        # All that is seen of it is a connection that ends.
        with pytest.raises(Unreachable):
            world.step.apply(tenant)
    assert world.ask(name) == ""
    assert world.step.found(tenant) not in ({}, world.step.wanted(tenant))
    world.step.apply(tenant)
    assert world.step.found(tenant) == world.step.wanted(tenant)
    assert world.wait_for(name, bool).startswith(name)


def test_a_name_that_another_server_block_answers_is_refused(
    world: World, make: Callable[..., Tenant]
) -> None:
    first = make("shop.example.org")
    world.step.apply(first)
    second = make("shop.example.org", "other.example.org")
    with pytest.raises(Conflict, match=r"answer shop\.example\.org already"):
        world.step.apply(second)
    assert world.step.found(second) == {}
    assert world.step.found(first) == world.step.wanted(first)


def test_what_nginx_refuses_is_not_served_and_the_former_is_served_on(
    world: World, make: Callable[..., Tenant]
) -> None:
    tenant = make("shop.example.org")
    bad = dataclasses.replace(tenant.platform, ingress_address="not an address")
    with pytest.raises(PermanentError, match="Unable to run sh on"):
        world.step.apply(dataclasses.replace(tenant, platform=bad))
    assert subprocess.run(world.nginx.check.split(), check=False).returncode == 0
    world.step.apply(tenant)
    world.wait_for("shop.example.org", bool)
    with pytest.raises(PermanentError, match="Unable to run sh on"):
        world.step.apply(dataclasses.replace(tenant, platform=bad))
    assert subprocess.run(world.nginx.check.split(), check=False).returncode == 0
    assert world.ask("shop.example.org")
    world.step.apply(tenant)
    assert world.step.found(tenant) == world.step.wanted(tenant)


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(
    world: World, make: Callable[..., Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = make("shop.example.org")
    world.step.apply(tenant)
    world.wait_for("shop.example.org", bool)
    before = world.serial("shop.example.org")
    for days, is_same in ((19, True), (21, False)):
        with monkeypatch.context() as patch:
            later = datetime.now(UTC) + timedelta(days=days)
            patch.setattr(nginx_outside, "now", lambda later=later: later)
            assert (world.step.found(tenant) == world.step.wanted(tenant)) is is_same
            world.step.apply(tenant)
    deadline = time.monotonic() + 20
    while world.serial("shop.example.org") in (before, None):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert world.step.found(tenant) == world.step.wanted(tenant)


def test_a_key_that_others_may_read_is_drift(world: World, make: Callable[..., Tenant]) -> None:
    tenant = make("shop.example.org")
    world.step.apply(tenant)
    (key,) = world.files(tenant).glob("production/current/key.pem")
    key.chmod(0o644)
    assert world.step.found(tenant) != world.step.wanted(tenant)
    world.step.apply(tenant)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert world.step.found(tenant) == world.step.wanted(tenant)


def test_a_host_whose_key_openbao_does_not_know_is_refused(
    world: World, make: Callable[..., Tenant]
) -> None:
    with pytest.raises(NotFound, match="has no host key of it"):
        world.step.apply(make("shop.example.org", host="127.0.0.2"))


def test_without_a_host_outside_nobody_is_asked(
    make_tenant: Callable[..., Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: str) -> OpenBaoServer:
        raise AssertionError("OpenBao was asked")

    monkeypatch.setattr(nginx_outside, "openbao", forbidden)
    tenant, step = make_tenant(), NginxOutside()
    step.apply(tenant)
    step.remove(tenant)
    assert (step.wanted(tenant), step.found(tenant)) == ({}, {})
