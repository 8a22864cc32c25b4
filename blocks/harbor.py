"""Harbor: projects of images with their quotas, and the robots that push and pull.

Promises that what was asked for is read back, that lists are whole, and that a robot's secret is
told to the caller alone: neither an error nor a `repr` shows it. What Harbor does, which this
follows (Harbor 2.13):

- A project has no text of its own and refuses unknown metadata; a label of the project is where a
  mark can lie. Robots and labels go with their project.
- A project with repositories cannot be deleted (412).
- The name of a project's robot is `robot$<project>+<name>` and cannot be changed. Its secret is in
  the answer to its creation alone. PATCH sets a secret that the caller chooses: 8 to 128 long,
  with an upper-case letter, a lower-case letter and a digit; the one before is refused at once.
- A repository's name is encoded twice in a path.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from prefect.blocks.core import Block
from pydantic import Field

from blocks.documents import document
from blocks.harbor_transport import HarborTransport
from domain.errors import Conflict, NotFound, Unauthorized

NEVER = -1
UNLIMITED = -1
SECRET_LENGTH = 40

Access = frozenset[tuple[str, str]]
"""Resources and actions, as ("repository", "push")."""

PULL: Access = frozenset({("repository", "pull")})
PUSH: Access = PULL | {("repository", "push")}
"""A push asks what is there already: it needs the right to pull."""


@dataclass(frozen=True)
class Project:
    """A project as Harbor shows it."""

    project_id: int
    name: str
    owner: str
    made_at: datetime
    is_public: bool
    repositories: int


@dataclass(frozen=True)
class Label:
    """A label of a project."""

    label_id: int
    name: str
    description: str


@dataclass(frozen=True)
class Quota:
    """How much space a project may take, and takes."""

    quota_id: int
    limit_bytes: int
    used_bytes: int


@dataclass(frozen=True)
class Robot:
    """A robot of a project, without its secret."""

    robot_id: int
    name: str
    description: str
    project: str
    access: Access
    is_disabled: bool
    duration_days: int

    @property
    def short_name(self) -> str:
        """The part of the name that is its own."""
        return self.name.rpartition("+")[2]


@dataclass(frozen=True)
class NewRobot:
    """A robot that was just made; its secret is not told again."""

    robot_id: int
    name: str
    secret: str = field(repr=False)


def new_secret() -> str:
    """Return a random secret that Harbor takes."""
    letters = string.ascii_letters + string.digits
    while True:
        secret = "".join(secrets.choice(letters) for _ in range(SECRET_LENGTH))
        if all(any(kind(c) for c in secret) for kind in (str.isupper, str.islower, str.isdigit)):
            return secret


class HarborSession:
    """Harbor as one login sees it."""

    def __init__(self, http: HarborTransport) -> None:
        """Speak by `http`."""
        self.http = http

    # --- the server --------------------------------------------------------------------------

    def username(self) -> str:
        """Return the name of the login's user."""
        found = self.http.send("look up the own user in Harbor", "GET", "/users/current").json()
        return str(found["username"])

    def clock(self) -> datetime:
        """Return the time by Harbor's own clock."""
        found = self.http.send("ask Harbor for its time", "GET", "/systeminfo").json()
        return _moment(str(found["current_time"]))

    # --- projects ----------------------------------------------------------------------------

    def project(self, name: str) -> Project | None:
        """Return a project by name, or None when there is none."""
        try:
            # A name of digits alone would be taken for an id; ours begin with a letter.
            answer = self.http.send(f"read the project {name}", "GET", f"/projects/{_part(name)}")
        except NotFound:
            return None
        found = answer.json()
        return Project(
            project_id=int(found["project_id"]),
            name=str(found["name"]),
            owner=str(found.get("owner_name") or ""),
            made_at=_moment(str(found["creation_time"])),
            is_public=str((found.get("metadata") or {}).get("public")) == "true",
            repositories=int(found.get("repo_count") or 0),
        )

    def create_project(self, name: str, limit_bytes: int) -> Project:
        """Make a private project with a quota.

        Raises:
            Conflict: there is one of that name.
        """
        body = {"project_name": name, "metadata": {"public": "false"}, "storage_limit": limit_bytes}
        self.http.send(f"make the project {name}", "POST", "/projects", body=body)
        found = self.project(name)
        if found is None:
            raise Conflict(
                f"Unable to confirm the project {name}: it was made and is not there. Find who "
                "removed it in Harbor's log, then run again."
            )
        return found

    def set_private(self, name: str) -> None:
        """Let nobody pull from a project without a login."""
        body = {"metadata": {"public": "false"}}
        self.http.send(f"close the project {name}", "PUT", f"/projects/{_part(name)}", body=body)

    def delete_project(self, name: str) -> None:
        """Remove a project with its robots and labels; an absent one is fine.

        Raises:
            Conflict: it has repositories.
        """
        try:
            self.http.send(f"remove the project {name}", "DELETE", f"/projects/{_part(name)}")
        except NotFound:
            return

    # --- quotas ------------------------------------------------------------------------------

    def quota(self, project: Project) -> Quota:
        """Return a project's quota."""
        query: dict[str, str | int] = {"reference": "project", "reference_id": project.project_id}
        found = self.http.list_all(f"read the quota of {project.name}", "/quotas", query)
        if not found:
            raise NotFound(
                f"Unable to read the quota of {project.name}: it has none. Switch quotas on."
            )
        return Quota(
            quota_id=int(found[0]["id"]),
            limit_bytes=int(found[0]["hard"]["storage"]),
            used_bytes=int(found[0]["used"]["storage"]),
        )

    def set_quota(self, project: Project, limit_bytes: int) -> None:
        """Let a project take this much space; what is there stays."""
        number = self.quota(project).quota_id
        body = {"hard": {"storage": limit_bytes}}
        self.http.send(f"set the quota of {project.name}", "PUT", f"/quotas/{number}", body=body)

    # --- labels ------------------------------------------------------------------------------

    def labels(self, project: Project) -> list[Label]:
        """Return the labels of a project."""
        query: dict[str, str | int] = {"scope": "p", "project_id": project.project_id}
        found = self.http.list_all(f"list the labels of {project.name}", "/labels", query)
        return [
            Label(int(each["id"]), str(each["name"]), str(each.get("description") or ""))
            for each in found
        ]

    def create_label(self, project: Project, name: str, description: str) -> None:
        """Give a project a label; one of that name may be there already."""
        body = {
            "name": name,
            "description": description,
            "scope": "p",
            "project_id": project.project_id,
        }
        try:
            self.http.send(f"label the project {project.name}", "POST", "/labels", body=body)
        except Conflict:
            return

    # --- robots ------------------------------------------------------------------------------

    def robots(self, project: Project) -> list[Robot]:
        """Return the robots of a project."""
        query = {"q": f"Level=project,ProjectID={project.project_id}"}
        found = self.http.list_all(f"list the robots of {project.name}", "/robots", query)
        return [_robot(each) for each in found]

    def create_robot(
        self,
        project: str,
        name: str,
        description: str,
        access: Collection[tuple[str, str]],
        duration_days: int = NEVER,
    ) -> NewRobot:
        """Make a robot of a project; its secret is told by this answer alone.

        Raises:
            Conflict: there is one of that name.
        """
        body = _robot_body(name, description, project, access, duration_days)
        answer = self.http.send(
            f"make the robot {name} of {project}", "POST", "/robots", body=body, is_secret=True
        ).json()
        return NewRobot(int(answer["id"]), str(answer["name"]), str(answer["secret"]))

    def change_robot(
        self, robot: Robot, description: str, access: Collection[tuple[str, str]]
    ) -> None:
        """Give a robot exactly these rights, no end, and let it log in."""
        body = _robot_body(robot.name, description, robot.project, access, NEVER)
        path = f"/robots/{robot.robot_id}"
        self.http.send(f"change the robot {robot.name}", "PUT", path, body=body)

    def set_robot_secret(self, robot: Robot, secret: str) -> None:
        """Give a robot the caller's secret; the one before is refused from now on."""
        path = f"/robots/{robot.robot_id}"
        act = f"renew the secret of {robot.name}"
        self.http.send(act, "PATCH", path, body={"secret": secret}, is_secret=True)

    def delete_robot(self, robot: Robot) -> None:
        """Remove a robot; an absent one is fine."""
        try:
            self.http.send(f"remove the robot {robot.name}", "DELETE", f"/robots/{robot.robot_id}")
        except NotFound:
            return

    # --- images ------------------------------------------------------------------------------

    def repositories(self, project: str) -> list[str]:
        """Return the names of a project's repositories, without the project's."""
        path = f"/projects/{_part(project)}/repositories"
        found = self.http.list_all(f"list the repositories of {project}", path)
        return [str(each["name"]).removeprefix(f"{project}/") for each in found]

    def delete_repository(self, project: str, name: str) -> None:
        """Remove a repository with all its images; an absent one is fine."""
        path = f"/projects/{_part(project)}/repositories/{_part(_part(name))}"
        try:
            self.http.send(f"remove the repository {project}/{name}", "DELETE", path)
        except NotFound:
            return

    def tags(self, project: str, name: str) -> list[str]:
        """Return the tags of a repository's images, sorted; empty when there is no repository."""
        path = f"/projects/{_part(project)}/repositories/{_part(_part(name))}/artifacts"
        try:
            found = self.http.list_all(f"list the images of {project}/{name}", path)
        except NotFound:
            return []
        return sorted(str(tag["name"]) for each in found for tag in each.get("tags") or ())


class HarborRegistry(Block):
    """A Harbor, and how the product logs in to it."""

    _block_type_name = "Harbor registry"
    _block_type_slug = "infraflows-harbor"
    _description = "Harbor, where applications' images lie; the login is read from OpenBao."

    url: str = Field(description="Base URL, as https://harbor.example.org.")
    registry: str = Field(description="Host and port, as images are named: harbor.example.org.")
    ca_file: str = Field(default="", description="File of the CA; the system's if empty.")
    credential: str = Field(description="OpenBao path of username and password.")

    @contextmanager
    def session(self, login: Mapping[str, str]) -> Iterator[HarborSession]:
        """Speak as `login`, the values of an OpenBao path; closed when the block ends."""
        http = HarborTransport(
            self.url, self.ca_file, login.get("username", ""), login.get("password", "")
        )
        try:
            yield HarborSession(http)
        finally:
            http.close()

    def accepts(self, login: Mapping[str, str]) -> bool:
        """True when the registry takes this login.

        Raises:
            Unreachable: that could not be found out.
        """
        try:
            with self.session(login) as harbor:
                who = login.get("username", "")
                return harbor.http.registry_status(f"log in as {who}") == 200
        except Unauthorized:
            return False


def _part(name: str) -> str:
    return quote(name, safe="")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _robot(found: Mapping[str, Any]) -> Robot:
    permissions = found.get("permissions") or [{}]
    return Robot(
        robot_id=int(found["id"]),
        name=str(found["name"]),
        description=str(found.get("description") or ""),
        project=str(permissions[0].get("namespace") or ""),
        access=frozenset(
            (str(each["resource"]), str(each["action"]))
            for permission in permissions
            for each in permission.get("access") or ()
        ),
        is_disabled=bool(found.get("disable")),
        duration_days=int(found.get("duration") or NEVER),
    )


def _robot_body(
    name: str,
    description: str,
    project: str,
    access: Collection[tuple[str, str]],
    duration_days: int,
) -> dict[str, Any]:
    rights = [{"resource": resource, "action": action} for resource, action in sorted(access)]
    return {
        "name": name,
        "description": description,
        "level": "project",
        "duration": duration_days,
        "disable": False,
        "permissions": [{"kind": "project", "namespace": project, "access": rights}],
    }


def harbor_registry(environment: str) -> HarborRegistry:
    """Return the Harbor of an environment, by its block document.

    Raises:
        NotFound: `infraflows setup` has not been run for this environment.
    """
    return document(HarborRegistry, environment)
