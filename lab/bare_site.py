"""A whole site for applications without the lab: every system on loop-back, for tests of the flows.

Why it exists: whether an application runs, serves and goes without a trace can only be told where
all systems are. Promises a real OpenBao, PostgreSQL, BIND, Kubernetes, Argo CD and Git, the lab's
GitLab and Harbor, its stand-in for ingress and containers, all with the rights that the lab gives;
and block documents that say where they are. Refuses machines: there are no guests and no networks
here, so nothing that goes by SSH.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block

from blocks.app_platform import AppPlatform
from blocks.dns_zone import DnsZone
from blocks.git_repository import GitRepository
from blocks.gitlab_server import GitLabServer
from blocks.harbor import HarborRegistry
from blocks.kubernetes_api import KubernetesApi, has_condition
from blocks.kubernetes_transport import APPLY_PATCH
from blocks.ledger_file import LedgerDirectory
from blocks.openbao import OpenBaoServer
from domain.errors import LifecycleError
from domain.manifest_order import key_of
from domain.onboarding.app_spec import Stage
from lab.bare_argocd import BareGitServer, bare_argocd, bare_git_server
from lab.bare_control_plane import BareControlPlane, bare_control_plane, node_manifest
from lab.bare_gitlab import PRODUCT, BareGitLab, bare_gitlab
from lab.bare_harbor import BareHarbor, bare_harbor
from lab.bare_services import (
    BareDns,
    BareOpenBao,
    BarePostgresql,
    bare_dns,
    bare_openbao,
    bare_postgresql,
)
from lab.edge.server import EdgeServer, serve
from lab.edge.view import ClusterView
from lab.layout import ENVIRONMENT, ZONE, Layout
from lab.services.certificates import ensure_certificates
from lab.services.credentials import credential, credential_file, ensure_credentials
from lab.services.openbao_setup import configure
from lab.services.postgresql import BINARIES, caretaker

CLUSTER = "demo"
INGRESS = "127.0.0.5"
"""An address of the loop-back device of which nobody else uses port 443."""

EDGE_STEP_SECONDS = 0.5
PARTS = ("openbao", "postgresql", "dns", "kubernetes", "argocd", "git", "gitlab", "harbor", "home")


@dataclass(frozen=True)
class SiteLayout(Layout):
    """The lab's files in a directory of the tests, its OpenBao on a port of the machine."""

    address: str = ""

    @property
    def namespace_path(self) -> Path:
        """The machine's own network."""
        return Path("/proc/self/ns/net")

    @property
    def openbao_url(self) -> str:
        """Where it really listens."""
        return self.address


@dataclass(frozen=True)
class BareSite:
    """Every system, and how its administrator looks at it."""

    directory: Path
    bao: BareOpenBao
    postgresql: BarePostgresql
    dns: BareDns
    control_plane: BareControlPlane
    gitlab: BareGitLab
    harbor: BareHarbor
    git: BareGitServer

    @property
    def layout(self) -> SiteLayout:
        """Where the lab's set-up puts its files."""
        return SiteLayout("trial", self.directory / "home", address=self.bao.address)

    @property
    def gitops_directory(self) -> Path:
        """The bare GitOps repository on the server's disk."""
        return self.git.directory / "git" / "gitops.git"

    def put(self, path: str, **values: str) -> None:
        """Write a secret as the administrator."""
        client = self.bao.client()
        client.secrets.kv.v2.create_or_update_secret(path, values, mount_point="kv")

    def blocks(self) -> list[tuple[str, Block]]:
        """Return the block documents of the site, unsaved, each with its name."""
        secrets, layout = f"infraflows/{ENVIRONMENT}", self.layout
        openbao = OpenBaoServer(
            address=self.bao.address,
            ca_file=self.bao.ca_file,
            role_id_file=str(layout.role_id_file),
            secret_id_file=str(layout.secret_id_file),
        )
        gitops = GitRepository(
            url=self.git.url("gitops.git"),
            ca_file=str(self.git.ca_file),
            credential=f"{secrets}/git",
        )
        zone = DnsZone(
            server="127.0.0.1", port=self.dns.port, zone=ZONE, credential=f"{secrets}/dns"
        )
        gitlab = GitLabServer(
            url=self.gitlab.url, ca_file=self.gitlab.ca_file, credential=f"{secrets}/gitlab"
        )
        harbor = HarborRegistry(
            url=self.harbor.url,
            registry=self.harbor.registry,
            ca_file=self.harbor.ca_file,
            credential=f"{secrets}/harbor",
        )
        ledger = LedgerDirectory(directory=str(self.directory / "home" / "ledger"))
        named: list[Block] = [openbao, zone, gitlab, harbor, ledger, self._platform(secrets)]
        return [(f"{ENVIRONMENT}-gitops", gitops), *((ENVIRONMENT, block) for block in named)]

    def _platform(self, secrets: str) -> AppPlatform:
        return AppPlatform(
            environment=ENVIRONMENT,
            clusters=dict.fromkeys(Stage, CLUSTER),
            domain=f"apps.{ZONE}",
            ingress_address=INGRESS,
            registry=self.harbor.registry,
            gitops_url=self.git.url("gitops.git"),
            gitops_credential=f"{secrets}/git",
            gitlab_url=self.gitlab.url,
            gateway_url="https://gateway.example.org",
            database_credential=f"{secrets}/database",
            openbao_url=self.bao.address,
            database_address=f"127.0.0.1:{self.postgresql.port}",
        )


@contextmanager
def bare_site(directory: Path, bootstrap: Callable[[KubernetesApi], None]) -> Iterator[BareSite]:
    """Run a site in `directory`, which PostgreSQL's system user must be able to reach.

    `bootstrap` puts the platform into the cluster, Argo CD among it.
    """
    for part in PARTS:
        (directory / part).mkdir(mode=0o755)
    with ExitStack() as running:
        start = running.enter_context
        plane = start(bare_control_plane(directory / "kubernetes"))
        harbor = start(bare_harbor(directory / "harbor"))
        site = BareSite(
            directory,
            start(bare_openbao(directory / "openbao")),
            start(bare_postgresql(directory / "postgresql")),
            start(bare_dns(directory / "dns", ZONE)),
            plane,
            start(bare_gitlab(directory / "gitlab", registry_ca_file=harbor.ca_file)),
            harbor,
            start(bare_git_server(directory / "git", "gitops.git")),
        )
        _set_up(site)
        _prepare_cluster(plane, bootstrap)
        start(bare_argocd(directory / "argocd", plane))
        start(_edge(plane))
        yield site


def _set_up(site: BareSite) -> None:
    """Do what the lab's administrator does, by the lab's own set-up."""
    layout = site.layout
    ensure_certificates(layout)
    own = layout.ca_file.read_text()
    # Whoever trusts the lab trusts this OpenBao too.
    layout.ca_file.write_text(own + Path(site.bao.ca_file).read_text())
    ensure_credentials(layout)
    place = {"host": "127.0.0.1", "port": str(site.postgresql.port)}
    for name in ("database", "database-issuer"):
        login = {**credential(layout, name), **place}
        credential_file(layout, name).write_text(json.dumps(login))
    credential_file(layout, "dns").write_text(json.dumps(dict(site.dns.key)))
    layout.openbao_directory.mkdir()
    keys = json.dumps({"root_token": site.bao.root_token})
    (layout.openbao_directory / "keys.json").write_text(keys)
    _add_database_logins(site)
    configure(layout)
    secrets = f"infraflows/{ENVIRONMENT}"
    site.put(f"clusters/{CLUSTER}/kubeconfig", kubeconfig=site.control_plane.kubeconfig)
    site.put(f"{secrets}/git", **site.git.login)
    site.put(f"{secrets}/gitlab", token=site.gitlab.tokens[PRODUCT])
    site.put(f"{secrets}/harbor", **site.harbor.administrator)


def _add_database_logins(site: BareSite) -> None:
    layout, server = site.layout, site.postgresql
    statements = caretaker("provisioner", "CREATEDB CREATEROLE", credential(layout, "database"))
    statements += caretaker("openbao", "CREATEROLE", credential(layout, "database-issuer"))
    subprocess.run(
        [str(BINARIES / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"],
        input=statements,
        text=True,
        check=True,
        env={
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": server.username,
            "PGPASSWORD": server.password,
            "PGDATABASE": "postgres",
            "PATH": os.environ["PATH"],
        },
    )


def _prepare_cluster(plane: BareControlPlane, bootstrap: Callable[[KubernetesApi], None]) -> None:
    """Add a node on which kwok makes every pod run, and what a bootstrap puts there."""
    manifest: Any = node_manifest("worker-1", "v1.36.3+rke2r1", "192.0.2.61")
    key = key_of(manifest)
    with KubernetesApi.from_kubeconfig(plane.kubeconfig) as api:
        api.apply(manifest)
        api._transport.send(
            "PATCH",
            api._path(key) + "/status",
            query={"fieldManager": "kubelet", "force": "true"},
            body=manifest,
            content_type=APPLY_PATCH,
        )
        api.wait_for(key, has_condition("Ready"), "ready", 60)
        bootstrap(api)


@contextmanager
def _edge(plane: BareControlPlane) -> Iterator[None]:
    default = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    default.load_cert_chain(plane.directory / "server.crt", plane.directory / "server.key")
    view = ClusterView(plane.kubeconfig, INGRESS)
    server = EdgeServer((INGRESS, 443), lambda: [view], default)
    serve(server)
    ending = threading.Event()

    def show_addresses() -> None:
        while not ending.wait(EDGE_STEP_SECONDS):
            with suppress(LifecycleError):
                view.step()

    thread = threading.Thread(target=show_addresses, name="edge", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(10)
        server.shutdown()
        server.server_close()
        view.stop()
