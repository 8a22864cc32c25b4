"""What a plan of OpenTofu would do, as rows that a person reads and a hash that an approval names.

Promises that two plans with the same acts and values have the same hash, whatever their order and
time, and that sensitive values neither enter the hash nor a row. Refuses a plan that errored.
Format: https://opentofu.org/docs/internals/json-format/
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from domain.errors import PermanentError

SHOWN_CHANGES = 6
HIDDEN = "(sensitive)"
LATER = "(known after apply)"


class Action(StrEnum):
    """What happens to one resource."""

    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    DESTROY = "destroy"
    FORGET = "forget"
    NO_OP = "no-op"

    @property
    def ends_something(self) -> bool:
        """True when a thing that exists would be gone afterwards, or out of our sight."""
        return self in (Action.REPLACE, Action.DESTROY, Action.FORGET)


_ACTIONS: dict[tuple[str, ...], Action] = {
    ("create",): Action.CREATE,
    ("update",): Action.UPDATE,
    ("delete",): Action.DESTROY,
    ("delete", "create"): Action.REPLACE,
    ("create", "delete"): Action.REPLACE,
    ("forget",): Action.FORGET,
    ("no-op",): Action.NO_OP,
    ("read",): Action.NO_OP,
}


@dataclass(frozen=True)
class PlanRow:
    """One resource in a plan."""

    action: Action
    address: str
    name: str
    node: str
    changes: str
    digest: str
    """Hash of the action and the planned values."""


@dataclass(frozen=True)
class ClusterPlan:
    """A whole plan."""

    rows: tuple[PlanRow, ...]
    plan_hash: str

    @property
    def counts(self) -> dict[str, int]:
        """How many resources meet each action; actions that none meets are absent."""
        return dict(Counter(row.action.value for row in self.rows))

    @property
    def summary(self) -> str:
        """The counts in words, as `2 create, 3 unchanged`."""
        words = [
            f"{number} {'unchanged' if action == Action.NO_OP else action}"
            for action, number in self.counts.items()
        ]
        return ", ".join(words) or "nothing"

    @property
    def changed_rows(self) -> tuple[PlanRow, ...]:
        """The rows that do something."""
        return tuple(row for row in self.rows if row.action is not Action.NO_OP)

    @property
    def is_empty(self) -> bool:
        """True when applying would do nothing."""
        return not self.changed_rows

    @property
    def changes(self) -> int:
        """Number of resources that something happens to."""
        return len(self.changed_rows)

    @property
    def destroys(self) -> int:
        """Number of resources that would be ended: destroyed, replaced or forgotten."""
        return sum(row.action.ends_something for row in self.rows)

    def is_remainder_of(self, approved: ClusterPlan) -> bool:
        """True when everything that this plan does was in `approved`, to the same values.

        A plan that was cut short is followed by one that finishes it; that one needs no second
        approval. A machine that was created already may still need an update of the very values.
        """
        allowed = {(row.address, row.action): row.digest for row in approved.changed_rows}
        for row in self.changed_rows:
            wanted = allowed.get((row.address, row.action))
            finishes = row.action is Action.UPDATE and (row.address, Action.CREATE) in allowed
            if wanted != row.digest and not finishes:
                return False
        return True


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _masked(value: Any, sensitive: Any) -> Any:
    """Copy `value` with what `sensitive` marks (true, or by key or index) replaced."""
    if sensitive is True:
        return HIDDEN
    if isinstance(value, Mapping):
        marks = sensitive if isinstance(sensitive, Mapping) else {}
        return {key: _masked(item, marks.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        marks_list = sensitive if isinstance(sensitive, list) else []
        return [
            _masked(item, marks_list[i] if i < len(marks_list) else None)
            for i, item in enumerate(value)
        ]
    return value


def _differences(before: Any, after: Any, unknown: Any, path: str = "") -> Iterable[str]:
    """Yield one text for each leaf that differs, as `cpu.0.cores: 2 -> 4`."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        marks = unknown if isinstance(unknown, Mapping) else {}
        for key in sorted({*before, *after, *marks}):
            below = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key), after.get(key), marks.get(key), below)
        return
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        marks_list = unknown if isinstance(unknown, list) else []
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            mark = marks_list[i] if i < len(marks_list) else None
            yield from _differences(old, new, mark, f"{path}.{i}")
        return
    if unknown is True:
        # A value that the provider computes says nothing about what the operator asked for.
        return
    if before != after:
        yield f"{path}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else _canonical(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _created(values: Mapping[str, Any]) -> str:
    """Describe a machine that will be created, from the provider's nested blocks."""

    def first(block: str, key: str) -> Any:
        place = values.get(block)
        return place[0].get(key) if isinstance(place, list) and place else None

    parts = []
    if values.get("vm_id"):
        parts.append(f"VMID {values['vm_id']}")
    for block, key, unit in (("cpu", "cores", "cores"), ("memory", "dedicated", "MiB")):
        if first(block, key):
            parts.append(f"{first(block, key)} {unit}")
    if first("disk", "size"):
        parts.append(f"{first('disk', 'size')} GiB")
    settings = values.get("initialization")
    if isinstance(settings, list) and settings:
        for card in settings[0].get("ip_config") or []:
            parts += [str(ipv4["address"]) for ipv4 in card.get("ipv4") or []]
    return ", ".join(parts)


def _what_changes(action: Action, before: Any, after: Any, unknown: Any, reasons: Any) -> str:
    if action is Action.CREATE:
        return _created(after if isinstance(after, Mapping) else {})
    if action in (Action.UPDATE, Action.REPLACE):
        found = list(_differences(before, after, unknown))
        more = [f"and {len(found) - SHOWN_CHANGES} more"] if len(found) > SHOWN_CHANGES else []
        forced = [".".join(str(part) for part in path) for path in reasons or []]
        cause = [f"forced by {', '.join(forced)}"] if forced else []
        return "; ".join([*cause, *found[:SHOWN_CHANGES], *more])
    return ""


def _row(change: Mapping[str, Any]) -> PlanRow:
    detail: Mapping[str, Any] = change["change"]
    actions = tuple(detail["actions"])
    if actions not in _ACTIONS:
        raise PermanentError(
            f"Unable to read the plan: {change['address']} has the unknown action "
            f"{'+'.join(actions)}. Use the OpenTofu version that this release was tried with."
        )
    action = _ACTIONS[actions]
    before = _masked(detail.get("before"), detail.get("before_sensitive"))
    after = _masked(detail.get("after"), detail.get("after_sensitive"))
    unknown = detail.get("after_unknown")
    values = after if isinstance(after, Mapping) else before if isinstance(before, Mapping) else {}
    planned = {"address": change["address"], "action": action.value, "after": after}
    return PlanRow(
        action=action,
        address=str(change["address"]),
        name=str(values.get("name") or values.get("pool_id") or change.get("index") or ""),
        node=str(values.get("node_name") or ""),
        changes=_what_changes(action, before, after, unknown, detail.get("replace_paths")),
        digest=hashlib.sha256(_canonical(planned).encode()).hexdigest(),
    )


def parse_plan(document: Any) -> ClusterPlan:
    """Return the plan that a `tofu show -json` document holds.

    Raises:
        PermanentError: the plan errored, or is of a form that this code does not know.
    """
    if not isinstance(document, Mapping) or "resource_changes" not in document:
        is_whole = isinstance(document, Mapping) and document.get("errored") is False
        # A plan over no resources at all has no list either, yet it is a whole plan.
        if not is_whole:
            raise PermanentError(
                "Unable to read the plan: it errored and holds no changes. "
                "Mend what the planning step reported, then plan again."
            )
        document = {**document, "resource_changes": []}
    if document.get("errored"):
        raise PermanentError(
            "Unable to read the plan: it errored half-way. "
            "Mend what the planning step reported, then plan again."
        )
    changes = [c for c in document["resource_changes"] if c.get("mode", "managed") == "managed"]
    rows = tuple(sorted((_row(change) for change in changes), key=lambda row: row.address))
    acting = [row.digest for row in rows if row.action is not Action.NO_OP]
    return ClusterPlan(rows=rows, plan_hash=hashlib.sha256("\n".join(acting).encode()).hexdigest())
