"""What a class is made from: the systems of one environment that a run may speak to.

Promises that a system is looked for when a class that needs it is made, not before: a run that
rotates database users needs no cluster. Refuses values: it knows paths, and reads behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blocks.openbao import OpenBaoSession
from domain.errors import NotFound


@dataclass(frozen=True)
class RotationSite:
    """One environment, as a logged-in run sees it."""

    environment: str
    session: OpenBaoSession
    approvals: Mapping[str, str] = field(default_factory=dict)
    """Secret id -> who approved its rotation, for the classes that ask a person first."""
    systems: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Name of another system, as `kubernetes` -> how its client is opened."""

    def system(self, name: str) -> Any:
        """Open the client of another system.

        Raises:
            NotFound: this run was not given one.
        """
        if name not in self.systems:
            raise NotFound(
                f"Unable to reach {name} in {self.environment}: this run was not told how. "
                "Add its block to the environment: infraflows setup --site <file>."
            )
        return self.systems[name]()
