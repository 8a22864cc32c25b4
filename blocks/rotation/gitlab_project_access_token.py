"""Project access tokens of GitLab, with which programs use its API for one project.

Why it exists: GitLab's own `rotate` revokes the old value at once; two tokens side by side leave
consumers their time. Promises the scopes and the role of the current one, and an end by itself
(GitLab asks for one). Refuses to revoke the token that the run itself is logged in with: GitLab
lets no project access token make another, so the administrator's is another kind anyway.
API: https://docs.gitlab.com/api/project_access_tokens/

Parameters: those of `gitlab_projects`; `name` (the first part of the tokens' names);
`lifetime_days` (90 by default); `scopes` with commas and `access_level` where there is no current
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from blocks.gitlab_access import AccessToken
from blocks.gitlab_server import GitLabSession
from blocks.rotation.classes import RotationClass
from blocks.rotation.gitlab_projects import (
    PARAMETERS,
    GitLabProjects,
    generation_name,
    lifetime_days,
    project_id,
    scopes_of,
)
from domain.errors import Conflict, NotFound, PolicyViolation, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

MAINTAINER = 40
LIFETIME_DAYS = 90


class GitLabProjectAccessToken:
    """Access tokens of one GitLab's projects."""

    kind = "gitlab-project-access-token"
    has_overlap = True

    def __init__(self, projects: GitLabProjects) -> None:
        """Take the way to a secret's project."""
        self._projects = projects

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a token beside the current one, after revoking what a killed run left."""
        project, name = project_id(secret), generation_name(secret, generation)
        held_id = None if current is None else self._token_id(secret, current)
        with self._projects.administrator(secret) as gitlab:
            tokens = gitlab.access_tokens(project)
            held = next((t for t in tokens if t.token_id == held_id), None)
            for token in tokens:
                if token.name == name and token != held and token.is_active:
                    gitlab.revoke_access_token(project, token.token_id)
            scopes, level = _rights(secret, held)
            ends = datetime.now(UTC) + timedelta(days=lifetime_days(secret) or LIFETIME_DAYS)
            number, value = gitlab.create_access_token(
                project, name, scopes, level, ends.date().isoformat()
            )
        return {"token_id": str(number), "token": value}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """See that GitLab has it with the rights of the current one."""
        with self._projects.administrator(secret) as gitlab:
            tokens = {str(t.token_id): t for t in gitlab.access_tokens(project_id(secret))}
        made = tokens.get(new["token_id"])
        if made is None or not made.is_active:
            raise Conflict(
                f"Unable to use the new access token of {secret.path}: GitLab does not have it. "
                "Somebody revoked it: run again."
            )
        held = tokens.get(str(self._token_id(secret, current))) if current is not None else None
        if held is not None and (made.scopes, made.access_level) != (
            held.scopes,
            held.access_level,
        ):
            raise Conflict(
                f"Unable to use the new access token of {secret.path}: its scopes or its role are "
                "not those of the current one. Look whether they were changed, then run again."
            )

    def test(self, secret: SecretRef, new: Values) -> None:
        """Read the project with it."""
        with self._projects.holder(secret, new["token"]) as gitlab:
            gitlab.project(project_id(secret))

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Return nothing: GitLab tells the last use late, and not of each use."""
        return ()

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Revoke the old token; one that is refused already is a success."""
        number = self._token_id(secret, old)
        if number is not None:
            self._revoke(secret, number)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in with the old token and expect a refusal."""
        method = "request with the old token"
        try:
            with self._projects.holder(secret, old["token"]) as gitlab:
                gitlab.own_token_id()
        except Unauthorized:
            return Proof(True, method, "HTTP 401")
        return Proof(False, method, "HTTP 200")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Revoke the new token."""
        if current is None or new["token"] != current["token"]:
            self.revoke(secret, new)

    # --- parts -------------------------------------------------------------------------------

    def _token_id(self, secret: SecretRef, values: Values) -> int | None:
        """Return a value's id; asked of GitLab where it was written by hand without one."""
        if values.get("token_id", "").isdecimal():
            return int(values["token_id"])
        try:
            with self._projects.holder(secret, values["token"]) as gitlab:
                return gitlab.own_token_id()
        except Unauthorized:
            return None

    def _revoke(self, secret: SecretRef, number: int) -> None:
        with self._projects.administrator(secret) as gitlab:
            if number == _own_id(gitlab):
                raise PolicyViolation(
                    f"Unable to revoke the access token {number}: this run is logged in with it. "
                    "Use another administrator's token."
                )
            gitlab.revoke_access_token(project_id(secret), number)


def _own_id(gitlab: GitLabSession) -> int | None:
    try:
        return gitlab.own_token_id()
    except NotFound:
        # Not every kind of token can look itself up; those are none of a project.
        return None


def _rights(secret: SecretRef, held: AccessToken | None) -> tuple[tuple[str, ...], int]:
    if held is not None:
        return held.scopes, held.access_level
    return scopes_of(secret), int(secret.parameters.get("access_level") or MAINTAINER)


CLASS = RotationClass(
    kind=GitLabProjectAccessToken.kind,
    make=lambda site: GitLabProjectAccessToken(GitLabProjects(site.session.read)),
    has_overlap=True,
    observed="not told exactly by GitLab; by OpenBao's audit log",
    proved_dead="request with the old token: 401",
    parameters=(*PARAMETERS, "name"),
    is_observed_by_reads=True,
    optional=("quiet_seconds", "ca_file", "scopes", "access_level", "lifetime_days"),
)
"""How the registry knows it."""
