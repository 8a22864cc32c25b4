"""Where an application's images lie: a Harbor project with its quota, and two robots.

Promises that a robot's secret is never lost: it is written to OpenBao before Harbor is made to
accept it, and what OpenBao holds is tried at the registry each time. The robot that OpenBao names
counts, so that rotation may let robots take turns. Images are data of the application: running
pods and roll-backs need them.

The project's mark is a label, which is put on after the project is made. So that a run which was
killed between the two finds its own project again, it first notes in OpenBao when, by Harbor's
clock, it asked; an empty project without a mark that the product's own user made after that is
its own. Refuses every other project of the same name, and a robot's name that is taken.

The login must be a user's: a robot may not set quotas, and owns no project.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar

from blocks.harbor import NEVER, PULL, PUSH, Access, HarborSession, Project, Robot, new_secret
from blocks.harbor import harbor_registry as registry_of
from blocks.openbao import openbao
from blocks.openbao_versions import VersionedSecrets
from domain.errors import Conflict
from domain.onboarding.app_spec import ServiceLevel
from domain.onboarding.openbao_access import APP_KEY
from domain.onboarding.tenant import MANAGED_BY, Tenant
from domain.onboarding.things import PRESENT, Things, digest

GIB = 1 << 30
QUOTA_BYTES: Mapping[ServiceLevel, int] = {
    ServiceLevel.BRONZE: 5 * GIB,
    ServiceLevel.SILVER: 10 * GIB,
    ServiceLevel.GOLD: 20 * GIB,
}
ROLES: Mapping[str, Access] = {"push": PUSH, "pull": PULL}
TURNS = ("", "-a", "-b")
"""Ends of the names that a role's robots have when rotation lets them take turns."""
LABEL = MANAGED_BY
ASKED_KEY = "harbor-project-asked"
"""Custom metadata of the push robot's path while the project may be without its mark."""
UNFINISHED = "unfinished"


class HarborProject:
    """The project, its quota, its robots and their secrets in OpenBao."""

    name: ClassVar[str] = "harbor-project"
    system: ClassVar[str] = "harbor"
    needs: ClassVar[tuple[str, ...]] = ()
    holds_data: ClassVar[bool] = True

    def wanted(self, tenant: Tenant) -> Things:
        """Return the project, and each role's robot with its secret."""
        things = {f"project {tenant.harbor_project}": _project_state(_quota_bytes(tenant), False)}
        for role, access in ROLES.items():
            things[f"robot {role}"] = _robot_state(access, is_enabled=True, is_accepted=True)
            things[f"secret {_path(tenant, role)}"] = PRESENT
        return things

    def found(self, tenant: Tenant) -> Things:
        """Return what bears the application's mark."""
        with _Work(tenant) as work:
            return work.things()

    def apply(self, tenant: Tenant) -> None:
        """Converge; what is somebody else's is told before any change."""
        with _Work(tenant) as work:
            work.refuse_foreign()
            project = work.ensure_project()
            for role in ROLES:
                work.ensure_robot(project, role)
            work.delete_strays(project)

    def remove(self, tenant: Tenant) -> None:
        """Delete images, project and secrets."""
        with _Work(tenant) as work:
            work.delete_project()
            # Last: the note that tells whose an unfinished project is lies here.
            work.delete_secrets()


def _path(tenant: Tenant, role: str) -> str:
    return {"push": tenant.push_robot_path, "pull": tenant.pull_robot_path}[role]


def _quota_bytes(tenant: Tenant) -> int:
    return QUOTA_BYTES[tenant.app.service_level]


def _project_state(quota_bytes: int, is_public: bool) -> str:
    return digest({"quota_bytes": quota_bytes, "is_public": is_public})


def _robot_state(access: Access, *, is_enabled: bool, is_accepted: bool) -> str:
    return digest({"access": sorted(access), "is_enabled": is_enabled, "is_accepted": is_accepted})


class _Work:
    """Harbor and OpenBao as one call of the step sees them."""

    harbor: HarborSession

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant
        self._files = ExitStack()
        self._mark = f"{MANAGED_BY} app={tenant.name}"

    def __enter__(self) -> _Work:
        environment = self._tenant.platform.environment
        self._registry = registry_of(environment)
        with ExitStack() as opened:
            bao = opened.enter_context(openbao(environment).session())
            login = bao.read(self._registry.credential)
            self.harbor = opened.enter_context(self._registry.session(login))
            self._bao, self._secrets = bao, VersionedSecrets(bao)
            self._files = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    # --- whose it is -------------------------------------------------------------------------

    @cached_property
    def _custom(self) -> dict[str, dict[str, str]]:
        """Custom metadata of each role's path; no entry where there is no path."""
        found = {}
        for role in ROLES:
            metadata = self._secrets.metadata(_path(self._tenant, role))
            if metadata:
                found[role] = dict(metadata.get("custom_metadata") or {})
        return found

    def _owns_secret(self, role: str) -> bool:
        return self._custom.get(role, {}).get(APP_KEY) == self._tenant.name

    def _is_marked(self, project: Project) -> bool:
        return any(
            label.name == LABEL and label.description == self._mark
            for label in self.harbor.labels(project)
        )

    def _is_unfinished(self, project: Project) -> bool:
        """True for what a killed run of ours has just made: nobody has put anything into it."""
        asked = self._custom.get("push", {}).get(ASKED_KEY, "")
        return (
            bool(asked)
            and self._owns_secret("push")
            and project.made_at >= datetime.fromisoformat(asked)
            and project.repositories == 0
            and not self.harbor.labels(project)
            and not self.harbor.robots(project)
            and project.owner == self.harbor.username()
        )

    def _owned_project(self) -> tuple[Project | None, bool]:
        """Return our project and whether it bears its mark; nothing when it is not ours."""
        project = self.harbor.project(self._tenant.harbor_project)
        if project is None:
            return None, False
        if self._is_marked(project):
            return project, True
        return (project, False) if self._is_unfinished(project) else (None, False)

    def refuse_foreign(self) -> None:
        """Refuse what has our names and is not ours, all of it at once.

        Raises:
            Conflict: naming everything.
        """
        name = self._tenant.harbor_project
        project, _ = self._owned_project()
        foreign = []
        if project is None and self.harbor.project(name) is not None:
            foreign.append(f"the Harbor project {name}")
        foreign += [
            f"the secret {_path(self._tenant, role)}"
            for role in self._custom
            if not self._owns_secret(role)
        ]
        for robot in self.harbor.robots(project) if project else ():
            if robot.short_name in ROLES and not self._is_of(robot, robot.short_name):
                foreign.append(f"the robot {robot.name}")
        if foreign:
            raise Conflict(
                f"Unable to give {self._tenant.name} a place for its images: "
                f"{', '.join(foreign)} bears no mark of it. Remove what is not needed any more, "
                "or choose another name for the application."
            )

    # --- what there is -----------------------------------------------------------------------

    def things(self) -> dict[str, str]:
        found = {
            f"secret {_path(self._tenant, role)}": PRESENT
            for role in ROLES
            if self._owns_secret(role) and self._values(role)[0] is not None
        }
        project, is_marked = self._owned_project()
        if project is None:
            return found
        state = _project_state(self.harbor.quota(project).limit_bytes, project.is_public)
        found[f"project {project.name}"] = state if is_marked else UNFINISHED
        robots = self.harbor.robots(project)
        for role in ROLES:
            robot = self._current(robots, role)
            if robot is not None:
                found[f"robot {role}"] = self._state_of(robot, role)
        return found | {f"robot {each.short_name}": PRESENT for each in self._strays(robots)}

    def _state_of(self, robot: Robot, role: str) -> str:
        values, _ = self._values(role)
        is_known = values is not None and values.get("username") == robot.name
        return _robot_state(
            robot.access,
            is_enabled=not robot.is_disabled and robot.duration_days == NEVER,
            is_accepted=is_known and self._registry.accepts(values or {}),
        )

    def _values(self, role: str) -> tuple[Mapping[str, str] | None, int]:
        """Return a role's login in OpenBao and the version that the next write must name."""
        read = self._secrets.read(_path(self._tenant, role))
        return read.values, read.version

    def _description(self, role: str) -> str:
        return f"{self._mark} robot={role}"

    def _is_of(self, robot: Robot, role: str) -> bool:
        return robot.description == self._description(role)

    def _current(self, robots: list[Robot], role: str) -> Robot | None:
        """Return the robot of a role: the one that OpenBao names, else the first by name."""
        values, _ = self._values(role)
        named = (values or {}).get("username", "")
        own = sorted(
            (each for each in robots if self._is_of(each, role)), key=lambda each: each.name
        )
        return next((each for each in own if each.name == named), own[0] if own else None)

    def _strays(self, robots: list[Robot]) -> list[Robot]:
        """Return marked robots that neither this step nor a rotation has made."""
        names = {f"{role}{turn}" for role in ROLES for turn in TURNS}
        return [
            each
            for each in robots
            if each.description.startswith(f"{self._mark} ") and each.short_name not in names
        ]

    # --- converging --------------------------------------------------------------------------

    def ensure_project(self) -> Project:
        """Make the project if there is none, mark it, and give it its quota."""
        for role in ROLES:
            self._describe(role)
        project, is_marked = self._owned_project()
        limit = _quota_bytes(self._tenant)
        if project is None:
            self._describe("push", {ASKED_KEY: self.harbor.clock().isoformat()})
            project = self.harbor.create_project(self._tenant.harbor_project, limit)
        if not is_marked:
            self.harbor.create_label(project, LABEL, self._mark)
        if ASKED_KEY in self._custom["push"]:
            self._describe("push", {ASKED_KEY: ""})
        if project.is_public:
            self.harbor.set_private(project.name)
        if self.harbor.quota(project).limit_bytes != limit:
            self.harbor.set_quota(project, limit)
        return project

    def _describe(self, role: str, change: Mapping[str, str] | None = None) -> None:
        """Mark a role's path, and change what else is noted there; empty values are taken out."""
        held = self._custom.get(role, {})
        wanted: dict[str, Any] = held | {APP_KEY: self._tenant.name} | dict(change or {})
        wanted = {key: value for key, value in wanted.items() if value}
        if wanted != held:
            self._secrets.describe(_path(self._tenant, role), wanted)
            self._custom[role] = wanted

    def ensure_robot(self, project: Project, role: str) -> None:
        """Make a role's robot so that it may do what it should, with the secret in OpenBao."""
        access, description = ROLES[role], self._description(role)
        robot = self._current(self.harbor.robots(project), role)
        if robot is None:
            made = self.harbor.create_robot(project.name, role, description, access)
            self._keep(role, made.name, made.secret)
            return
        is_enabled = not robot.is_disabled and robot.duration_days == NEVER
        if robot.access != access or not is_enabled:
            self.harbor.change_robot(robot, description, access)
        values, _ = self._values(role)
        if values is None or values.get("username") != robot.name or not values.get("password"):
            values = self._keep(role, robot.name, new_secret())
        if not self._registry.accepts(values):
            self.harbor.set_robot_secret(robot, values["password"])

    def _keep(self, role: str, username: str, password: str) -> Mapping[str, str]:
        values = {"username": username, "password": password}
        _, version = self._values(role)
        self._secrets.write(_path(self._tenant, role), values, version)
        return values

    def delete_strays(self, project: Project) -> None:
        """Remove marked robots that are not wanted."""
        for robot in self._strays(self.harbor.robots(project)):
            self.harbor.delete_robot(robot)

    # --- removing ----------------------------------------------------------------------------

    def delete_project(self) -> None:
        """Remove the project with its images; its robots first, so that nobody pushes more."""
        project, _ = self._owned_project()
        if project is None:
            return
        for robot in self.harbor.robots(project):
            self.harbor.delete_robot(robot)
        for name in self.harbor.repositories(project.name):
            self.harbor.delete_repository(project.name, name)
        self.harbor.delete_project(project.name)

    def delete_secrets(self) -> None:
        """Remove the robots' secrets with all their versions."""
        # The push robot's path last: its mark tells that the project was ours.
        for role in sorted(ROLES):
            if self._owns_secret(role):
                self._bao.delete(_path(self._tenant, role))
