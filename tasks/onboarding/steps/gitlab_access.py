"""What the application's pipeline may use: CI/CD variables, and a deploy token for who reads it.

Promises that values go from OpenBao to GitLab and from GitLab to OpenBao and nowhere else; that a
variable is ours only by its description, and one that a person made is never overwritten; that a
deploy token whose value is not in OpenBao, because a run was killed in between, is replaced and
removed. A robot's secret that was renewed is seen, because the variable is compared with OpenBao.

Rights in OpenBao: read the push robot's path, read, write and delete the deploy token's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from blocks.gitlab_access import CiVariable, DeployToken
from blocks.gitlab_server import GitLabSession
from blocks.openbao import OpenBaoSession, openbao
from domain.errors import Conflict, NotFound
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import PRESENT, Things, digest
from tasks.onboarding.steps.gitlab_project import gitlab_of, own_project

SCOPES = ("read_registry", "read_repository")
OUTDATED = "outdated"
"""State of what is there with another value than OpenBao has."""
SECRET_KEYS = {"HARBOR_USERNAME": "username", "HARBOR_PASSWORD": "password"}
"""Variables whose values lie in OpenBao, with their keys there."""


class GitLabAccess:
    """Converges the access of one project."""

    name: ClassVar[str] = "gitlab-access"
    system: ClassVar[str] = "gitlab"
    needs: ClassVar[tuple[str, ...]] = ("harbor-project",)
    holds_data: ClassVar[bool] = False

    def wanted(self, tenant: Tenant) -> Things:
        """Return the variables of the pipeline, if there is one, and the deploy token."""
        plain = {_thing(key): digest(value) for key, value in _plain(tenant).items()}
        secret = {_thing(key): PRESENT for key in SECRET_KEYS if _has_pipeline(tenant)}
        return {**plain, **secret, _token_thing(tenant): PRESENT}

    def found(self, tenant: Tenant) -> Things:
        """Return variables with our description and the deploy token of our name."""
        with (
            openbao(tenant.platform.environment).session() as bao,
            gitlab_of(tenant) as gitlab,
        ):
            stored = _read(bao, tenant.deploy_token_path)
            try:
                variables = _own_variables(gitlab, tenant)
                tokens = _own_tokens(gitlab, tenant)
            except NotFound:
                # Its team removed the project, and with it all but what lies in OpenBao.
                variables, tokens = [], []
            robot = _read(bao, tenant.push_robot_path)
            things = {_thing(each.key): _state(each, robot) for each in variables}
            return {**things, **_token_things(tenant, tokens, stored)}

    def apply(self, tenant: Tenant) -> None:
        """Write what differs, remove what is not wanted.

        Raises:
            Conflict: a person made a variable of a name that is needed, or the project is another
            application's. NotFound: OpenBao does not have the push robot's secret.
        """
        with (
            openbao(tenant.platform.environment).session() as bao,
            gitlab_of(tenant) as gitlab,
        ):
            own_project(gitlab, tenant)
            values = _plain(tenant)
            if _has_pipeline(tenant):
                robot = bao.read(tenant.push_robot_path)
                values |= {key: robot.get(part, "") for key, part in SECRET_KEYS.items()}
            _check_variables(gitlab, tenant, values)
            for key, value in values.items():
                gitlab.set_variable(tenant.project_id, _variable(tenant, key, value))
            for present in _own_variables(gitlab, tenant):
                if present.key not in values:
                    gitlab.delete_variable(tenant.project_id, present.key, present.scope)
            _converge_token(gitlab, bao, tenant)

    def remove(self, tenant: Tenant) -> None:
        """Remove our variables, every deploy token of our name, and its value in OpenBao."""
        with (
            openbao(tenant.platform.environment).session() as bao,
            gitlab_of(tenant) as gitlab,
        ):
            try:
                for present in _own_variables(gitlab, tenant):
                    gitlab.delete_variable(tenant.project_id, present.key, present.scope)
                for token in _own_tokens(gitlab, tenant):
                    gitlab.delete_deploy_token(tenant.project_id, token.token_id)
            except NotFound:
                # The project is gone.
                pass
            bao.delete(tenant.deploy_token_path)


# --- variables -------------------------------------------------------------------------------


def _has_pipeline(tenant: Tenant) -> bool:
    return tenant.app.kind is not None


def _plain(tenant: Tenant) -> dict[str, str]:
    """Return the variables that are no secret."""
    if not _has_pipeline(tenant):
        return {}
    return {
        "HARBOR_HOST": tenant.platform.registry,
        "HARBOR_PROJECT": tenant.harbor_project,
    }


def _mark(tenant: Tenant) -> str:
    return f"infraflows app={tenant.name}"


def _thing(key: str) -> str:
    return f"variable {key}"


def _variable(tenant: Tenant, key: str, value: str) -> CiVariable:
    is_secret = key in SECRET_KEYS
    return CiVariable(
        key=key,
        value=value,
        # A short name cannot be masked, and a robot's name is no secret.
        is_masked=key == "HARBOR_PASSWORD",
        is_protected=is_secret,
        description=_mark(tenant),
    )


def _own_variables(gitlab: GitLabSession, tenant: Tenant) -> list[CiVariable]:
    mark = _mark(tenant)
    return [each for each in gitlab.variables(tenant.project_id) if each.description == mark]


def _state(found: CiVariable, robot: Mapping[str, str]) -> str:
    """Return the state of a variable of ours, comparable to `wanted` and without its value."""
    is_secret = found.key in SECRET_KEYS
    flags = (found.is_masked, found.is_protected, found.is_raw)
    if flags != (found.key == "HARBOR_PASSWORD", is_secret, True):
        return OUTDATED
    if not is_secret:
        return digest(found.value)
    return PRESENT if found.value == robot.get(SECRET_KEYS[found.key]) else OUTDATED


def _check_variables(gitlab: GitLabSession, tenant: Tenant, values: Mapping[str, str]) -> None:
    """See that no person's variable would be overwritten; all of them are told at once."""
    wanted = {_variable(tenant, key, "").scope for key in values}
    foreign = sorted(
        each.key
        for each in gitlab.variables(tenant.project_id)
        if each.key in values and each.scope in wanted and each.description != _mark(tenant)
    )
    if foreign:
        raise Conflict(
            f"Unable to write the CI/CD variables of {tenant.name}: {', '.join(foreign)} "
            f"{'was' if len(foreign) == 1 else 'were'} made by somebody else. Remove or rename "
            "them in the project's settings, and run again."
        )


# --- the deploy token ------------------------------------------------------------------------


def deploy_token_name(app: str) -> str:
    """Return the name that marks an application's deploy token; rotations add to it."""
    return f"infraflows-{app}"


def _token_thing(tenant: Tenant) -> str:
    return f"deploy token {deploy_token_name(tenant.name)}"


def _own_tokens(gitlab: GitLabSession, tenant: Tenant) -> list[DeployToken]:
    name = deploy_token_name(tenant.name)
    return [
        each
        for each in gitlab.deploy_tokens(tenant.project_id)
        if each.name == name or each.name.startswith(f"{name} ")
    ]


def _token_things(
    tenant: Tenant, tokens: list[DeployToken], stored: Mapping[str, str]
) -> dict[str, str]:
    """Return the token that OpenBao knows, and those that nobody can use.

    A rotation has a token of a longer name beside the stored one for a time: that is not shown
    while the stored one works.
    """
    thing, name = _token_thing(tenant), deploy_token_name(tenant.name)
    things = {}
    for token in tokens:
        if str(token.token_id) == stored.get("token_id"):
            is_right = token.is_active and token.scopes == SCOPES
            things[thing] = PRESENT if is_right else OUTDATED
        elif token.name == name or not stored:
            things[f"{thing} #{token.token_id}"] = "without a value in OpenBao"
    if stored and thing not in things:
        things[thing] = OUTDATED
    return things


def _converge_token(gitlab: GitLabSession, bao: OpenBaoSession, tenant: Tenant) -> None:
    """Have one token whose value is in OpenBao; the value is written before others go."""
    stored = _read(bao, tenant.deploy_token_path)
    tokens, name = _own_tokens(gitlab, tenant), deploy_token_name(tenant.name)
    held = next((t for t in tokens if str(t.token_id) == stored.get("token_id")), None)
    if held is None or not held.is_active or held.scopes != SCOPES:
        made = gitlab.create_deploy_token(tenant.project_id, name, SCOPES)
        bao.write(
            tenant.deploy_token_path,
            {
                "token_id": str(made.token_id),
                "username": made.username,
                "password": made.value,
            },
        )
        kept = made.token_id
        useless = tokens
    else:
        kept = held.token_id
        # One of a longer name may be a rotation's that is under way.
        useless = [token for token in tokens if token.name == name]
    for token in useless:
        if token.token_id != kept:
            gitlab.delete_deploy_token(tenant.project_id, token.token_id)


def _read(bao: OpenBaoSession, path: str) -> dict[str, str]:
    try:
        return bao.read(path)
    except NotFound:
        return {}
