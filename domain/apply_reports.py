"""What applying manifests did, object by object.

Promises counts that are made from the objects' own outcomes and never kept beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from domain.manifest_order import ObjectKey


class Change(StrEnum):
    """What an apply did to one object, as its resource version tells."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class AppliedObject:
    """One object and what became of it."""

    key: ObjectKey
    change: Change


@dataclass(frozen=True)
class ApplyReport:
    """The outcome of one apply of a set of manifests."""

    objects: tuple[AppliedObject, ...]
    seconds: float
    revision: str = ""
    """Git commit that the manifests came from."""

    def _count(self, change: Change) -> int:
        return sum(1 for item in self.objects if item.change is change)

    @property
    def created(self) -> int:
        """Objects that were not there before."""
        return self._count(Change.CREATED)

    @property
    def changed(self) -> int:
        """Objects that were there in another form."""
        return self._count(Change.CHANGED)

    @property
    def unchanged(self) -> int:
        """Objects that were already as wanted."""
        return self._count(Change.UNCHANGED)

    @property
    def is_noop(self) -> bool:
        """True when nothing was created or changed."""
        return self.created == 0 and self.changed == 0

    def rows(self) -> list[dict[str, str]]:
        """Table rows, what was touched first."""
        return apply_rows(self.objects)


def apply_rows(objects: Sequence[AppliedObject]) -> list[dict[str, str]]:
    """Return the table of objects: created, then changed, then unchanged ones."""
    order = list(Change)
    return [
        {
            "result": item.change.value,
            "kind": item.key.kind,
            "object": item.key.name,
            "namespace": item.key.namespace or "-",
        }
        for item in sorted(objects, key=lambda item: (order.index(item.change), item.key))
    ]
