"""The groups of a rotation policy, each with what makes it right by itself.

Promises that what exists can be used as it is: times are times, limits are positive, a path pattern
has one meaning. Refuses unknown fields, and parameters that look like a secret in clear.
What must agree between groups is in `domain.rotation.policy`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from domain.rotation.machine import Limits
from domain.spec_fields import Name, SpecModel

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_SEGMENT = re.compile(r"\*\*|[A-Za-z0-9_.*-]+")
_SECRET_PARAMETER = re.compile(
    r"(.*_)?(password|passphrase|private_key|token|secret_id|secret_key)", re.IGNORECASE
)
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
MINUTES_PER_DAY = 24 * 60


class Day(StrEnum):
    MONDAY = "mon"
    TUESDAY = "tue"
    WEDNESDAY = "wed"
    THURSDAY = "thu"
    FRIDAY = "fri"
    SATURDAY = "sat"
    SUNDAY = "sun"


DAYS = tuple(Day)
"""In the order of `datetime.weekday`."""


def _time(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MINUTES_PER_DAY:
        raise PydanticCustomError(
            "time",
            "is a number: so YAML reads a time without quotes. Write '{right}' in quotes",
            {"right": f"{value // 60:02}:{value % 60:02}"},
        )
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise PydanticCustomError(
            "time", "is not a time of day. Write hours and minutes in UTC, as '01:30'"
        )
    return value


def _day(value: Any) -> Any:
    if value not in set(DAYS):
        raise PydanticCustomError("day", "is not a day. Use mon, tue, wed, thu, fri, sat or sun")
    return value


TimeOfDay = Annotated[str, BeforeValidator(_time)]


def minutes_of(time: str) -> int:
    """Return the minutes since midnight of a checked `HH:MM`."""
    return int(time[:2]) * 60 + int(time[3:])


class Window(SpecModel):
    """A time of the week, in UTC, in which consumers may be touched."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    days: list[Annotated[Day, BeforeValidator(_day)]] = Field(
        default=list(DAYS), min_length=1, description="Days on which it opens; every day if absent."
    )
    opens: TimeOfDay = Field(alias="from", description="When it opens, in UTC.")
    closes: TimeOfDay = Field(alias="to", description="When it closes; the next day if earlier.")

    @field_validator("closes")
    @classmethod
    def _not_empty(cls, value: str, info: Any) -> str:
        if value == info.data.get("opens"):
            raise PydanticCustomError(
                "window", "is when the window opens, so it is never open. Give it a length"
            )
        return value


class ClassPolicy(SpecModel):
    """How secrets of one class are rotated."""

    max_age_days: int = Field(ge=1, le=3650, description="Age at which a secret is due.")
    spread_days: int = Field(
        default=0, ge=0, description="Secrets fall due up to so much earlier, each by its own path."
    )
    windows: list[Window] = Field(
        default_factory=list, description="When it may run; always if empty. A leak never waits."
    )
    parallel: int = Field(
        default=2, ge=1, le=64, description="Rotations at once on one system of this class."
    )
    jitter_seconds: int = Field(
        default=0, ge=0, le=3600, description="Longest random wait before one rotation starts."
    )
    attempts: int = Field(default=3, ge=1, le=10, description="Failures of one step allowed.")
    values: int = Field(
        default=2, ge=1, le=5, description="New values that are tried before it rolls back."
    )
    observe_deadline_seconds: int = Field(
        default=600, ge=1, le=86_400, description="How long consumers may take to move."
    )
    observe_interval_seconds: float = Field(
        default=2.0, ge=0.1, le=300, description="Time between two looks at the consumers."
    )
    retry_seconds: float = Field(
        default=1.0, ge=0.1, le=60, description="Wait before a failed step is tried again."
    )
    revoke_first: bool = Field(
        default=False, description="After a leak the old value dies before consumers have moved."
    )

    def limits(self) -> Limits:
        """Return what the machine needs to know."""
        return Limits(
            attempts=self.attempts,
            values=self.values,
            observe_deadline_seconds=float(self.observe_deadline_seconds),
            observe_interval_seconds=self.observe_interval_seconds,
            retry_seconds=self.retry_seconds,
            may_revoke_first=self.revoke_first,
        )

    @model_validator(mode="after")
    def _agrees(self) -> ClassPolicy:
        if self.spread_days >= self.max_age_days:
            raise PydanticCustomError(
                "agree",
                "spread_days: {spread} is not below max_age_days ({age}), so a secret could be due "
                "when it is new. Use less",
                {"spread": self.spread_days, "age": self.max_age_days},
            )
        if self.observe_interval_seconds > self.observe_deadline_seconds:
            raise PydanticCustomError(
                "agree",
                "observe_interval_seconds: {interval} is above observe_deadline_seconds "
                "({deadline}), so consumers are looked at once. Use less",
                {
                    "interval": self.observe_interval_seconds,
                    "deadline": self.observe_deadline_seconds,
                },
            )
        return self


class SystemPolicy(SpecModel):
    """One system that holds many secrets, as a database server."""

    parallel: int = Field(ge=1, le=64, description="Rotations at once on this system.")


def _scalar(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


class SecretRule(SpecModel):
    """Which secrets are of which class, by the pattern of their path."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    path: str = Field(description="Path or pattern: * is within a name, ** is any depth.")
    kind: str = Field(alias="class", min_length=1, description="Entry under `classes`.")
    environment: Name = Field(description="Entry of `environments`; decides the wave.")
    system: str | None = Field(
        default=None, description="Entry under `systems`; the class's own limit if absent."
    )
    parameters: dict[str, Annotated[str, BeforeValidator(_scalar)]] = Field(
        default_factory=dict,
        description="What the class needs; {1} is what the first * matched, {path} the whole path.",
    )

    @field_validator("path")
    @classmethod
    def _pattern(cls, value: str) -> str:
        segments = value.split("/")
        right = all(_SEGMENT.fullmatch(s) and s not in (".", "..") for s in segments)
        if not right or any("**" in s and s != "**" for s in segments):
            raise PydanticCustomError(
                "pattern",
                "is not a path pattern. Write names separated by single slashes, with * within a "
                "name or ** alone for any depth, as apps/*/database",
            )
        return value

    @field_validator("parameters")
    @classmethod
    def _in_clear(cls, value: dict[str, str], info: Any) -> dict[str, str]:
        bad = sorted(name for name in value if _SECRET_PARAMETER.fullmatch(name))
        if bad:
            raise PydanticCustomError(
                "in_clear",
                "name {bad}, and the policy is kept in clear. Keep the value in OpenBao and name "
                "its path",
                {"bad": ", ".join(bad)},
            )
        known = {str(n + 1) for n in range(wildcards(info.data.get("path", "")))} | {"path", "name"}
        used = {found for text in value.values() for found in PLACEHOLDER.findall(text)}
        if "path" in info.data and used - known:
            raise PydanticCustomError(
                "placeholder",
                "use {used}, which the path does not give. Use one of: {known}",
                {
                    "used": ", ".join(f"{{{name}}}" for name in sorted(used - known)),
                    "known": ", ".join(f"{{{name}}}" for name in sorted(known)),
                },
            )
        return value


def wildcards(pattern: str) -> int:
    """Return how many parts of a path `pattern` leaves open."""
    return len(re.findall(r"\*\*|\*", pattern))


def as_expression(pattern: str) -> re.Pattern[str]:
    """Return what a path must match, with one group per wildcard."""
    parts = re.split(r"(\*\*|\*)", pattern)
    meaning = {"**": "(.+)", "*": "([^/]+)"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts))
