"""What there is of an application in a system, and what there should be, as comparable lists.

Exists so that plan, drift, read-back after writing and the proof of off-boarding are one
comparison. A thing is named as its system names it; its state is a digest or a word, never a value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Things = Mapping[str, str]
"""Name of a thing, as `namespace shop-staging` -> digest of what is managed of it."""

PRESENT = "present"
"""State of a thing whose content is not compared, as a secret value."""


class Act(StrEnum):
    """What a plan does to a thing."""

    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"


@dataclass(frozen=True)
class ThingChange:
    """One line of a plan."""

    step: str
    system: str
    thing: str
    act: Act


def digest(managed: Any) -> str:
    """Return a short digest of what is managed of a thing; equal content gives an equal digest."""
    text = json.dumps(managed, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(step: str, system: str, found: Things, wanted: Things) -> list[ThingChange]:
    """Return what must be done so that `found` becomes `wanted`, deletions last."""
    made = [
        ThingChange(step, system, thing, Act.CREATE if thing not in found else Act.CHANGE)
        for thing, state in wanted.items()
        if found.get(thing) != state
    ]
    gone = [ThingChange(step, system, thing, Act.DELETE) for thing in found if thing not in wanted]
    return made + gone
