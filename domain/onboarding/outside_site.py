"""What the NGINX outside the clusters is told about an application: pure text.

Exists so that plan and step compare the same. Promises that TLS ends with a certificate of the
outside names, and that what is handed on to the ingress goes by TLS too: to the stage's first
inside name, whose certificate is verified. Refuses values of a request where the ingress would
believe them: who asked is told by this server alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from domain.onboarding.app_spec import Stage
from domain.onboarding.tenant import MANAGED_BY, Tenant

CERTIFICATE = "certificate.pem"
KEY = "key.pem"
AUTHORITY = "ca.pem"
SITE = "site.conf"
CURRENT = "current"


@dataclass(frozen=True)
class OutsidePlaces:
    """Where files lie on the host, and what its NGINX listens on."""

    directory: str = "/etc/infraflows/nginx"
    """Ours alone: `<directory>/<application>/<stage>/current/` holds one server block's files."""
    include_file: str = "/etc/nginx/conf.d/infraflows.conf"
    """Has NGINX read ours; the same for all applications, and it stays."""
    https_port: int = 443
    http_port: int = 80
    check: str = "nginx -t -q"
    show: str = "nginx -T -q"
    reload: str = "systemctl reload-or-restart nginx"

    @property
    def include_text(self) -> str:
        """What stands in the file that NGINX reads by itself."""
        wildcard = f"{self.directory}/*/*/{CURRENT}/{SITE}"
        return f"# {MANAGED_BY}: applications' host names\ninclude {wildcard};\n"

    def application(self, name: str) -> str:
        """Directory of an application."""
        return f"{self.directory}/{name}"

    def stage(self, name: str, stage: str) -> str:
        """Directory of a stage, whose versions lie below it."""
        return f"{self.application(name)}/{stage}"


def outside_names(tenant: Tenant, stage: Stage) -> list[str]:
    """Return the host names of a stage that are answered outside the clusters."""
    spec = tenant.app.environments.get(stage)
    return sorted(spec.outside_hostnames) if spec else []


def site_text(tenant: Tenant, stage: Stage, places: OutsidePlaces) -> str:
    """Return the server blocks of a stage."""
    names = " ".join(outside_names(tenant, stage))
    files = f"{places.stage(tenant.name, stage.value)}/{CURRENT}"
    return f"""\
# {MANAGED_BY} app={tenant.name} stage={stage.value}
server {{
    listen {places.http_port};
    server_name {names};
    return 301 https://$host$request_uri;
}}
server {{
    listen {places.https_port} ssl;
    server_name {names};
    ssl_certificate {files}/{CERTIFICATE};
    ssl_certificate_key {files}/{KEY};
    ssl_protocols TLSv1.2 TLSv1.3;
    location / {{
        proxy_pass https://{tenant.platform.ingress_address};
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto https;
        proxy_ssl_server_name on;
        proxy_ssl_name {tenant.hostnames(stage)[0]};
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 3;
        proxy_ssl_trusted_certificate {files}/{AUTHORITY};
    }}
}}
"""
