"""How old the value is that consumers use now.

Promises to believe what is known for sure: the engine's record of a finished rotation, else the
time of the version in OpenBao. A value that was moved into OpenBao is older than its version: its
owner says so (`issued_at` among the path's custom metadata). Refuses to let an attempt that was
rolled back make a value look new.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from domain.rotation.state import RotationState, Step

ISSUED_AT = "issued_at"
"""Key of the custom metadata of a secret's path."""


def value_time(
    state: RotationState | None, versions: Iterable[datetime], issued_at: str = ""
) -> datetime | None:
    """Return since when the value in use has been in use; None when nobody knows.

    `versions` are the times of the path's versions, in any order.
    """
    times = sorted(versions)
    if state is not None and state.step is Step.DONE:
        made = _moment(state.created_at)
        # Whoever wrote the path after the rotation has replaced the value by hand.
        return max([time for time in (made, *times[-1:]) if time], default=None)
    if state is not None:
        began = _moment(state.started_at)
        times = [time for time in times if began is None or time < began]
    is_first = state is None or state.old_generation == 0
    issued = _moment(issued_at) if is_first else None
    return min([time for time in (issued, *times[-1:]) if time], default=None)


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
