"""What every system holds of the benchmark's applications, by the rights of their administrators.

Exists because "no interference" is to be seen from outside, not told by the flows. Promises one
text for each application and system in which another's name can be searched, and a list of names
in which nothing may be left. Values of secrets are in neither.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

from blocks.kubernetes_api import KubernetesApi
from lab.holdings import look as look_at_clusters
from lab.layout import EDGE_ADDRESS, GITOPS_REPOSITORY, Layout
from lab.services.credentials import credential
from lab.services.https_probe import request
from lab.services.namespace import inside
from lab.services.openbao_setup import Client, root_client

CLUSTER = "demo"
STAGE = "development"
DOMAIN = "apps.lab.infraflows.internal"
ARGOCD = "argocd"
KINDS = (
    ("v1", "LimitRange"),
    ("v1", "ResourceQuota"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("apps/v1", "Deployment"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
)
DATABASES = """
    SELECT datname, pg_get_userbyid(datdba), coalesce(array_to_string(datacl, ' '), '')
    FROM pg_database WHERE NOT datistemplate
"""
MEMBERS = """
    SELECT r.rolname, coalesce(string_agg(pg_get_userbyid(m.roleid), ' '), '')
    FROM pg_roles r LEFT JOIN pg_auth_members m ON m.member = r.oid GROUP BY r.rolname
"""


@dataclass
class Seen:
    """Everything at one moment."""

    texts: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Application -> system -> what it holds, as text."""
    quotas: dict[str, str] = field(default_factory=dict)
    """Application -> its quotas in Kubernetes and Harbor."""
    unsynced: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    """System -> names of all that is there, of whomever."""

    def strangers(self) -> list[str]:
        """Everything of one application that names another."""
        return [
            f"{system} of {app} names {other}"
            for app, systems in self.texts.items()
            for system, text in systems.items()
            for other in self.texts
            if other != app and any(name in text for name in _spellings(other))
        ]

    def left(self, apps: Sequence[str]) -> list[str]:
        """What still bears the name of an application."""
        spelled = [name for app in apps for name in _spellings(app)]
        return [
            f"{system}: {thing}"
            for system, things in self.names.items()
            for thing in things
            if any(name in thing for name in spelled)
        ]

    def unequal_quotas(self, groups: Iterable[Sequence[str]]) -> int:
        """Number of applications with another quota than the first one of their group."""
        return sum(
            self.quotas.get(app) != self.quotas.get(group[0]) or not self.quotas.get(app)
            for group in groups
            for app in group
        )


def _spellings(app: str) -> tuple[str, str]:
    return app, app.replace("-", "_")


def look(layout: Layout, apps: Sequence[str]) -> Seen:
    """Look into every system."""
    seen, bao = Seen(), root_client(layout)
    for app in apps:
        seen.texts[app] = {}
    _kubernetes(layout, bao, seen)
    _openbao(bao, seen)
    _postgresql(layout, seen)
    _harbor(layout, seen)
    _gitops(layout, seen)
    seen.names["DNS"] = list(look_at_clusters(layout).names)
    return seen


def _kubernetes(layout: Layout, bao: Client, seen: Seen) -> None:
    kept = bao.call("GET", f"kv/data/clusters/{CLUSTER}/kubeconfig")["data"]["data"]
    with (
        inside(layout.namespace_path),
        KubernetesApi.from_kubeconfig(kept["kubeconfig"]) as api,
    ):
        held: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for version, kind in KINDS:
            for thing in api.list(version, kind):
                held[thing["metadata"]["namespace"]].append({"kind": kind, **thing})
        places = {each["metadata"]["name"]: each for each in api.list("v1", "Namespace")}
        argo = {
            kind: {each["metadata"]["name"]: each for each in api.list(version, kind, ARGOCD)}
            for version, kind in (
                ("argoproj.io/v1alpha1", "Application"),
                ("argoproj.io/v1alpha1", "AppProject"),
                ("v1", "Secret"),
            )
        }
    seen.names["Kubernetes"] = sorted(places)
    seen.names |= {f"Argo CD {kind}": sorted(found) for kind, found in argo.items()}
    for app, systems in seen.texts.items():
        place, made = f"{app}-{STAGE}", argo["Application"].get(f"{app}-{STAGE}")
        systems["Kubernetes"] = json.dumps([places.get(place), held[place]])
        systems["Argo CD"] = json.dumps([made, argo["AppProject"].get(app)])
        seen.quotas[app] = json.dumps(
            [each["spec"] for each in held[place] if each["kind"] == "ResourceQuota"]
        )
        status = (made or {}).get("status") or {}
        state = [(status.get(part) or {}).get("status") for part in ("sync", "health")]
        if state != ["Synced", "Healthy"]:
            seen.unsynced.append(f"{app}: {state}")


def _listed(bao: Client, path: str) -> list[str]:
    found = bao.call("GET", f"{path}?list=true", absent_is_none=True)
    return [str(key) for key in found["data"]["keys"]] if found else []


def _secret_paths(bao: Client, prefix: str) -> list[str]:
    paths: list[str] = []
    for key in _listed(bao, f"kv/metadata/{prefix}"):
        paths += _secret_paths(bao, prefix + key) if key.endswith("/") else [prefix + key]
    return paths


def _openbao(bao: Client, seen: Seen) -> None:
    logins, users = f"auth/kubernetes-{CLUSTER}/role", "database/roles"
    seen.names["OpenBao policies"] = _listed(bao, "sys/policies/acl")
    seen.names["OpenBao logins"] = _listed(bao, logins)
    seen.names["OpenBao database roles"] = _listed(bao, users)
    for prefix in ("apps/", "onboarding/"):
        seen.names[f"OpenBao {prefix}"] = [
            # A journal's path ends with the application's name; others hold it in the middle.
            prefix + path.removeprefix(prefix)
            for path in _secret_paths(bao, prefix)
        ]
    for app, systems in seen.texts.items():
        name = f"app-{app}-{STAGE}"
        for system, path in (
            ("OpenBao policy", f"sys/policies/acl/{name}"),
            ("OpenBao login", f"{logins}/{name}"),
            ("OpenBao database role", f"{users}/{name}"),
        ):
            found = bao.call("GET", path, absent_is_none=True)
            systems[system] = json.dumps(found["data"]) if found else ""


def _postgresql(layout: Layout, seen: Seen) -> None:
    login = credential(layout, "database")
    with (
        inside(layout.namespace_path),
        psycopg.connect(
            host=login["host"],
            port=int(login["port"]),
            user=login["username"],
            password=login["password"],
            dbname=login["database"],
        ) as connection,
    ):
        databases = [tuple(map(str, row)) for row in connection.execute(DATABASES).fetchall()]
        roles = [tuple(map(str, row)) for row in connection.execute(MEMBERS).fetchall()]
    seen.names["PostgreSQL"] = [row[0] for row in (*databases, *roles)]
    for app, systems in seen.texts.items():
        name = f"{app}-{STAGE}".replace("-", "_")
        systems["PostgreSQL"] = json.dumps([row for row in (*databases, *roles) if name in row[0]])


def _harbor(layout: Layout, seen: Seen) -> None:
    login = credential(layout, "harbor")
    pair = f"{login['username']}:{login['password']}".encode()
    headers = {"Authorization": f"Basic {base64.b64encode(pair).decode('ascii')}"}

    def ask(path: str) -> Any:
        url = f"{layout.harbor_url}/api/v2.0/{path}"
        reply = request(layout, "GET", url, headers=headers, timeout_seconds=30.0)
        return reply.json() if reply.status_code == 200 else None

    names: list[str] = []
    for page in range(1, 100):
        found = [str(each["name"]) for each in ask(f"projects?page={page}&page_size=100") or []]
        names += found
        if len(found) < 100:
            break
    seen.names["Harbor"] = names
    for app, systems in seen.texts.items():
        project = ask(f"projects/{app}")
        if project is None:
            continue
        number = project["project_id"]
        robots = ask(f"robots?q=Level=project,ProjectID={number}&page_size=100")
        quotas = ask(f"quotas?reference=project&reference_id={number}")
        systems["Harbor"] = json.dumps([project, robots])
        seen.quotas[app] += json.dumps([each["hard"] for each in quotas])


def _gitops(layout: Layout, seen: Seen) -> None:
    repository = layout.git_directory / GITOPS_REPOSITORY

    def git(*arguments: str) -> str:
        argv = ["git", "-c", "safe.directory=*", f"--git-dir={repository}", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    files = git("ls-tree", "-r", "--name-only", "main").splitlines()
    seen.names["GitOps"] = files
    for app, systems in seen.texts.items():
        own = [path for path in files if path.startswith(f"apps/{app}/")]
        systems["GitOps"] = "\n".join(git("show", f"main:{path}") for path in own)


def answers(layout: Layout, apps: Sequence[str]) -> Mapping[str, str]:
    """Return which application answers at each one's own host name, over verified TLS."""
    kept = root_client(layout).call("GET", "pki/cert/ca")["data"]["certificate"]
    context = ssl.create_default_context(cadata=kept)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    told: dict[str, str] = {}
    with (
        inside(layout.namespace_path),
        httpx.Client(verify=context, trust_env=False, timeout=30.0) as client,
    ):
        for app in apps:
            host = f"{app}-{STAGE}.{DOMAIN}"
            reply = client.get(
                f"https://{EDGE_ADDRESS}/",
                headers={"Host": host},
                extensions={"sni_hostname": host},
            )
            is_good = reply.status_code == 200
            told[app] = str(reply.json()["app"]) if is_good else f"HTTP {reply.status_code}"
    return told
