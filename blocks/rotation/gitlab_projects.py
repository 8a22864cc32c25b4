"""The way to the GitLab project of a secret, for the classes that rotate what gives access to it.

Promises that the administrator's token is read from OpenBao when it is needed and dropped after.
Parameters of all classes: `url`, `project_id`, `admin_path` (OpenBao path of {token}); `ca_file`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blocks.gitlab_server import GitLabServer, GitLabSession
from blocks.rotation.secret_parameters import parameters
from domain.errors import InvalidSpec
from domain.rotation.contract import SecretRef, Values

PARAMETERS = ("url", "project_id", "admin_path")
Reader = Callable[[str], Values]


class GitLabProjects:
    """Opens clients of the GitLab that a secret's parameters name."""

    def __init__(self, read: Reader) -> None:
        """Take how an OpenBao path is read."""
        self._read = read

    @contextmanager
    def administrator(self, secret: SecretRef) -> Iterator[GitLabSession]:
        """Open it as who may make and revoke tokens."""
        (path,) = parameters(secret, "admin_path")
        with self.holder(secret, self._read(path).get("token", "")) as gitlab:
            yield gitlab

    @contextmanager
    def holder(self, secret: SecretRef, token: str) -> Iterator[GitLabSession]:
        """Open it as whoever holds `token`."""
        url, path = parameters(secret, "url", "admin_path")
        ca_file = secret.parameters.get("ca_file", "")
        with GitLabServer(url=url, ca_file=ca_file, credential=path).session(token) as gitlab:
            yield gitlab


def project_id(secret: SecretRef) -> int:
    """Return the project's number: a path would change with a rename.

    Raises:
        InvalidSpec: it is no number.
    """
    (text,) = parameters(secret, "project_id")
    return _number(secret, "project_id", text)


def generation_name(secret: SecretRef, generation: int) -> str:
    """Return the name of a generation's token; the first part marks whose it is."""
    (name,) = parameters(secret, "name")
    return f"{name} (generation {generation})"


def scopes_of(secret: SecretRef) -> tuple[str, ...]:
    """Return the scopes that the policy names."""
    (text,) = parameters(secret, "scopes")
    return tuple(each.strip() for each in text.split(",") if each.strip())


def lifetime_days(secret: SecretRef) -> int | None:
    """Return after how many days a new token ends by itself; nothing when the policy is silent."""
    text = secret.parameters.get("lifetime_days")
    return _number(secret, "lifetime_days", text) if text else None


def _number(secret: SecretRef, name: str, text: str) -> int:
    if not text.isdecimal():
        raise InvalidSpec(f"the secret {secret.path}", [f"{name}: {text!r} is not a number"])
    return int(text)
