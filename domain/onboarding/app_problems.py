"""What is wrong with an `app.yaml`: every problem at once, each with its place and its fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domain.onboarding.app_spec import AppSpec


@dataclass(frozen=True)
class AppProblem:
    """One thing that is wrong, at a place in the document."""

    location: tuple[str | int, ...]
    text: str
    line: int | None = None


def disagreements(app: AppSpec) -> list[AppProblem]:
    """Return what does not fit together although every field is right by itself."""
    problems = []
    if (app.kind is None) == (app.image is None):
        problems.append(
            AppProblem(
                ("kind",),
                "needs exactly one of kind and image. Name what the pipeline builds, or an image",
            )
        )
    return problems
