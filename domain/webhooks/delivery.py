"""A delivery in the queue, and the memory of what was last asked of a flow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GITLAB = "gitlab"
ALERTMANAGER = "alertmanager"


class DeliveryState(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    """Stored, not yet acted on; also while it is acted on."""
    DONE = "done"
    IGNORED = "ignored"
    """Verified and meaningless, for a reason that is kept."""
    FAILED = "failed"
    """Given up; the same delivery sent once more takes it up again."""


@dataclass(frozen=True)
class NewDelivery:
    """What is stored before it is acknowledged."""

    source: str
    lane: str
    """Deliveries of one lane are acted on one after the other, as `gitlab/17`."""
    key: str
    """Same for every attempt of one delivery."""
    event: str
    """What the sender calls it; for people."""
    content: str
    received_at: float
    state: DeliveryState = DeliveryState.PENDING
    reason: str = ""


@dataclass(frozen=True)
class Delivery:
    """One stored delivery that is to be acted on."""

    number: int
    source: str
    lane: str
    content: str
    received_at: float
    attempts: int


@dataclass(frozen=True)
class Lane:
    """Deliveries of one lane, oldest first, leased to one dispatcher."""

    name: str
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True)
class Dispatch:
    """What a scope, as `onboard/17`, was last told to be.

    Written before the flow is started, under a generation that makes the idempotency key: whoever
    is killed in between starts the same run again and not a second one.
    """

    scope: str
    marker: str
    """What was asked for, to be compared: a digest, or a number."""
    generation: int
    name: str
    """Application."""
    run_id: str = ""
    """Empty until the start was acknowledged."""
    tries: int = 1
    """How often this same marker was asked for."""


def gitlab_lane(project_id: int) -> str:
    """Return the lane of a project."""
    return f"{GITLAB}/{project_id}"


def lane_project(lane: str) -> int:
    """Return the project of a lane."""
    return int(lane.partition("/")[2])
