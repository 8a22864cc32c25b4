"""What gives access in a GitLab project: CI/CD variables, deploy tokens, project access tokens.

Promises that a value is compared by reading it back and never told, neither by an error nor by a
`repr`. What GitLab does, which this follows:

- A masked variable needs a value of 8 characters or more without white space; one that is also
  `raw` (not expanded) may hold any other character, otherwise only letters, digits and
  `_+=/@:.~-` (app/models/concerns/ci/maskable.rb). A robot's name has a `$` in it, so all variables
  here are raw. A value that cannot be masked is refused with 400 and refused here before it is
  sent. One key may be there once for each environment scope: every call names the scope.
- The value of a deploy token and of an access token is in the answer to its creation alone; lists
  never show it (https://docs.gitlab.com/api/deploy_tokens/). Names of both need not be unique.
- A deploy token that was deleted is gone; an access token that was revoked stays in the list with
  `revoked` (https://docs.gitlab.com/api/project_access_tokens/).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blocks.gitlab_transport import GitLabTransport
from domain.errors import Conflict, InvalidSpec, NotFound

EVERYWHERE = "*"
MASKABLE = re.compile(r"\S{8,}")


@dataclass(frozen=True)
class CiVariable:
    """A CI/CD variable of a project; its value is never printed."""

    key: str
    value: str = field(repr=False)
    is_masked: bool = False
    is_protected: bool = False
    """True when only pipelines of protected branches and tags see it."""
    is_raw: bool = True
    """True when a `$` in the value stays what it is."""
    description: str = ""
    scope: str = EVERYWHERE


@dataclass(frozen=True)
class DeployToken:
    """A deploy token as lists show it."""

    token_id: int
    name: str
    username: str
    scopes: tuple[str, ...]
    is_active: bool


@dataclass(frozen=True)
class NewDeployToken:
    """A deploy token with its value, which is shown once."""

    token_id: int
    username: str
    value: str = field(repr=False)


@dataclass(frozen=True)
class AccessToken:
    """A project access token as lists show it."""

    token_id: int
    name: str
    scopes: tuple[str, ...]
    access_level: int
    is_active: bool
    expires_on: str


class AccessCalls:
    """The part of a session that deals with variables and tokens."""

    http: GitLabTransport

    # --- CI/CD variables ---------------------------------------------------------------------

    def variables(self, project_id: int) -> list[CiVariable]:
        """Return all variables of a project; a hidden one comes with an empty value."""
        found = self.http.list_all(
            f"list the CI/CD variables of {project_id}", f"/projects/{project_id}/variables"
        )
        return [_variable(each) for each in found]

    def variable(self, project_id: int, key: str, scope: str = EVERYWHERE) -> CiVariable | None:
        """Return one variable, or nothing when there is none."""
        query = {"filter[environment_scope]": scope}
        try:
            found = self.http.get(
                f"read the CI/CD variable {key} of {project_id}",
                f"/projects/{project_id}/variables/{key}",
                **query,
            )
        except NotFound:
            return None
        return _variable(found)

    def set_variable(self, project_id: int, wanted: CiVariable) -> bool:
        """Make a variable exactly so and read it back; false when it was so already.

        Raises:
            InvalidSpec: its value cannot be masked. Conflict: it read back otherwise.
        """
        if wanted.is_masked and not MASKABLE.fullmatch(wanted.value):
            raise InvalidSpec(
                f"the CI/CD variable {wanted.key} of {project_id}",
                ["value: cannot be masked. Use 8 characters or more without white space"],
            )
        present = self.variable(project_id, wanted.key, wanted.scope)
        if present == wanted:
            return False
        act = f"write the CI/CD variable {wanted.key} of {project_id}"
        path, body = f"/projects/{project_id}/variables", _variable_body(wanted)
        if present is None:
            try:
                self.http.post(act, path, {"key": wanted.key, **body}, is_secret=True)
            except Conflict:
                present = self.variable(project_id, wanted.key, wanted.scope)
        if present is not None:
            query = {"filter[environment_scope]": wanted.scope}
            self.http.put(act, f"{path}/{wanted.key}", body, is_secret=True, **query)
        if self.variable(project_id, wanted.key, wanted.scope) != wanted:
            raise Conflict(
                f"Unable to {act}: something else read back than was written. Find the other "
                "writer in the project's audit events, then run again."
            )
        return True

    def delete_variable(self, project_id: int, key: str, scope: str = EVERYWHERE) -> bool:
        """Remove a variable; false when there was none."""
        query = {"filter[environment_scope]": scope}
        return self.http.delete(
            f"remove the CI/CD variable {key} of {project_id}",
            f"/projects/{project_id}/variables/{key}",
            **query,
        )

    # --- deploy tokens -----------------------------------------------------------------------

    def deploy_tokens(self, project_id: int) -> list[DeployToken]:
        """Return the deploy tokens of a project, without values."""
        found = self.http.list_all(
            f"list the deploy tokens of {project_id}", f"/projects/{project_id}/deploy_tokens"
        )
        return [
            DeployToken(
                token_id=int(each["id"]),
                name=str(each["name"]),
                username=str(each["username"]),
                scopes=tuple(sorted(map(str, each.get("scopes") or ()))),
                is_active=not (each.get("revoked") or each.get("expired")),
            )
            for each in found
        ]

    def create_deploy_token(
        self, project_id: int, name: str, scopes: Sequence[str], expires_at: str = ""
    ) -> NewDeployToken:
        """Make a deploy token; who calls must keep the value at once."""
        body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        if expires_at:
            body["expires_at"] = expires_at
        made = self.http.post(
            f"make the deploy token {name} of {project_id}",
            f"/projects/{project_id}/deploy_tokens",
            body,
        )
        return NewDeployToken(int(made["id"]), str(made["username"]), str(made["token"]))

    def delete_deploy_token(self, project_id: int, token_id: int) -> bool:
        """Remove a deploy token; false when it was gone."""
        return self.http.delete(
            f"remove the deploy token {token_id} of {project_id}",
            f"/projects/{project_id}/deploy_tokens/{token_id}",
        )

    # --- project access tokens ---------------------------------------------------------------

    def access_tokens(self, project_id: int) -> list[AccessToken]:
        """Return the access tokens of a project, revoked ones too, without values."""
        found = self.http.list_all(
            f"list the access tokens of {project_id}", f"/projects/{project_id}/access_tokens"
        )
        return [
            AccessToken(
                token_id=int(each["id"]),
                name=str(each["name"]),
                scopes=tuple(sorted(map(str, each.get("scopes") or ()))),
                access_level=int(each.get("access_level") or 0),
                is_active=bool(each.get("active")) and not each.get("revoked"),
                expires_on=str(each.get("expires_at") or ""),
            )
            for each in found
        ]

    def create_access_token(
        self, project_id: int, name: str, scopes: Sequence[str], access_level: int, expires_on: str
    ) -> tuple[int, str]:
        """Make a project access token; returns its id and its value, which is shown once."""
        body = {
            "name": name,
            "scopes": list(scopes),
            "access_level": access_level,
            "expires_at": expires_on,
        }
        made = self.http.post(
            f"make the access token {name} of {project_id}",
            f"/projects/{project_id}/access_tokens",
            body,
        )
        return int(made["id"]), str(made["token"])

    def revoke_access_token(self, project_id: int, token_id: int) -> bool:
        """Revoke a project access token; false when it was gone."""
        return self.http.delete(
            f"revoke the access token {token_id} of {project_id}",
            f"/projects/{project_id}/access_tokens/{token_id}",
        )

    def own_token_id(self) -> int:
        """Return the id of the token that this session speaks with."""
        found = self.http.get("look up the own token", "/personal_access_tokens/self")
        return int(found["id"])


def _variable(found: Mapping[str, Any]) -> CiVariable:
    return CiVariable(
        key=str(found["key"]),
        value=str(found.get("value") or ""),
        is_masked=bool(found.get("masked")),
        is_protected=bool(found.get("protected")),
        is_raw=bool(found.get("raw")),
        description=str(found.get("description") or ""),
        scope=str(found.get("environment_scope") or EVERYWHERE),
    )


def _variable_body(wanted: CiVariable) -> dict[str, Any]:
    return {
        "value": wanted.value,
        "variable_type": "env_var",
        "masked": wanted.is_masked,
        "protected": wanted.is_protected,
        "raw": wanted.is_raw,
        "description": wanted.description,
        "environment_scope": wanted.scope,
    }
