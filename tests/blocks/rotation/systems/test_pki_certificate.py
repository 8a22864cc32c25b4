"""Certificates of a real OpenBao, served by a real NGINX."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from blocks.openbao import OpenBaoSession
from blocks.rotation.hosts import local_host
from blocks.rotation.pki_certificate import PkiCertificate
from domain.errors import PermanentError, Unreachable
from domain.rotation.contract import SecretRef, Values
from lab.bare_hosts import BareNginx, bare_nginx

NAME = "web.test.internal"


@dataclass
class Web:
    adapter: PkiCertificate
    secret: SecretRef
    first: Values
    nginx: BareNginx

    def served(self) -> x509.Certificate:
        pem = ssl.get_server_certificate(("127.0.0.1", self.nginx.port))
        return x509.load_pem_x509_certificate(pem.encode())

    def serial(self) -> int:
        return self.served().serial_number

    def is_served(self) -> str | None:
        """One request over a connection of its own, as a client that trusts the CA."""
        context = ssl.create_default_context(cadata=self.first["ca_chain"])
        url = f"https://127.0.0.1:{self.nginx.port}/"
        extensions = {"sni_hostname": NAME}
        with httpx.Client(verify=context, timeout=30, trust_env=False) as client:
            text = client.get(url, headers={"Host": NAME}, extensions=extensions).text
        return None if text == "served" else text


@pytest.fixture
def web(bao_session: OpenBaoSession, tmp_path: Path) -> Iterator[Web]:
    directory = tmp_path / "tls"
    parameters = {
        "mount": "pki",
        "role": "web",
        "common_name": NAME,
        "ttl": "2h",
        "hosts": "local",
        "directory": str(directory),
        "check": "true",
        "reload": "true",
    }
    secret = SecretRef(f"web/{tmp_path.name}", PkiCertificate.kind, "test", parameters)
    adapter = PkiCertificate(bao_session, lambda _secret: [local_host()])
    first = adapter.create(secret, 0, None)
    adapter.distribute(secret, first)
    current = directory / "current"
    with bare_nginx(tmp_path, current / "certificate.pem", current / "key.pem") as nginx:
        commands = {"check": nginx.check, "reload": nginx.reload, "port": str(nginx.port)}
        yield Web(adapter, replace(secret, parameters={**parameters, **commands}), first, nginx)


def number(values: Values) -> int:
    return int(values["serial"].replace(":", ""), 16)


def test_a_certificate_rotates_under_load_and_the_old_one_is_revoked(
    web: Web, bench: Any, report: Any
) -> None:
    rotation = bench.rotation(web.adapter, web.secret, web.first)

    with bench.load(web.is_served) as counted:
        for _turn in range(3):
            proof = rotation.run()
            assert proof.is_dead, proof
            assert "OCSP says REVOKED" in proof.answer
            assert web.serial() == number(rotation.pending)
            rotation.finish()
    report(PkiCertificate.kind, counted)

    versions = [path.name for path in (web.nginx.directory / "tls").iterdir()]
    assert sorted(versions) == sorted(["current", rotation.current["serial"].replace(":", "-")])


def test_a_certificate_survives_a_kill_at_every_edge(web: Web, bench: Any) -> None:
    rotation = bench.rotation(web.adapter, web.secret, web.first)

    bench.crash_matrix(rotation, web.is_served, bench.edges)

    assert web.serial() == number(rotation.current)


def test_a_certificate_that_is_not_revoked_is_not_dead(web: Web) -> None:
    new = web.adapter.create(web.secret, 1, web.first)
    assert "serves it" in web.adapter.prove_dead(web.secret, web.first).answer

    web.adapter.distribute(web.secret, new)
    wait_until_served(web, new)
    proof = web.adapter.prove_dead(web.secret, web.first)

    assert not proof.is_dead
    assert proof.answer == "not on the CRL, OCSP says GOOD"


def wait_until_served(web: Web, values: Values) -> None:
    for _look in range(600):
        if all(seen.is_on_new for seen in web.adapter.observe(web.secret, values, None)):
            return
    raise AssertionError("the certificate is not served")


def test_files_that_the_server_refuses_are_taken_back_at_once(web: Web) -> None:
    new = dict(web.adapter.create(web.secret, 1, web.first))
    new["private_key"] = web.first["private_key"]

    with pytest.raises(PermanentError, match="its key is another one's"):
        web.adapter.test(web.secret, new)
    with pytest.raises(PermanentError, match="Unable to run nginx on local"):
        web.adapter.distribute(web.secret, new)

    assert web.is_served() is None
    assert web.serial() == number(web.first)
    link = web.nginx.directory / "tls" / "current"
    assert link.readlink() == Path(web.first["serial"].replace(":", "-"))


def test_a_rotation_that_is_given_up_serves_the_former_certificate(web: Web) -> None:
    new = web.adapter.create(web.secret, 1, web.first)
    web.adapter.distribute(web.secret, new)
    wait_until_served(web, new)

    for _attempt in range(100):
        try:
            web.adapter.rollback(web.secret, new, web.first)
            break
        except Unreachable:
            continue

    assert web.serial() == number(web.first)
    assert web.adapter.prove_dead(web.secret, new).is_dead
    assert not web.adapter.prove_dead(web.secret, web.first).is_dead


def test_keys_are_readable_by_root_alone_and_never_in_an_error(web: Web) -> None:
    key = web.nginx.directory / "tls" / "current" / "key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE KEY" in key.read_text()

    broken = replace(web.secret, parameters={**web.secret.parameters, "check": "false"})
    with pytest.raises(PermanentError) as caught:
        web.adapter.distribute(broken, web.adapter.create(web.secret, 1, web.first))
    assert "PRIVATE KEY" not in str(caught.value)


def test_the_engine_finishes_after_a_kill_at_each_edge(
    web: Web, matrix: Any, engine_world: Any
) -> None:
    number = itertools.count()

    def make() -> Any:
        secret = replace(web.secret, path=f"web/engine-{next(number)}")
        first = web.adapter.create(secret, 0, None)
        web.adapter.distribute(secret, first)
        wait_until_served(web, first)
        is_served = lambda: web.is_served() is None  # noqa: E731
        return engine_world(web.adapter, secret, first, works, holds_working=is_served)

    def works(values: Values) -> bool:
        """Whether clients that look at revocations accept it."""
        return web.adapter._ocsp_status(web.secret, values) == "GOOD"

    assert matrix.kill_everywhere(make, every=5) > 6
