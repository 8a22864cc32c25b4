"""What a team says about its application in `app.yaml`, or an operator in the form.

Promises that every field that is right by itself has the form that GitLab, Harbor, OpenBao,
PostgreSQL, Kubernetes and DNS accept. Refuses unknown fields, words where numbers belong, and what
does not agree (`domain.onboarding.app_agreement`). `domain.onboarding.app_reading` puts all of
that into words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from domain.onboarding.app_agreement import disagreements
from domain.spec_fields import SecretPath, SpecModel

APP_NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{1,18}[a-z0-9])")
"""Leaves room for `-development` in names of 32, and is a legal Harbor project and DNS label."""

HOSTNAME_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
CPU_PATTERN = re.compile(r"[1-9]\d{0,5}m|[1-9]\d{0,2}(\.\d)?|0\.[1-9]")
MEMORY_PATTERN = re.compile(r"([1-9]\d{0,5})(Mi|Gi)")
KEY_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
REPOSITORY_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
EXTENSIONS = (
    "btree_gin",
    "btree_gist",
    "citext",
    "hstore",
    "ltree",
    "pg_trgm",
    "pgcrypto",
    "unaccent",
    "uuid-ossp",
)
"""Trusted ones of PostgreSQL's own: they need no superuser and read no file."""

RESERVED_NAMES = frozenset(
    {"argocd", "cert-manager", "default", "harbor", "infraflows", "library", "monitoring", "root"}
)
RESERVED_PREFIXES = ("kube-", "openshift-", "rancher-", "cattle-", "pg-", "postgres")
IMAGE_PATTERN = re.compile(
    r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})"
)


def _matching(pattern: re.Pattern[str], kind: str, text: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise PydanticCustomError(kind, text)
        return value

    return AfterValidator(check)


def _not(test: Callable[[str], bool], kind: str, text: str) -> AfterValidator:
    def check(value: str) -> str:
        if test(value):
            raise PydanticCustomError(kind, text)
        return value

    return AfterValidator(check)


TeamName = Annotated[
    str,
    _matching(
        APP_NAME_PATTERN,
        "app_name",
        "is not a valid name. Use 3 to 20 lower-case letters, digits and hyphens, starting with a "
        "letter and ending with a letter or digit",
    ),
]
AppName = Annotated[
    TeamName,
    _not(
        lambda name: name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES),
        "reserved_name",
        "is reserved for the platform itself. Choose another name",
    ),
]
Hostname = Annotated[
    str,
    _not(lambda name: len(name) > 253, "hostname", "is longer than DNS allows. Shorten it"),
    _matching(
        re.compile(rf"{HOSTNAME_LABEL}(\.{HOSTNAME_LABEL})+"),
        "hostname",
        "is not a host name. Write lower-case labels and dots, as shop.example.org",
    ),
]


def _number_as_text(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


Cpu = Annotated[
    str,
    BeforeValidator(_number_as_text),
    _matching(CPU_PATTERN, "cpu", "is no amount of processor. Write it as 250m or 2"),
]
Memory = Annotated[
    str,
    BeforeValidator(_number_as_text),
    _matching(MEMORY_PATTERN, "memory", "is no amount of memory. Write it as 256Mi or 2Gi"),
]
Email = Annotated[
    str,
    _matching(
        re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s]+"),
        "email",
        "is not an e-mail address. Write it as name@example.org",
    ),
]
SecretKey = Annotated[
    str,
    _matching(
        KEY_PATTERN,
        "secret_key",
        "is not a key. Use letters, digits and underscores, not starting with a digit",
    ),
]
Repository = Annotated[
    str,
    _matching(
        REPOSITORY_PATTERN,
        "repository",
        "is not a GitLab project. Write its path with its group, as storefront/shop",
    ),
]
Image = Annotated[
    str,
    _matching(
        IMAGE_PATTERN,
        "image",
        "is not an image with a tag or a digest. Write it as registry.example.org/team/shop:1.4.2",
    ),
    _not(
        lambda image: image.endswith(":latest"),
        "image",
        "names the tag latest, which changes under a running application. Name a version",
    ),
]
Extension = Annotated[
    str,
    _not(
        lambda name: name not in EXTENSIONS,
        "extension",
        f"is not an extension that may be had. Use one of {', '.join(EXTENSIONS)}",
    ),
]
Count = Annotated[int, Field(strict=True)]
"""No word and no truth is a number, though YAML and pydantic would make one of it."""


class Stage(StrEnum):
    """An environment of an application, in the order in which changes travel."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    PRODUCTION = "production"


class BuildKind(StrEnum):
    """What the pipeline builds."""

    PYTHON = "python"
    NODE = "node"
    STATIC = "static"
    JAVA = "java"
    GO = "go"


class ServiceLevel(StrEnum):
    """How soon somebody is woken, and how much redundancy is asked for."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"


class Resources(SpecModel):
    """What one replica asks for and may use at most."""

    cpu: Cpu = Field(default="100m", description="Processor that is reserved, as 250m or 2.")
    memory: Memory = Field(default="128Mi", description="Memory that is reserved, as 256Mi.")
    cpu_limit: Cpu | None = Field(default=None, description="Most processor; none if empty.")
    memory_limit: Memory | None = Field(
        default=None, description="Most memory; the reserved memory if empty."
    )


class StageSpec(SpecModel):
    """One environment of the application."""

    replicas: Count = Field(default=1, ge=1, le=50, description="Number of replicas.")
    hostnames: list[Hostname] = Field(
        default_factory=list,
        description="Host names inside the cluster's ingress; one is derived if empty.",
    )
    outside_hostnames: list[Hostname] = Field(
        default_factory=list,
        description="Host names that the NGINX outside the cluster answers and hands on.",
    )
    resources: Resources | None = Field(
        default=None, description="Overrides the application's resources here."
    )


class SecretWish(SpecModel):
    """Secrets that the application reads from OpenBao."""

    # Named so and not `keys`: what has that attribute passes for a mapping, in Prefect as well.
    model_config = ConfigDict(serialize_by_alias=True)

    path: SecretPath = Field(
        description="Name below the application's own place in OpenBao, as payment."
    )
    key_names: list[SecretKey] = Field(
        alias="keys", min_length=1, description="Keys that are read, as API_KEY."
    )


class DatabaseWish(SpecModel):
    """A PostgreSQL database for each environment, with short-lived users."""

    connections: Count = Field(default=20, ge=2, le=500, description="Most connections at a time.")
    extensions: list[Extension] = Field(default_factory=list, description="Extensions to allow.")


class AppSpec(SpecModel):
    """An application as its team describes it."""

    name: AppName = Field(description="Name of the application; never changes.")
    team: TeamName = Field(description="Team that owns it.")
    repository: Repository = Field(description="GitLab project, as storefront/shop.")
    owners: list[Email] = Field(min_length=1, description="People who answer for it.")
    kind: BuildKind | None = Field(default=None, description="What the pipeline builds.")
    image: Image | None = Field(default=None, description="Ready-made image instead of a build.")
    port: Count = Field(ge=1024, le=65535, description="Port that the application listens on.")
    health_path: str = Field(
        default="/healthz", pattern=r"^/[A-Za-z0-9/_.-]*$", description="Path of the health check."
    )
    metrics_path: str | None = Field(
        default=None, pattern=r"^/[A-Za-z0-9/_.-]*$", description="Path of Prometheus metrics."
    )
    service_level: ServiceLevel = Field(
        default=ServiceLevel.BRONZE, description="bronze, silver or gold."
    )
    resources: Resources = Field(default_factory=Resources, description="Of one replica.")
    environments: dict[Stage, StageSpec] = Field(
        min_length=1, description="The environments that the application runs in."
    )
    secrets: list[SecretWish] = Field(default_factory=list, description="Secrets wanted.")
    database: DatabaseWish | None = Field(default=None, description="Database wanted.")

    @model_validator(mode="after")
    def _agrees(self, info: ValidationInfo) -> AppSpec:
        found = disagreements(self)
        if isinstance(info.context, list):
            info.context.extend(found)
        elif found:
            raise PydanticCustomError("disagreements", "{lines}", {"lines": "; ".join(found)})
        return self

    @property
    def stages(self) -> list[Stage]:
        """The wanted environments, in the order in which changes travel."""
        return [stage for stage in Stage if stage in self.environments]


EXAMPLE_APP: dict[str, object] = {
    "name": "shop",
    "team": "storefront",
    "repository": "storefront/shop",
    "owners": ["owner@example.org"],
    "kind": "python",
    "port": 8080,
    "environments": {"development": {}, "staging": {}, "production": {"replicas": 2}},
}
"""The least that describes an application that the pipeline builds, in all environments."""
