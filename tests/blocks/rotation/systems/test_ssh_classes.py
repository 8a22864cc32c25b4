"""Host certificates and user CAs of a real OpenBao, with a real sshd."""

from __future__ import annotations

import base64
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blocks.openbao import OpenBaoSession
from blocks.rotation.hosts import Host, local_host, ssh_run
from blocks.rotation.ssh_host_certificate import SshHostCertificate, keygen
from blocks.rotation.ssh_user_ca import SshUserCa
from blocks.ssh_identity import make_identity
from domain.errors import InvalidSpec, NotFound, PermanentError, Unauthorized
from domain.rotation.contract import SecretRef, Values
from lab.bare_hosts import BareSshd, bare_sshd, new_sshd

HANDSHAKES = 10
CERTIFICATE_SECONDS = 2


@dataclass
class Server:
    sshd: BareSshd
    session: OpenBaoSession
    secret: SecretRef
    adapter: SshHostCertificate
    first: Values
    ca: str

    def shown(self, count: int = 1) -> list[str]:
        """The certificates of as many handshakes at once, each again if sshd was away."""
        found: list[str] = []
        for _attempt in range(5):
            lines = "127.0.0.1\n" * (count - len(found))
            done = subprocess.run(
                ["ssh-keyscan", "-c", "-t", "ed25519", "-p", str(self.sshd.port), "-f", "-"],
                input=lines,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            found += [line.split()[-1] for line in done.stdout.splitlines() if "cert-v01" in line]
            if len(found) == count:
                break
            time.sleep(0.2)
        return found


@pytest.fixture
def server(bao_session: OpenBaoSession, tmp_path: Path) -> Iterator[Server]:
    sshd = new_sshd(tmp_path)
    parameters = {
        "role": "host",
        "principals": "app1.test",
        "hosts": "local",
        "directory": str(sshd.host_directory),
        "port": str(sshd.port),
        "krl_path": f"ssh/krl-{tmp_path.name}",
        "check": sshd.check,
        "reload": "true",
    }
    early = SecretRef(f"ssh/{tmp_path.name}", SshHostCertificate.kind, "test", parameters)
    adapter = SshHostCertificate(bao_session, lambda _secret: [local_host()])
    first = adapter.create(early, 0, None)
    # There is no sshd_config yet that a check could read.
    quiet = SecretRef(early.path, early.kind, "test", {**parameters, "check": "true"})
    adapter.distribute(quiet, first)
    issuer = bao_session.call("read", "GET", "ssh/config/issuers")["data"]["default"]
    ca = bao_session.call("read", "GET", f"ssh/issuer/{issuer}")["data"]["public_key"].strip()
    sshd.trusted_file.write_text(ca + "\n")
    with bare_sshd(sshd):
        secret = SecretRef(early.path, early.kind, "test", {**parameters, "reload": sshd.reload})
        yield Server(sshd, bao_session, secret, adapter, first, ca)


def blob(values: Values) -> str:
    return values["certificate"].split()[1]


def test_a_host_certificate_rotates_under_load_and_the_old_one_is_revoked(
    server: Server, bench: Any, report: Any
) -> None:
    rotation = bench.rotation(server.adapter, server.secret, server.first)

    def ask() -> str | None:
        found = server.shown(HANDSHAKES)
        known = {blob(v) for v in (rotation.current, rotation.pending) if v is not None}
        known |= {blob(rotation.current)}
        if len(found) < HANDSHAKES:
            return f"{HANDSHAKES - len(found)} handshakes failed"
        return None if set(found) <= known | former else "another host key"

    former = {blob(server.first)}
    with bench.load(ask, threads=1, weight=HANDSHAKES) as counted:
        while rotation.generation < 3 or counted.requests < 4 * HANDSHAKES:
            proof = rotation.run()
            assert proof.is_dead, proof
            former.add(blob(rotation.pending))
            rotation.finish()
    report(SshHostCertificate.kind, counted)

    assert server.shown() == [blob(rotation.current)]
    assert is_revoked(server, server.first)
    assert not is_revoked(server, rotation.current)
    versions = sorted(path.name for path in server.sshd.host_directory.iterdir())
    assert versions == ["current", f"s{rotation.current['serial']}"]


def is_revoked(server: Server, values: Values) -> bool:
    """As a client that has fetched the list."""
    krl = server.sshd.directory / "fetched"
    held = server.session.read(server.secret.parameters["krl_path"])["krl"]
    krl.write_bytes(base64.b64decode(held))
    certificate = server.sshd.directory / "asked.pub"
    certificate.write_text(values["certificate"])
    done = subprocess.run(
        ["ssh-keygen", "-Q", "-f", krl, certificate], capture_output=True, check=False
    )
    return b"REVOKED" in done.stdout


def test_a_client_that_trusts_the_ca_alone_accepts_the_new_host_key(server: Server) -> None:
    new = server.adapter.create(server.secret, 1, server.first)
    server.adapter.test(server.secret, new)
    server.adapter.distribute(server.secret, new)
    wait_until_shown(server, new)
    known = server.sshd.directory / "known"
    known.write_text(f"@cert-authority app1.test {server.ca}\n")

    done = subprocess.run(
        [
            *("ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "HostKeyAlias=app1.test"),
            *("-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "IdentitiesOnly=yes", "-o", "IdentityFile=none"),
            *("-p", str(server.sshd.port), "root@127.0.0.1", "true"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    # The host is believed; this client has no key to log in with.
    assert "Permission denied" in done.stderr


def wait_until_shown(server: Server, values: Values) -> None:
    for _look in range(100):
        if all(seen.is_on_new for seen in server.adapter.observe(server.secret, values, None)):
            return
        time.sleep(0.1)
    raise AssertionError("the certificate is not shown")


def test_a_host_certificate_survives_a_kill_at_every_edge(server: Server, bench: Any) -> None:
    rotation = bench.rotation(server.adapter, server.secret, server.first)

    def is_served() -> str | None:
        return None if server.shown() else "no host certificate is shown"

    bench.crash_matrix(rotation, is_served, bench.edges)

    assert server.shown() == [blob(rotation.current)]


def test_one_key_for_two_hosts_is_refused(bao_session: OpenBaoSession, server: Server) -> None:
    adapter = SshHostCertificate(bao_session, lambda _secret: [local_host(), local_host()])

    with pytest.raises(InvalidSpec, match="of one host, not of 2"):
        adapter.distribute(server.secret, server.first)


def test_a_user_certificate_is_no_host_certificate(server: Server) -> None:
    wrong = SecretRef(
        "a", SshHostCertificate.kind, "test", {**server.secret.parameters, "role": "user"}
    )

    # Already OpenBao's role refuses what it is not for.
    with pytest.raises(PermanentError):
        server.adapter.create(wrong, 1, None)


# --- the user CA ---


class HandingOut(SshUserCa):
    """Does beside its own what the engine does: it writes the path that consumers read."""

    def distribute(self, secret: SecretRef, new: Values) -> None:
        if not self._session.exists(secret.path) or self._session.read(secret.path) != dict(new):
            self._session.write(secret.path, new)
        super().distribute(secret, new)


@dataclass
class Site:
    server: Server
    secret: SecretRef
    adapter: SshUserCa
    first: Values

    def log_in(self, directory: Path) -> str | None:
        """Log in with a certificate that the role signs now; one that ends meanwhile is renewed."""
        while True:
            began = time.monotonic()
            try:
                return self._log_in(directory)
            except Unauthorized as error:
                if time.monotonic() - began < CERTIFICATE_SECONDS:
                    return str(error)

    def _log_in(self, directory: Path) -> str | None:
        own = directory / f"login-{secrets.token_hex(6)}"
        own.mkdir()
        session = self.server.session

        def sign(public_key: str) -> str:
            return session.sign_ssh_key("user", public_key, ["root"], CERTIFICATE_SECONDS)

        keys = session.read(self.secret.parameters["host_keys_path"])
        identity = make_identity(own, sign, keys)
        port = self.server.sshd.port
        code, _output, words = ssh_run(identity, "root", "127.0.0.1", port, "true")
        return None if code == 0 else words


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Site:
    keys_path = f"ssh/hosts-{tmp_path.name}"
    key = (server.sshd.host_directory / "current" / "key.pub").read_text().strip()
    server.session.write(keys_path, {"127.0.0.1": key})
    secret = SecretRef(
        f"ssh/ca-{tmp_path.name}",
        SshUserCa.kind,
        "test",
        {
            "role": "user",
            "login_user": "root",
            "hosts": "local",
            "host_keys_path": keys_path,
            "trusted_file": str(server.sshd.trusted_file),
            "port": str(server.sshd.port),
        },
    )
    adapter = HandingOut(server.session, lambda _secret: [local_host()])
    return Site(server, secret, adapter, {"public_key": server.ca})


def test_a_user_ca_rotates_while_logins_go_on_and_the_old_one_is_refused(
    site: Site, bench: Any, report: Any, tmp_path: Path
) -> None:
    logins = tmp_path / "logins"
    logins.mkdir()
    rotation = bench.rotation(site.adapter, site.secret, site.first)
    rotation.generation = time.monotonic_ns()

    with bench.load(lambda: site.log_in(logins), threads=3) as counted:
        time.sleep(3)
        proof = rotation.run()
        time.sleep(3)
    report(SshUserCa.kind, counted)

    assert proof.is_dead, proof
    assert proof.answer == "Permission denied"
    assert "1 host" in proof.method
    trusted = site.server.sshd.trusted_file.read_text().splitlines()
    assert trusted == [" ".join(rotation.pending["public_key"].split()[:2])]
    with pytest.raises(NotFound):
        site.adapter._issuer_of(site.secret, site.first)


def test_a_user_ca_survives_a_kill_at_every_edge(site: Site, bench: Any, tmp_path: Path) -> None:
    logins = tmp_path / "logins"
    logins.mkdir()
    rotation = bench.rotation(site.adapter, site.secret, site.first)
    rotation.generation = time.monotonic_ns()

    bench.crash_matrix(rotation, lambda: site.log_in(logins), bench.edges)

    assert len(site.server.sshd.trusted_file.read_text().splitlines()) == 1


def test_a_ca_rotation_that_is_given_up_leaves_the_former_ca(site: Site, tmp_path: Path) -> None:
    logins = tmp_path / "logins"
    logins.mkdir()
    adapter, secret = site.adapter, site.secret
    new = adapter.create(secret, time.monotonic_ns(), site.first)
    adapter.set(secret, new, site.first)
    adapter.test(secret, new)
    adapter.distribute(secret, new)

    adapter.rollback(secret, new, site.first)
    adapter.rollback(secret, new, site.first)

    assert site.log_in(logins) is None
    assert adapter._signer(secret) == " ".join(site.first["public_key"].split()[:2])
    assert adapter.prove_dead(secret, new).is_dead


def test_the_old_ca_is_trusted_until_its_certificates_have_ended(site: Site) -> None:
    adapter, secret = site.adapter, site.secret
    site.server.session.call(
        "change",
        "POST",
        "ssh/roles/user",
        {
            "key_type": "ca",
            "allow_user_certificates": True,
            "allowed_users": "root",
            "ttl": "1h",
            "max_ttl": "1h",
        },
    )
    try:
        new = adapter.create(secret, time.monotonic_ns(), site.first)
        adapter.set(secret, new, site.first)
        adapter.distribute(secret, new)
        seen = {one.consumer: one for one in adapter.observe(secret, new, site.first)}
    finally:
        site.server.session.call(
            "change",
            "POST",
            "ssh/roles/user",
            {
                "key_type": "ca",
                "allow_user_certificates": True,
                "allowed_users": "root",
                "ttl": "2s",
                "max_ttl": "2s",
            },
        )
        adapter.rollback(secret, new, site.first)

    assert seen["role user"].is_on_new
    assert seen["host local"].is_on_new
    assert seen["certificates of the old CA"].is_on_new is False


# --- hosts ---


def test_a_file_is_written_whole_and_keeps_its_owner(tmp_path: Path) -> None:
    host, path = local_host(), tmp_path / "deep" / "file"
    host.write(str(path), b"first\n", 0o600)
    subprocess.run(["chown", "daemon", path], check=True)

    host.write(str(path), b"second\n", 0o640)

    assert host.read(str(path)) == b"second\n"
    assert path.owner() == "daemon"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_content_is_never_on_a_command_line() -> None:
    seen: list[list[str]] = []

    def shell(command: Any, content: bytes) -> tuple[int, bytes, str]:
        seen.append(list(command))
        return 0, b"", ""

    Host("somewhere", shell).write("/etc/secret", b"the-content", 0o600)

    assert "the-content" not in repr(seen)


def test_what_is_absent_is_told_apart_from_what_fails(tmp_path: Path) -> None:
    host = local_host()

    with pytest.raises(NotFound):
        host.read(str(tmp_path / "none"))
    host.remove(str(tmp_path / "none"))
    with pytest.raises(PermanentError, match="it ended with 1"):
        host.run(["false"])


def test_keygen_tells_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="Unable to run ssh-keygen"):
        keygen(["-l", "-f", str(tmp_path / "none")])
