"""One application of the demo team through its life, for tests: what is done to it and looked at.

Exists so that tests speak of facts and not of calls. Promises that everything is done the way a
team and an operator do it, and looked at as a user or an administrator sees it; several
applications may live on one cluster. What it refuses: to repair anything on its own.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blocks.web_probe import WebAnswer, WebProbe
from domain.manifest_order import ObjectKey
from lab.app_holdings import application_lines, cluster_api
from lab.driver import Driver, RunView
from lab.layout import EDGE_ADDRESS, ENVIRONMENT, ZONE, Layout
from lab.onboarding_demo import BRANCH, GROUP, ensure_project, gitlab, push
from lab.services.namespace import inside
from lab.services.openbao_setup import KV_MOUNT, root_client

ONBOARD, DEPLOY, ROLLBACK, OFFBOARD, CONNECT = (
    f"{flow}/default"
    for flow in ("onboard-app", "deploy-app", "rollback-app", "offboard-app", "connect-project")
)
STAGES = ("development", "staging", "production")
BUILT = ("development", "staging")
"""Stages that the pipeline deploys to by itself; production waits for a person."""
RUN_SECONDS = 420.0
PUBLIC_FIELDS = frozenset({"username", "token_id"})
TAG_LENGTH = 8
"""Characters of a commit that make an image's tag."""


@dataclass
class Trial:
    """An application, and the lab that it is in."""

    driver: Driver
    app: str
    project_id: int = field(init=False)

    def __post_init__(self) -> None:
        """Make a project that nothing was ever pushed to; one of an earlier session goes first."""
        old = ensure_project(self.layout, GROUP, self.app)
        if any(self.app in line for line in application_lines(self.layout, old["id"])):
            run = self.start(OFFBOARD, name=self.app)
            self.driver.complete(run, is_approved=True, timeout_seconds=RUN_SECONDS)
        gitlab(self.layout, "DELETE", f"projects/{old['id']}")
        self.project_id = int(ensure_project(self.layout, GROUP, self.app)["id"])

    @property
    def layout(self) -> Layout:
        """The lab's."""
        return self.driver.layout

    # --- as its team ---------------------------------------------------------------------------

    def push(self, files: Mapping[str, str], subject: str) -> str:
        """Push to the default branch; returns the commit."""
        return push(self.layout, files, subject, group=GROUP, project=self.app)

    def gitlab(self, method: str, path: str, body: Any = None) -> Any:
        """Ask GitLab's API about the project."""
        return gitlab(self.layout, method, f"projects/{self.project_id}/{path}", body)

    def head_tag(self) -> str:
        """Return the tag of the newest commit, as pipelines tag images."""
        return str(self.gitlab("GET", f"repository/commits/{BRANCH}")["id"])[:TAG_LENGTH]

    def deliveries(self) -> tuple[int, list[dict[str, Any]]]:
        """Return the webhook, and what GitLab delivered by it, the newest first."""
        (hook,) = self.gitlab("GET", "hooks")
        return hook["id"], self.gitlab("GET", f"hooks/{hook['id']}/events?per_page=100")

    def push_event(self, commit: str) -> dict[str, Any]:
        """Return the first delivery of the push of a commit."""
        found = self.deliveries()[1]
        return [each for each in found if each["request_data"].get("checkout_sha") == commit][-1]

    # --- as an operator ------------------------------------------------------------------------

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run; returns its id."""
        return self.driver.start_with(deployment, {"environment": ENVIRONMENT, **parameters})

    def parameters(self, run: str) -> dict[str, Any]:
        """Return what a run was started with."""
        return dict(self.driver.api("GET", f"flow_runs/{run}")["parameters"])

    def runs(self, deployment: str) -> list[str]:
        """Return the ids of a deployment's runs on the application, the oldest first."""
        return self.driver.app_runs(deployment, self.app)

    def onboarded(self, known: int) -> RunView:
        """Wait for the onboarding after so many, and for its end."""
        run = self.driver.wait_app_runs(ONBOARD, self.app, known + 1)[-1]
        return self.driver.complete(run, timeout_seconds=RUN_SECONDS)

    def deployed(self, known: int) -> list[str]:
        """Wait for the pipeline's deployments after so many; returns their runs."""
        runs = self.driver.wait_app_runs(DEPLOY, self.app, known + len(BUILT))[-len(BUILT) :]
        for run in runs:
            self.driver.complete(run, timeout_seconds=RUN_SECONDS)
        return runs

    # --- what is there -------------------------------------------------------------------------

    @property
    def hosts(self) -> dict[str, str]:
        """The host name of each stage."""
        return {
            stage: f"{self.app if stage == 'production' else f'{self.app}-{stage}'}.apps.{ZONE}"
            for stage in STAGES
        }

    def serves(self, stage: str, path: str = "/healthz") -> WebAnswer:
        """Ask as a user does, trusting the lab's CA alone."""
        with (
            inside(self.layout.namespace_path),
            WebProbe(EDGE_ADDRESS, self.layout.ca_file.read_text(), timeout_seconds=30.0) as probe,
        ):
            return probe.ask(self.hosts[stage], path)

    def lines(self) -> list[str]:
        """Everything that the administrators see."""
        return application_lines(self.layout, self.project_id)

    def object(self, version: str, kind: str, stage: str, name: str) -> dict[str, Any]:
        """Return an object of a stage's namespace."""
        with inside(self.layout.namespace_path), cluster_api(self.layout) as api:
            return api.get(ObjectKey(version, kind, f"{self.app}-{stage}", name))

    def argocd_applications(self) -> dict[str, dict[str, Any]]:
        """Return what Argo CD has of the application, by name."""
        with inside(self.layout.namespace_path), cluster_api(self.layout) as api:
            label = f"infraflows.io/app={self.app}"
            found = api.list("argoproj.io/v1alpha1", "Application", "argocd", label)
        return {each["metadata"]["name"]: each for each in found}

    def secrets(self) -> dict[str, str]:
        """Read every secret of the application, by a name that may be told."""
        bao = root_client(self.layout)
        found: dict[str, str] = {}
        names = ("harbor-push", "harbor-pull", "gitlab-deploy-token")
        hook = f"webhooks/{ENVIRONMENT}/gitlab/{self.project_id}"
        for path in (*(f"apps/{self.app}/{name}" for name in names), hook):
            values = bao.call("GET", f"{KV_MOUNT}/data/{path}")["data"]["data"]
            found |= {f"{path} {k}": str(v) for k, v in values.items() if k not in PUBLIC_FIELDS}
        for stage in STAGES:
            key = self.object("v1", "Secret", stage, "ingress-tls")["data"]["tls.key"]
            # A line from the middle, as it stands in the Secret and as it stands in a PEM file.
            found[f"TLS key of {stage} (base64)"] = key[80:160]
            found[f"TLS key of {stage} (PEM)"] = base64.b64decode(key).decode().splitlines()[1]
        return found
