"""Secrets that pipelines take from CI/CD variables of a GitLab project.

Why it exists: a pipeline does not read OpenBao by itself. Promises that flags and scope of a
variable stay as they are, that each is read back, and that the old value is in no variable of the
project before it counts as dead. The system that accepts the value is the `holder`'s class; without
one, the value is known to pipelines only. A job that runs while the variable changes keeps the old
value until it ends: GitLab hands variables over when a job starts, so the policy's time for
observing must be longer than jobs are. API: https://docs.gitlab.com/api/project_level_variables/

Parameters: those of `gitlab_projects`; `variables` as `HARBOR_USERNAME=username,
HARBOR_PASSWORD=password`: which part of the value goes into which variable; `scope` (`*`);
`holder`, another class's name, whose own parameters stand beside these.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from blocks.gitlab_access import EVERYWHERE, MASKABLE, CiVariable
from blocks.rotation.classes import RotationClass
from blocks.rotation.gitlab_projects import PARAMETERS, GitLabProjects, project_id
from blocks.rotation.kubernetes_secret import PART_BYTES, Holder, holders
from blocks.rotation.secret_parameters import parameters
from domain.errors import InvalidSpec
from domain.rotation.contract import Proof, SecretRef, Seen, Values


class GitLabCiVariable:
    """CI/CD variables of one GitLab's projects."""

    kind = "gitlab-ci-variable"
    has_overlap = True

    def __init__(self, projects: GitLabProjects, holder: Holder = lambda _secret: None) -> None:
        """Take the way to a secret's project and to the class of what accepts the value."""
        self._projects = projects
        self._holder = holder

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Let the holder make a value, or make random parts."""
        if (holder := self._holder(secret)) is not None:
            return holder.create(secret, generation, current)
        return {part: secrets.token_urlsafe(PART_BYTES) for part in _parts(secret).values()}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Let the holder accept it."""
        if (holder := self._holder(secret)) is not None:
            holder.set(secret, new, current)

    def test(self, secret: SecretRef, new: Values) -> None:
        """Use it at the holder."""
        if (holder := self._holder(secret)) is not None:
            holder.test(secret, new)

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Write the variables."""
        if (holder := self._holder(secret)) is not None:
            holder.distribute(secret, new)
        self._write(secret, new)

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look at each variable: jobs that start now take what it holds."""
        holder = self._holder(secret)
        seen = [] if holder is None else list(holder.observe(secret, new, current))
        with self._projects.administrator(secret) as gitlab:
            for key, part in _parts(secret).items():
                present = gitlab.variable(project_id(secret), key, _scope(secret))
                has_it = present is not None and present.value == new[part]
                detail = "" if has_it else "does not exist" if present is None else "has another"
                seen.append(Seen(f"CI/CD variable {key}", has_it, detail))
        return seen

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Let the holder refuse the old value."""
        if (holder := self._holder(secret)) is not None:
            holder.revoke(secret, old)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """See that no variable of the project carries it, then ask the holder."""
        method = "search of the project's CI/CD variables"
        with self._projects.administrator(secret) as gitlab:
            found = gitlab.variables(project_id(secret))
        carriers = _carriers(found, _parts(secret), old, _scope(secret))
        if carriers:
            return Proof(False, method, "still carried by " + ", ".join(carriers[:5]))
        if (holder := self._holder(secret)) is None:
            return Proof(True, method, "carried by none")
        proof = holder.prove_dead(secret, old)
        return Proof(proof.is_dead, f"{method}; {proof.method}", f"none; {proof.answer}")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Give pipelines the current value again, and only then let the holder drop the new one."""
        if current is not None:
            self._write(secret, current)
        if (holder := self._holder(secret)) is not None:
            holder.rollback(secret, new, current)

    def _write(self, secret: SecretRef, values: Values) -> None:
        with self._projects.administrator(secret) as gitlab:
            for key, part in _parts(secret).items():
                present = gitlab.variable(project_id(secret), key, _scope(secret))
                if present is None:
                    is_masked = bool(MASKABLE.fullmatch(values[part]))
                    present = CiVariable(
                        key, "", is_masked=is_masked, is_protected=True, scope=_scope(secret)
                    )
                gitlab.set_variable(project_id(secret), replace(present, value=values[part]))


def _carriers(
    found: Sequence[CiVariable], parts: Mapping[str, str], old: Values, scope: str
) -> list[str]:
    """Return the variables that still carry the old value.

    What is equal in old and new, as a user name, tells nothing: our own variables carry the old
    value when all of them do, or when one does that is masked.
    """
    own = {each.key: each for each in found if each.key in parts and each.scope == scope}
    if own and all(key in own and own[key].value == old[part] for key, part in parts.items()):
        return sorted(own)
    kept = {each.value for each in own.values() if not each.is_masked}
    telling = {text for text in old.values() if len(text) >= PART_BYTES // 2} - kept
    return sorted({each.key for each in found if each.value in telling})


def _scope(secret: SecretRef) -> str:
    return secret.parameters.get("scope") or EVERYWHERE


def _parts(secret: SecretRef) -> dict[str, str]:
    """Return for each variable the part of the value that goes into it."""
    (text,) = parameters(secret, "variables")
    found = {}
    for each in text.split(","):
        key, is_pair, part = (piece.strip() for piece in each.partition("="))
        if not (key and is_pair and part):
            raise InvalidSpec(
                f"the secret {secret.path}", [f"variables: {each.strip()!r} is not KEY=part"]
            )
        found[key] = part
    return found


CLASS = RotationClass(
    kind=GitLabCiVariable.kind,
    make=lambda site: GitLabCiVariable(GitLabProjects(site.session.read), holders(site)),
    has_overlap=True,
    observed="the variable holds the new value; jobs take it when they start",
    proved_dead="no variable of the project carries the old value; the holder's own proof",
    parameters=(*PARAMETERS, "variables"),
    optional=("holder", "ca_file", "scope"),
)
"""How the registry knows it."""
