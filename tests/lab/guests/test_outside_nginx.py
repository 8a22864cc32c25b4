"""The step `nginx-outside` on a real machine: sudo, systemd, the distribution's NGINX, port 443."""

from __future__ import annotations

import dataclasses
import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blocks.openbao import OpenBaoServer
from domain.onboarding.app_reading import parse_app
from domain.onboarding.app_spec import EXAMPLE_APP, Stage
from domain.onboarding.tenant import Platform, Tenant
from lab import network
from lab.bare_services import BareOpenBao, bare_openbao
from lab.services.namespace import inside
from tasks.onboarding.steps import nginx_outside
from tasks.onboarding.steps.nginx_outside import NginxOutside

pytestmark = pytest.mark.lab
VMID = 141
ADDRESS = f"10.90.0.{VMID}"
INGRESS_PORT = 8443
NAME = "www.shop.example.org"
INSIDE = "shop.apps.example.org"


def _prepare(bao: BareOpenBao, directory: Path) -> OpenBaoServer:
    client = bao.client()
    for engine in ("ssh", "pki"):
        client.sys.enable_secrets_engine(engine)
    client.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
    client.sys.enable_auth_method("approle")
    client.sys.tune_mount_configuration("pki", max_lease_ttl="87600h")
    write = client.write_data
    write("pki/root/generate/internal", data={"common_name": "trial CA", "ttl": "8760h"})
    role = {"allow_any_name": True, "key_type": "ec", "key_bits": 256, "ttl": "720h"}
    write("pki/roles/apps", data={**role, "require_cn": False})
    write("ssh/config/ca", data={"generate_signing_key": True, "key_type": "ssh-ed25519"})
    signer = {"key_type": "ca", "allow_user_certificates": True, "allowed_users": "infraflows"}
    extensions = {"allowed_extensions": "permit-pty", "default_extensions": {"permit-pty": ""}}
    write("ssh/roles/infraflows", data={**signer, **extensions, "ttl": "8h", "max_ttl": "8h"})
    policy = 'path "*" { capabilities = ["create", "read", "update", "list"] }'
    client.sys.create_or_update_policy("worker", policy)
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


class _Ingress(http.server.BaseHTTPRequestHandler):
    """Tells whom it was asked for."""

    def do_GET(self) -> None:
        body = f"{self.headers['Host']} {self.headers['X-Forwarded-Proto']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Be silent."""


@contextmanager
def _ingress(bao: BareOpenBao, directory: Path) -> Iterator[None]:
    leaf = bao.client().write_data("pki/issue/apps", data={"common_name": INSIDE})["data"]
    (directory / "leaf.pem").write_text(f"{leaf['certificate']}\n{leaf['private_key']}\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "leaf.pem")
    server = http.server.ThreadingHTTPServer(("10.90.0.1", INGRESS_PORT), _Ingress)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _tenant() -> Tenant:
    production = {"replicas": 2, "hostnames": [INSIDE], "outside_hostnames": [NAME]}
    app = parse_app({**EXAMPLE_APP, "environments": {"production": production}})
    platform = Platform(
        environment="lab",
        clusters=dict.fromkeys(Stage, "demo"),
        domain="apps.example.org",
        ingress_address=f"10.90.0.1:{INGRESS_PORT}",
        outside_address=ADDRESS,
        registry="harbor.example.org",
        gitops_url="https://git.example.org/gitops.git",
        gitops_branch="main",
        gitops_credential="infraflows/lab/git",
        gitlab_url="https://gitlab.example.org",
        gateway_url="https://hooks.example.org",
        database_mount="database",
        database_server="apps",
        database_credential="infraflows/lab/database",
        pki_mount="pki",
        pki_role="apps",
    )
    return Tenant(platform, app, 7, dict.fromkeys(Stage, "v1.0.0-main"))


def _ask(ca: Path) -> str:
    done = subprocess.run(
        [
            *("curl", "-sS", "--noproxy", "*", "--cacert", str(ca), "--max-time", "10"),
            *("--retry", "10", "--retry-all-errors", "--retry-delay", "1"),
            *("--resolve", f"{NAME}:443:{ADDRESS}", f"https://{NAME}/"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout or done.stderr


async def test_a_name_is_answered_by_a_machine_outside_and_goes_again(
    guest_lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = Path("/run/netns") / network.network_namespace(guest_lab.instance)
    started = bare_openbao(tmp_path)
    with inside(namespace):
        bao = started.__enter__()
    try:
        with inside(namespace):
            server = _prepare(bao, tmp_path)
            ca = bao.client().read("ssh/config/ca")["data"]["public_key"].strip()
            (tmp_path / "pki.pem").write_text(
                bao.client().read("pki/cert/ca")["data"]["certificate"]
            )
        trusted = f'cert-authority,principals="infraflows" {ca} infraflows-ca'
        config = guest_lab.config(VMID)
        config = dataclasses.replace(config, ssh_keys=(*config.ssh_keys, trusted))
        await guest_lab.runtime.create_disk(config.disk_id, 1 << 30, None)
        await guest_lab.runtime.start(config)
        guest_lab.await_login(VMID)
        guest_lab.ssh(VMID, "sudo rm -f /etc/nginx/sites-enabled/default")
        key = await guest_lab.runtime.read_file(VMID, "/etc/ssh/ssh_host_ed25519_key.pub")
        monkeypatch.setattr(nginx_outside, "openbao", lambda _: server)
        tenant, step = _tenant(), NginxOutside()
        with inside(namespace), _ingress(bao, tmp_path):
            keys = {ADDRESS: key.decode().strip()}
            kv = bao.client().secrets.kv.v2
            kv.create_or_update_secret("infraflows/lab/outside-hosts", keys, mount_point="kv")
            step.apply(tenant)
            assert step.found(tenant) == step.wanted(tenant)
            assert _ask(tmp_path / "pki.pem") == f"{NAME} https"
            root = f"/etc/infraflows/nginx/{tenant.name}"
            mode = guest_lab.ssh(VMID, f"sudo stat -c %a:%U {root}/production/current/key.pem")
            assert mode == "600:root"
            step.remove(tenant)
            assert step.found(tenant) == {}
        assert guest_lab.ssh(VMID, f"sudo test ! -e {root} && echo gone") == "gone"
        assert guest_lab.ssh(VMID, "systemctl is-active nginx") == "active"
        await guest_lab.destroy(VMID)
    finally:
        started.__exit__(None, None, None)
