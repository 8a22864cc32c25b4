"""Every path, address and name of one lab, in one place.

Why it exists: the lab is a dozen processes, a network namespace, mounts and files. They must agree
on where things are, and two labs on one machine must never share any of them.

What it promises: everything that is derived from the instance and its home is derived here, from
the environment (`INFRAFLOWS_LAB_INSTANCE`, `INFRAFLOWS_LAB_HOME`, `INFRAFLOWS_UI_PORT`) and from
nothing else. Reading it touches nothing.

What it refuses: instance names that would not fit in a network interface's or a namespace's name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

GATEWAY = "10.90.0.1"
NETWORK = "10.90.0.0/24"
PREFIX_LENGTH = 24
BRIDGE = "vmbr0"
NODE_ADDRESSES = {"pve1": "10.90.0.11", "pve2": "10.90.0.12", "pve3": "10.90.0.13"}
ZONE = "lab.infraflows.internal"
ENVIRONMENT = "lab"
DEMO_CLUSTER = "demo"
"""Where the lab's applications land; what `bootstrap-cluster/lab` builds by default."""

PROXMOX_PORT = 8006
OPENBAO_PORT = 8200
DNS_PORT = 53
SITE_PORT = 8443
POSTGRESQL_PORT = 5432
PREFECT_PORT = 4200
GITLAB_PORT = 8929
HARBOR_PORT = 8930
REGISTRY_PORT = 5000
"""The real OCI registry behind Harbor; on the loopback address of the lab's namespace."""
ARGOCD_PORT = 8931
WEBHOOK_PORT = 8448
EDGE_ADDRESS = "10.90.0.5"
"""Where the stand-in for the ingress controller and the pods answers."""

WORK_POOL = "infraflows"
GIT_REPOSITORY = "infrastructure.git"
GITOPS_REPOSITORY = "gitops.git"
GIT_BRANCH = "main"

DEFAULT_INSTANCE = "lab"
DEFAULT_HOME = Path("/var/lib/infraflows-lab")
DEFAULT_UI_PORT = 4200

_INSTANCE_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,14}")


@dataclass(frozen=True)
class Layout:
    """Where one lab lives."""

    instance: str
    home: Path
    ui_port: int = DEFAULT_UI_PORT

    def __post_init__(self) -> None:
        if not _INSTANCE_PATTERN.fullmatch(self.instance):
            raise ValueError(
                f"Unable to use lab instance {self.instance!r}: the name must be 1-15 lower-case "
                "letters, digits or dashes and begin with a letter. Set INFRAFLOWS_LAB_INSTANCE."
            )
        if not self.home.is_absolute():
            raise ValueError(
                f"Unable to use lab home {str(self.home)!r}: the path is not absolute. "
                "Set INFRAFLOWS_LAB_HOME."
            )

    @classmethod
    def from_environment(cls) -> Layout:
        """The lab that this process' environment names."""
        instance = os.environ.get("INFRAFLOWS_LAB_INSTANCE") or DEFAULT_INSTANCE
        # A second instance without a home of its own must not write into the first one's.
        default_home = (
            DEFAULT_HOME
            if instance == DEFAULT_INSTANCE
            else DEFAULT_HOME.with_name(f"{DEFAULT_HOME.name}-{instance}")
        )
        home = Path(os.environ.get("INFRAFLOWS_LAB_HOME") or default_home)
        port_text = os.environ.get("INFRAFLOWS_UI_PORT") or str(DEFAULT_UI_PORT)
        if not port_text.isdigit() or not 1 <= int(port_text) <= 65535:
            raise ValueError(
                f"Unable to use UI port {port_text!r}: it is not a port number. "
                "Set INFRAFLOWS_UI_PORT to a number from 1 to 65535."
            )
        return cls(instance=instance, home=home, ui_port=int(port_text))

    def environment(self) -> dict[str, str]:
        """The variables that name this lab to a child process."""
        return {
            "INFRAFLOWS_LAB_INSTANCE": self.instance,
            "INFRAFLOWS_LAB_HOME": str(self.home),
            "INFRAFLOWS_UI_PORT": str(self.ui_port),
        }

    # --- network namespace -----------------------------------------------------------------

    @property
    def namespace(self) -> str:
        return f"infraflows-{self.instance}"

    @property
    def namespace_path(self) -> Path:
        return Path("/run/netns") / self.namespace

    # --- run-time files (gone after a reboot) ----------------------------------------------

    @property
    def run_directory(self) -> Path:
        """Sockets and pid files: short, because a socket's path has at most 107 bytes."""
        return Path("/run") / self.namespace

    @property
    def lock_file(self) -> Path:
        return Path("/run") / f"{self.namespace}.lock"

    @property
    def home_marker(self) -> Path:
        """Says which home this instance's running lab belongs to."""
        return self.run_directory / "home"

    def record_file(self, service: str) -> Path:
        return self.run_directory / "services" / f"{service}.json"

    # --- files -----------------------------------------------------------------------------

    @property
    def log_directory(self) -> Path:
        return self.home / "log"

    def log_file(self, service: str) -> Path:
        return self.log_directory / f"{service}.log"

    @property
    def ca_directory(self) -> Path:
        return self.home / "ca"

    @property
    def ca_file(self) -> Path:
        return self.ca_directory / "ca.pem"

    @property
    def ca_key_file(self) -> Path:
        return self.ca_directory / "ca.key"

    @property
    def server_certificate_file(self) -> Path:
        return self.ca_directory / "server.pem"

    @property
    def server_key_file(self) -> Path:
        return self.ca_directory / "server.key"

    @property
    def secrets_directory(self) -> Path:
        return self.home / "secrets"

    @property
    def postgresql_directory(self) -> Path:
        return self.home / "postgresql"

    @property
    def openbao_directory(self) -> Path:
        return self.home / "openbao"

    @property
    def dns_directory(self) -> Path:
        return self.home / "dns"

    @property
    def git_directory(self) -> Path:
        return self.home / "git"

    @property
    def state_directory(self) -> Path:
        return self.home / "state"

    @property
    def gitlab_directory(self) -> Path:
        return self.home / "gitlab"

    @property
    def harbor_directory(self) -> Path:
        return self.home / "harbor"

    @property
    def argocd_directory(self) -> Path:
        return self.home / "argocd"

    @property
    def webhook_directory(self) -> Path:
        return self.home / "gateway"

    @property
    def hypervisor_directory(self) -> Path:
        return self.home / "hypervisor"

    @property
    def prefect_directory(self) -> Path:
        return self.home / "prefect"

    @property
    def worker_directory(self) -> Path:
        return self.home / "worker"

    @property
    def role_id_file(self) -> Path:
        return self.worker_directory / "role_id"

    @property
    def secret_id_file(self) -> Path:
        return self.worker_directory / "secret_id"

    @property
    def ledger_directory(self) -> Path:
        return self.home / "ledger"

    @property
    def site_file(self) -> Path:
        return self.home / "site.yaml"

    # --- addresses -------------------------------------------------------------------------

    @property
    def openbao_url(self) -> str:
        return f"https://{GATEWAY}:{OPENBAO_PORT}"

    @property
    def proxmox_url(self) -> str:
        return f"https://{NODE_ADDRESSES['pve1']}:{PROXMOX_PORT}"

    @property
    def site_url(self) -> str:
        return f"https://{GATEWAY}:{SITE_PORT}"

    @property
    def git_url(self) -> str:
        return f"{self.site_url}/git/{GIT_REPOSITORY}"

    @property
    def gitops_url(self) -> str:
        return f"{self.site_url}/git/{GITOPS_REPOSITORY}"

    @property
    def gitlab_url(self) -> str:
        return f"https://{GATEWAY}:{GITLAB_PORT}"

    @property
    def harbor_url(self) -> str:
        return f"https://{GATEWAY}:{HARBOR_PORT}"

    @property
    def argocd_url(self) -> str:
        return f"https://{GATEWAY}:{ARGOCD_PORT}"

    @property
    def webhook_url(self) -> str:
        return f"https://{GATEWAY}:{WEBHOOK_PORT}"

    @property
    def state_url(self) -> str:
        return f"{self.site_url}/state"

    @property
    def artifacts_url(self) -> str:
        return f"{self.site_url}/rke2"

    @property
    def prefect_api_url(self) -> str:
        return f"http://{GATEWAY}:{PREFECT_PORT}/api"

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{self.ui_port}"
