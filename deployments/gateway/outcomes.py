"""How an act ended, as the queue needs to know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """Nothing more is to be done."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """Given up: trying again would not help."""

    reason: str


@dataclass(frozen=True)
class Later:
    """To be tried again."""

    reason: str
    seconds: float | None = None
    """None: longer each time."""


Outcome = Done | Failed | Later
