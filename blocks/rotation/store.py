"""The record of a rotation in OpenBao: state and values, written together, readable apart.

Exists so that any worker goes on where another was killed. Promises that state and values change in
one write with check-and-set, that the record keeps one version only (a value that is taken out is
gone), and that the state stands in the record's metadata too, for those who may not read values.
Of the two the data is the truth: after a kill the metadata may be one step behind until the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from domain.errors import Conflict, NotFound, PermanentError
from domain.rotation.contract import SecretRef, Values
from domain.rotation.state import RotationState, cut

STATE = "state"
PROOF = "proof"
VALUE = "value_"
VERSIONS_KEPT = 1


@dataclass(frozen=True)
class Record:
    """What is known about one secret's rotation, and the values that it still needs."""

    state: RotationState
    values: Mapping[int, Values] = field(default_factory=dict, repr=False)
    """Generation -> value; empty once the old one is proved dead."""
    proof: str = ""
    """How the old value was proved dead, and the system's answer."""
    version: int = 0
    """Of the record in OpenBao; what the next write must name."""


class RotationStore:
    """Records of one environment, and the paths that consumers read."""

    def __init__(self, session: OpenBaoSession, environment: str) -> None:
        """Keep the records of `environment` in the session's KV mount."""
        self._session = session
        self._secrets = VersionedSecrets(session)
        self._prefix = f"rotation/{environment}"

    def path(self, secret: SecretRef) -> str:
        """Return where the record of a secret is kept."""
        return f"{self._prefix}/{secret.secret_id}"

    def load(self, secret: SecretRef) -> Record | None:
        """Return the record, or None when the secret was never rotated."""
        found = self._secrets.read(self.path(secret))
        if found.values is None:
            return None
        try:
            return Record(
                state=RotationState.from_metadata(json.loads(found.values[STATE])),
                values={
                    int(key.removeprefix(VALUE)): json.loads(text)
                    for key, text in found.values.items()
                    if key.startswith(VALUE)
                },
                proof=found.values.get(PROOF, ""),
                version=found.version,
            )
        except (KeyError, ValueError):
            raise PermanentError(
                f"Unable to read the rotation's record {self.path(secret)}: it is not one. "
                "Find who wrote it in the audit log; delete it if nothing is being rotated."
            ) from None

    def save(self, secret: SecretRef, record: Record) -> Record:
        """Write over the version that the record was read from.

        Raises:
            Conflict: another worker went on with this secret.
        """
        path, version = self.path(secret), record.version
        if version == 0:
            # Before the first value: what is taken out of the record must be gone for good.
            version = self._prepared(path)
        flat = record.state.to_metadata()
        data = {STATE: json.dumps(flat, sort_keys=True), PROOF: record.proof}
        data |= {f"{VALUE}{number}": json.dumps(dict(v)) for number, v in record.values.items()}
        written = self._secrets.write(path, data, version)
        about = {"path": cut(secret.path), "kind": secret.kind, "proof": cut(record.proof)}
        # A value of custom metadata may not be empty.
        custom = {key: text for key, text in (flat | about).items() if text}
        self._secrets.describe(path, custom, VERSIONS_KEPT)
        return replace(record, version=written)

    def _prepared(self, path: str) -> int:
        metadata = self._secrets.metadata(path)
        if metadata.get("max_versions") != VERSIONS_KEPT:
            self._secrets.describe(path, {}, VERSIONS_KEPT)
        return int(metadata.get("current_version", 0))

    def states(self) -> dict[str, RotationState]:
        """Return the state of every secret of the environment by id, without reading values."""
        found = {}
        for path in self._session.names_under(self._prefix):
            custom = self._secrets.metadata(path).get("custom_metadata") or {}
            if "step" in custom:
                found[path.rpartition("/")[2]] = RotationState.from_metadata(custom)
        return found

    def current(self, secret: SecretRef) -> Values | None:
        """Return what consumers read now; None when the path holds nothing."""
        return self._secrets.read(secret.path).values

    def hand_out(self, secret: SecretRef, new: Values, old: Values | None) -> None:
        """Put `new` where consumers read, in the place of `old`.

        Raises:
            Conflict: somebody else has put a third value there.
        """
        found = self._secrets.read(secret.path)
        if found.values == new:
            return
        if found.values != old:
            raise Conflict(
                f"Unable to hand out a new value at {secret.path}: it holds neither the value "
                "that was read before nor the new one. Find the other writer in the audit log, "
                "then rotate again."
            )
        self._secrets.write(secret.path, new, found.version)

    def hand_back(self, secret: SecretRef, old: Values, new: Values) -> None:
        """Put `old` back where consumers read; a third value, of somebody else, is left there."""
        found = self._secrets.read(secret.path)
        if found.values == new:
            self._secrets.write(secret.path, old, found.version)

    def withdraw(self, secret: SecretRef, new: Values) -> None:
        """Delete the path when it holds `new`: the secret had no value before."""
        if self._secrets.read(secret.path).values == new:
            self._session.delete(secret.path)

    def erase_older(self, secret: SecretRef) -> int:
        """Destroy the versions that consumers do not read any more; returns how many."""
        try:
            return self._secrets.destroy_older(secret.path)
        except NotFound:
            return 0

    def fingerprint(self, values: Values) -> str:
        """Return an HMAC of a value: equal for equal values, and nothing else is told."""
        return self._secrets.hmac(json.dumps(dict(values), sort_keys=True).encode())

    def own_accessors(self) -> frozenset[str]:
        """Return the accessors of what this run is logged in with: its token and its secret id."""
        return self._session.own_accessors()
