"""Consumers of systems that do not tell who uses a credential: seen by what they read in OpenBao.

Why it exists: a consumer that fetches its value from OpenBao has the new one once it has fetched it
again. Promises that who read the path within `quiet_seconds` before the new value was handed out
must have read it since; a log that cannot be read leaves them unknown, which is not success.
Refuses to call a consumer that reads only when it starts: give such a one a restart, or make
`quiet_seconds` longer than it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from blocks.openbao import OpenBaoSession
from blocks.openbao_audit import written_at
from blocks.openbao_versions import VersionedSecrets
from blocks.rotation.access import OpenBaoAccess
from blocks.rotation.last_use import quiet_seconds
from domain.rotation.consumers import AuditRead
from domain.rotation.contract import Adapter, Proof, SecretRef, Seen, Values

READ_EVERY_SECONDS = "86400"
"""Default of `quiet_seconds` here: a day between two reads of one consumer."""


class ObservedByReads:
    """A class of secrets whose own system says nothing about consumers."""

    def __init__(self, inner: Adapter, session: OpenBaoSession) -> None:
        """Rotate by `inner`; look for consumers by `session`."""
        self._inner = inner
        self._session = session
        self._versions = VersionedSecrets(session)
        self.kind = inner.kind
        self.has_overlap = inner.has_overlap

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Leave it to the class."""
        return self._inner.create(secret, generation, current)

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Leave it to the class."""
        self._inner.set(secret, new, current)

    def test(self, secret: SecretRef, new: Values) -> None:
        """Leave it to the class."""
        self._inner.test(secret, new)

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Leave it to the class."""
        self._inner.distribute(secret, new)

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Add to what the class sees who has read the path before and since it was handed out."""
        found = list(self._inner.observe(secret, new, current))
        handed_out_at = self._versions.written_at(secret.path)
        if handed_out_at is None:
            return [*found, Seen(secret.path, None, "it is not known when it was handed out")]
        if not self._session.server.audit_file:
            detail = "this worker cannot read OpenBao's audit log (audit_file)"
            return [*found, Seen(f"readers of {secret.path}", None, detail)]
        before = handed_out_at - timedelta(seconds=quiet_seconds(secret, READ_EVERY_SECONDS))
        reads, written = OpenBaoAccess(self._session).reads_of(secret.path, before)
        # A read that was asked for before the write was answered may have got the old value.
        return [*found, *_seen(reads, max(handed_out_at, written or handed_out_at))]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Leave it to the class."""
        self._inner.revoke(secret, old)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Leave it to the class."""
        return self._inner.prove_dead(secret, old)

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Leave it to the class."""
        self._inner.rollback(secret, new, current)


def _seen(reads: Sequence[AuditRead], handed_out_at: datetime) -> list[Seen]:
    """Return for each reader whether it has read since."""
    latest: dict[str, datetime] = {}
    for read in reads:
        name = f"{read.entity} at {read.host}"
        time = written_at({"time": read.time}) or datetime.min.replace(tzinfo=UTC)
        latest[name] = max(time, latest.get(name, time))
    return [
        Seen(name, time > handed_out_at, f"last read at {time.isoformat(timespec='seconds')}")
        for name, time in sorted(latest.items())
    ]
