"""Robots of Harbor's projects, with which pipelines push and clusters pull.

Why it exists: a robot has one secret, and another one refuses the old at once; so two robots take
turns. Promises that the new robot has the rights, the description and the life-time of the current
one, and that whoever holds images by those marks finds it again. Refuses the robot that the run
itself is logged in with, and robots of the whole system. A bearer token that the registry gave to
the old robot ends by itself within half an hour. As a `holder`, its value goes into CI/CD variables
and pull secrets. API: https://goharbor.io/docs/main/working-with-projects/project-configuration/

Parameters: `harbor_url`, `harbor_admin_path` (username and password of who may change robots),
`harbor_ca_file`; without a current value also `harbor_project`, `harbor_robot` (the first part of
the names) and `harbor_access` as `repository:pull,repository:push`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blocks.harbor import NEVER, HarborRegistry, HarborSession, Robot
from blocks.rotation.classes import RotationClass
from blocks.rotation.secret_parameters import parameters
from blocks.rotation.site import RotationSite
from domain.errors import InvalidSpec, NotFound, PolicyViolation, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

TURNS = ("-a", "-b")
ROBOT_PREFIX = "robot$"

Administrator = Callable[[SecretRef], Values]


class HarborRobot:
    """Robots of one Harbor's projects."""

    kind = "harbor-robot"
    has_overlap = True

    def __init__(self, administrator: Administrator) -> None:
        """Take who may change robots."""
        self._administrator = administrator

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make the robot whose turn it is; what a killed run left under that name goes first."""
        project, name = _next(secret, current)
        with _registry(secret).session(self._administrator(secret)) as harbor:
            robots = _robots(harbor, project)
            source = None if current is None else _named(robots, current["username"])
            if current is not None and source is None:
                raise NotFound(
                    f"Unable to make another robot for {secret.path}: its robot "
                    f"{current['username']} does not exist. Onboard the application again."
                )
            for robot in robots:
                if robot.short_name == name:
                    self._delete(secret, harbor, robot)
            made = harbor.create_robot(
                project,
                name,
                source.description if source else f"infraflows, generation {generation}",
                source.access if source else _access(secret),
                source.duration_days if source else NEVER,
            )
        return {"username": made.name, "password": made.secret}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Nothing to do: the robot was made with its rights."""

    def test(self, secret: SecretRef, new: Values) -> None:
        """Log in to the registry as the new robot."""
        if not _registry(secret).accepts(new):
            raise Unauthorized(
                f"Unable to use the new robot {new['username']} of {secret.path}: the registry "
                "refuses it. Look at the robot in Harbor."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Return nothing: Harbor does not tell when a robot was used last."""
        return ()

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Remove the old robot."""
        self._remove(secret, old)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in to the registry as the old robot and expect a refusal."""
        method = f"login as {old['username']}"
        if _registry(secret).accepts(old):
            return Proof(False, method, "HTTP 200")
        return Proof(True, method, "HTTP 401")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Remove the new robot."""
        if current is None or current["username"] != new["username"]:
            self._remove(secret, new)

    # --- parts -------------------------------------------------------------------------------

    def _remove(self, secret: SecretRef, values: Values) -> None:
        project = _place(secret, values["username"])[0]
        with _registry(secret).session(self._administrator(secret)) as harbor:
            if harbor.project(project) is None:
                return
            robot = _named(_robots(harbor, project), values["username"])
            if robot is not None:
                self._delete(secret, harbor, robot)

    def _delete(self, secret: SecretRef, harbor: HarborSession, robot: Robot) -> None:
        if robot.name == self._administrator(secret)["username"]:
            raise PolicyViolation(
                f"Unable to remove the robot {robot.name}: this run is logged in with it. Use "
                "another administrator's login."
            )
        harbor.delete_robot(robot)


def _registry(secret: SecretRef) -> HarborRegistry:
    url, path = parameters(secret, "harbor_url", "harbor_admin_path")
    ca_file = secret.parameters.get("harbor_ca_file", "")
    return HarborRegistry(url=url, registry=url, ca_file=ca_file, credential=path)


def _robots(harbor: HarborSession, project: str) -> list[Robot]:
    found = harbor.project(project)
    if found is None:
        raise NotFound(f"Unable to list the robots of {project}: there is no such project.")
    return harbor.robots(found)


def _named(robots: Sequence[Robot], name: str) -> Robot | None:
    return next((each for each in robots if each.name == name), None)


def _place(secret: SecretRef, username: str) -> tuple[str, str]:
    """Return the project and the own part of a robot's name."""
    left, is_project, name = username.removeprefix(ROBOT_PREFIX).partition("+")
    if not is_project:
        raise InvalidSpec(
            f"the secret {secret.path}",
            [f"username: {username} is no robot of a project. Name the robot of one"],
        )
    return secret.parameters.get("harbor_project") or left, name


def _next(secret: SecretRef, current: Values | None) -> tuple[str, str]:
    """Return the project and the name of the robot whose turn it is."""
    if current is None:
        project, base = parameters(secret, "harbor_project", "harbor_robot")
        return project, base + TURNS[0]
    project, name = _place(secret, current["username"])
    for this, other in (TURNS, TURNS[::-1]):
        if name.endswith(this):
            return project, name.removesuffix(this) + other
    return project, name + TURNS[0]


def _access(secret: SecretRef) -> frozenset[tuple[str, str]]:
    (text,) = parameters(secret, "harbor_access")
    found = set()
    for part in text.split(","):
        resource, is_pair, action = part.strip().partition(":")
        if not (resource and is_pair and action):
            raise InvalidSpec(
                f"the secret {secret.path}",
                [f"harbor_access: {part.strip()!r} is not of the form repository:pull"],
            )
        found.add((resource, action))
    return frozenset(found)


def _administrators(site: RotationSite) -> Administrator:
    def read(secret: SecretRef) -> Values:
        (path,) = parameters(secret, "harbor_admin_path")
        return site.session.read(path)

    return read


CLASS = RotationClass(
    kind=HarborRobot.kind,
    make=lambda site: HarborRobot(_administrators(site)),
    has_overlap=True,
    observed="not told by Harbor; by OpenBao's audit log",
    proved_dead="login as the old robot: 401",
    parameters=("harbor_url", "harbor_admin_path"),
    is_observed_by_reads=True,
    optional=(
        "quiet_seconds",
        "harbor_ca_file",
        "harbor_project",
        "harbor_robot",
        "harbor_access",
    ),
)
"""How the registry knows it."""
