"""Host names of applications in a zone, each with a proof of whose it is.

Why it exists: a zone is shared, and an address record has no room for an owner. Beside each name
`shop.example.org` lies a text `_infraflows.shop.example.org` that names the application; and a text
`shop._infraflows.<zone>` lists the application's names, so that they are found when nobody knows
its specification any more. Promises that name, mark and list change in one update, on the condition
that they are what they were read as. Refuses a name that is in use without the application's mark,
whatever kind of record it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blocks.dns_zone import DnsZone, RecordSwap, UpdateKey
from domain.errors import Conflict

LABEL = "_infraflows"


class OwnedNames:
    """The names of one application in one zone."""

    def __init__(self, zone: DnsZone, key: UpdateKey, app: str) -> None:
        """Look after the names of `app`, signing with `key`."""
        self._zone = zone
        self._key = key
        self._app = app
        self._list = f"{app}.{LABEL}"

    @property
    def mark(self) -> str:
        """The text that says whose a name is."""
        return f"infraflows app={self._app}"

    def found(self) -> dict[str, list[str]]:
        """Return the addresses of the names that are listed and bear the mark."""
        listed = self._listed()
        marks = self._marks(listed)
        own = [name for name in listed if marks.get(name) == [self.mark]]
        addresses = self._addresses(own)
        return {name: addresses.get(name, []) for name in own}

    def set(self, wanted: Mapping[str, str]) -> None:
        """Make the application's names exactly these; nothing is sent when they are.

        Raises:
            Conflict: names are in use by somebody else. InvalidSpec: one is outside the zone.
        """
        listed = self._listed()
        names = sorted({*listed, *wanted})
        marks, addresses = self._marks(names), self._addresses(names)
        self._refuse_foreign(wanted, marks, addresses)
        swaps = []
        for name in names:
            if name not in wanted and marks.get(name) != [self.mark]:
                continue  # listed once, and somebody else's since
            after = (wanted[name],) if name in wanted else ()
            swaps += self._swaps_of(
                name, tuple(marks.get(name, ())), tuple(addresses.get(name, ())), after
            )
        list_after = tuple(sorted(wanted))
        if tuple(listed) != list_after:
            swaps.append(RecordSwap(self._list, "TXT", tuple(listed), list_after))
        self._zone.swap(swaps, self._key)

    def _swaps_of(
        self, name: str, mark: tuple[str, ...], before: tuple[str, ...], after: tuple[str, ...]
    ) -> list[RecordSwap]:
        mark_after = (self.mark,) if after else ()
        if before == after and mark == mark_after:
            return []
        return [
            RecordSwap(_absolute(name), "A", before, after, is_new_name=not before and not mark),
            RecordSwap(_mark_name(name), "TXT", mark, mark_after),
        ]

    def _refuse_foreign(
        self,
        wanted: Iterable[str],
        marks: Mapping[str, list[str]],
        addresses: Mapping[str, list[str]],
    ) -> None:
        foreign = []
        for name in wanted:
            mark = marks.get(name)
            if mark and mark != [self.mark]:
                foreign.append(f"{name} bears the mark {', '.join(mark)!r}")
            elif not mark and name in addresses:
                foreign.append(f"{name} has an address and no mark")
        if foreign:
            raise Conflict(
                f"Unable to name {self._app} in {self._zone.zone}: {'; '.join(foreign)}. "
                "Choose another host name, or remove the record if nobody needs it."
            )

    # --- reading -----------------------------------------------------------------------------

    def _listed(self) -> list[str]:
        return self._zone.texts([self._list]).get(self._list, [])

    def _marks(self, names: Iterable[str]) -> dict[str, list[str]]:
        texts = self._zone.texts([_mark_name(name) for name in names])
        prefix = _mark_name("")
        return {name.removeprefix(prefix).rstrip("."): found for name, found in texts.items()}

    def _addresses(self, names: Iterable[str]) -> dict[str, list[str]]:
        found = self._zone.lookup_all([_absolute(name) for name in names])
        return {name.rstrip("."): addresses for name, addresses in found.items()}


def _absolute(name: str) -> str:
    return f"{name}."


def _mark_name(name: str) -> str:
    return f"{LABEL}.{name}." if name else f"{LABEL}."
