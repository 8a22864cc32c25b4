"""The journals of applications, in OpenBao: what was begun and what is done, for the next run.

Exists because a run may be killed anywhere and the next one, on any worker, must know what it left.
Promises check-and-set on every write, so that a run that lost its lock cannot write over the run
that took over; and that a journal holds specs and step names, never a secret value.

Rights that the worker needs on the KV mount: `data/onboarding/<environment>/*` create, read,
update; `metadata/onboarding/<environment>/*` read, list, delete.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from domain.errors import PermanentError
from domain.onboarding.saga import Journal

KEY = "journal"


@dataclass(frozen=True)
class Entry:
    """A journal as it was read, and the number that the next write must name."""

    journal: Journal
    version: int
    is_new: bool = False


class SagaJournals:
    """The journals of one environment."""

    def __init__(self, session: OpenBaoSession, environment: str) -> None:
        """Speak by `session`."""
        self._session = session
        self._secrets = VersionedSecrets(session)
        self.root = f"onboarding/{environment}"

    def path(self, app: str) -> str:
        """Return where an application's journal lies."""
        return f"{self.root}/{app}"

    def load(self, app: str) -> Entry:
        """Return an application's journal; an empty one when there is none."""
        found = self._secrets.read(self.path(app))
        if not found.values:
            return Entry(Journal(name=app), found.version, is_new=True)
        return Entry(self._parsed(app, found.values.get(KEY, "")), found.version)

    def save(self, journal: Journal, version: int) -> int:
        """Write over `version` and return the new number.

        Raises:
            Conflict: another run wrote meanwhile.
        """
        values = {KEY: journal.model_dump_json()}
        return self._secrets.write(self.path(journal.name), values, version)

    def forget(self, journal: Journal, version: int) -> None:
        """Remove a journal of which nothing is left.

        Raises:
            Conflict: another run wrote meanwhile.
        """
        # Deleting knows no check-and-set; this write does, and it is the same journal.
        self.save(journal, version)
        self._session.delete(self.path(journal.name))

    def names(self) -> list[str]:
        """Return the applications that have a journal."""
        found = self._session.names_under(self.root)
        return sorted(path.removeprefix(f"{self.root}/") for path in found)

    def all(self) -> list[Journal]:
        """Return every journal of the environment."""
        entries = [self.load(name) for name in self.names()]
        return [entry.journal for entry in entries if not entry.is_new]

    def _parsed(self, app: str, text: str) -> Journal:
        try:
            return Journal.model_validate_json(text)
        except ValidationError as error:
            raise PermanentError(
                f"Unable to read the journal {self.path(app)}: {error.error_count()} fields are "
                "not as this version writes them. Use the version that wrote it."
            ) from error
