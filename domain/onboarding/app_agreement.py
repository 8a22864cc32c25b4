"""What can be wrong between the fields of an application, each of which is right by itself.

Promises to find every such problem at once. Refuses to look at the site: which host names and
quotas are free is the business of `domain.onboarding.policies`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from domain.onboarding.app_problems import AppProblem, Location
from domain.onboarding.quantities import memory_mib, millicores

if TYPE_CHECKING:
    from domain.onboarding.app_spec import AppSpec, Resources

REPLICAS_AT_LEAST = {"bronze": 1, "silver": 2, "gold": 2}
"""In production: with one replica every drain of a node is an outage."""


def disagreements(app: AppSpec) -> list[AppProblem]:
    """Return what does not fit together although every field is right by itself."""
    return [
        *_source(app),
        *_all_resources(app),
        *_redundancy(app),
        *_host_names(app),
        *_lists(app),
    ]


def _source(app: AppSpec) -> Iterator[AppProblem]:
    if app.kind is None and app.image is None:
        yield AppProblem(
            ("kind",),
            "missing, and there is no image. Name what the pipeline builds, or give an image",
        )
    elif app.kind is not None and app.image is not None:
        yield AppProblem(
            ("image",),
            f"is given beside kind {app.kind.value}. Remove kind if the image is ready-made, or "
            "image if the pipeline builds it",
        )


def _all_resources(app: AppSpec) -> Iterator[AppProblem]:
    yield from _resources(("resources",), app.resources)
    for stage, spec in app.environments.items():
        if spec.resources is not None:
            yield from _resources(("environments", stage.value, "resources"), spec.resources)


def _resources(place: Location, wanted: Resources) -> Iterator[AppProblem]:
    pairs = [
        ("cpu", wanted.cpu, wanted.cpu_limit, millicores),
        ("memory", wanted.memory, wanted.memory_limit, memory_mib),
    ]
    for name, reserved, limit, amount in pairs:
        if limit is not None and amount(limit) < amount(reserved):
            yield AppProblem(
                (*place, f"{name}_limit"),
                f"{limit!r} is less than {name}, which is {reserved!r}. Raise the limit or lower "
                f"{name}",
            )


def _redundancy(app: AppSpec) -> Iterator[AppProblem]:
    least = REPLICAS_AT_LEAST[app.service_level.value]
    for stage, spec in app.environments.items():
        if stage.value == "production" and spec.replicas < least:
            yield AppProblem(
                ("environments", stage.value, "replicas"),
                f"{spec.replicas} is too few for service level {app.service_level.value}. Use at "
                f"least {least}, or bronze",
            )


def _host_names(app: AppSpec) -> Iterator[AppProblem]:
    first: dict[str, str] = {}
    for stage in app.stages:
        for kind in ("hostnames", "outside_hostnames"):
            for number, name in enumerate(getattr(app.environments[stage], kind)):
                problem = AppProblem(
                    ("environments", stage.value, kind, number),
                    f"{name!r} is already at {first.get(name)}. Name each host once",
                )
                if name in first:
                    yield problem
                first.setdefault(name, problem.field)


def _lists(app: AppSpec) -> Iterator[AppProblem]:
    yield from _repeated(("owners",), app.owners)
    for number in _again([wish.path for wish in app.secrets]):
        yield AppProblem(
            ("secrets", number, "path"),
            "is named above already. List all of its keys in one entry",
        )
    seen: dict[str, int] = {}
    for number, wish in enumerate(app.secrets):
        for position, key in enumerate(wish.key_names):
            if seen.setdefault(key, number) != number:
                yield AppProblem(
                    ("secrets", number, "keys", position),
                    f"is a key of secrets[{seen[key]}] too, and both would be the variable "
                    "<key>_FILE. Rename one",
                )
        yield from _repeated(("secrets", number, "keys"), wish.key_names, is_shown=False)
    if app.database is not None:
        yield from _repeated(("database", "extensions"), app.database.extensions)


def _again(values: Sequence[str]) -> Iterable[int]:
    return (number for number, value in enumerate(values) if value in values[:number])


def _repeated(
    place: Location, values: Sequence[str], *, is_shown: bool = True
) -> Iterator[AppProblem]:
    for number in _again(values):
        shown = f"{values[number]!r} " if is_shown else ""
        yield AppProblem((*place, number), f"{shown}is in the list twice. Remove it here")
