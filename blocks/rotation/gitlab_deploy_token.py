"""Deploy tokens of GitLab projects, with which repositories and registries are read.

Why it exists: a deploy token's value is shown once and cannot be changed, but several work side by
side. Promises the scopes of the current one, a new user name each time (GitLab gives them), and
that what a killed run made under the generation's name is removed. Refuses nothing else: a token
of another name is never touched. API: https://docs.gitlab.com/api/deploy_tokens/

Parameters: those of `gitlab_projects`; `name` (the first part of the tokens' names); `scopes` with
commas where there is no current token; `lifetime_days`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from blocks.gitlab_access import DeployToken
from blocks.gitlab_server import GitLabSession
from blocks.rotation.classes import RotationClass
from blocks.rotation.git_references import references_status
from blocks.rotation.gitlab_projects import (
    PARAMETERS,
    GitLabProjects,
    generation_name,
    lifetime_days,
    project_id,
    scopes_of,
)
from domain.errors import Conflict, NotFound, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

READS_REPOSITORY = "read_repository"
DENIED = (401, 403)


class GitLabDeployToken:
    """Deploy tokens of one GitLab's projects."""

    kind = "gitlab-deploy-token"
    has_overlap = True

    def __init__(self, projects: GitLabProjects) -> None:
        """Take the way to a secret's project."""
        self._projects = projects

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a token beside the current one, after removing what a killed run left."""
        project, name = project_id(secret), generation_name(secret, generation)
        with self._projects.administrator(secret) as gitlab:
            tokens = gitlab.deploy_tokens(project)
            held = None if current is None else _find(tokens, current)
            for token in tokens:
                if token.name == name and token != held:
                    gitlab.delete_deploy_token(project, token.token_id)
            scopes = scopes_of(secret) if held is None else held.scopes
            made = gitlab.create_deploy_token(project, name, scopes, _expiry(secret))
        return {
            "token_id": str(made.token_id),
            "username": made.username,
            "password": made.value,
        }

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """See that GitLab has it: a token works from its creation on."""
        with self._projects.administrator(secret) as gitlab:
            token = _find(gitlab.deploy_tokens(project_id(secret)), new)
        if token is None or not token.is_active:
            raise Conflict(
                f"Unable to use the new deploy token of {secret.path}: GitLab does not have it. "
                "Somebody removed it: run again."
            )

    def test(self, secret: SecretRef, new: Values) -> None:
        """Read the repository with it as Git does, where its scopes allow that."""
        with self._projects.administrator(secret) as gitlab:
            token = _find(gitlab.deploy_tokens(project_id(secret)), new)
            if token is None or READS_REPOSITORY not in token.scopes:
                return
            status = _status(gitlab, secret, new)
        if status != 200:
            raise Unauthorized(
                f"Unable to read the repository of {secret.path} with the new deploy token: HTTP "
                f"{status}. Look at the token's scopes and at the project's access."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Return nothing: GitLab does not tell when a deploy token was used last."""
        return ()

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Remove the old token."""
        self._remove(secret, old)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """See that it is gone, and that Git is refused with it."""
        with self._projects.administrator(secret) as gitlab:
            token = _find(gitlab.deploy_tokens(project_id(secret)), old)
            if token is not None and token.is_active:
                return Proof(False, "list of the project's deploy tokens", "still active")
            status = _status(gitlab, secret, old)
        return Proof(status in DENIED, f"git ls-remote as {old['username']}", f"HTTP {status}")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Remove the new token."""
        if current is None or new["username"] != current["username"]:
            self._remove(secret, new)

    def _remove(self, secret: SecretRef, values: Values) -> None:
        with self._projects.administrator(secret) as gitlab:
            try:
                token = _find(gitlab.deploy_tokens(project_id(secret)), values)
            except NotFound:
                # The project is gone, and its tokens with it.
                return
            if token is not None:
                gitlab.delete_deploy_token(project_id(secret), token.token_id)


def _find(tokens: Sequence[DeployToken], values: Values) -> DeployToken | None:
    """Return the token of a value; one that was written by hand may lack the id."""
    for token in tokens:
        if "token_id" in values:
            if str(token.token_id) == values["token_id"]:
                return token
        elif token.username == values.get("username"):
            return token
    return None


def _expiry(secret: SecretRef) -> str:
    days = lifetime_days(secret)
    if days is None:
        return ""
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _status(gitlab: GitLabSession, secret: SecretRef, values: Values) -> int:
    url = gitlab.project(project_id(secret)).http_url
    return references_status(url, secret.parameters.get("ca_file"), values, secret.path)


CLASS = RotationClass(
    kind=GitLabDeployToken.kind,
    make=lambda site: GitLabDeployToken(GitLabProjects(site.session.read)),
    has_overlap=True,
    observed="not told by GitLab; by OpenBao's audit log",
    proved_dead="reading the repository with the old token: 401",
    parameters=(*PARAMETERS, "name"),
    is_observed_by_reads=True,
    optional=("quiet_seconds", "ca_file", "scopes", "lifetime_days"),
)
"""How the registry knows it."""
