"""What is known about a class of secrets before one of them is rotated.

The rows of the README's table come from here, so that they cannot differ from the code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blocks.rotation.site import RotationSite
from domain.rotation.contract import Adapter


@dataclass(frozen=True)
class RotationClass:
    """One class of secrets."""

    kind: str
    make: Callable[[RotationSite], Adapter]
    has_overlap: bool
    observed: str
    """How a consumer is seen on the new value."""
    proved_dead: str
    """What is tried with the old value, and what the system answers."""
    parameters: tuple[str, ...] = ()
    """Names that a secret of this class must give."""
    optional: tuple[str, ...] = ()
    needs_approval: bool = False
    """True when a person must agree to each rotation."""
    is_observed_by_reads: bool = False
    """True when the system does not tell who uses it: OpenBao's audit log is asked who read it."""
    outage_seconds: int = 0
    """What consumers that behave as the class says must expect."""
