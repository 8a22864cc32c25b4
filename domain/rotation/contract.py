"""What every class of secret offers, so that one machine can rotate them all.

A class is an adapter to the system that accepts the secret. Promises, for every adapter: each act
can be killed at any instruction and called again with the same arguments; `create` and `set` leave
the current value working; `revoke` and `rollback` of what is gone succeed. Values travel between
adapter and store only: they are never logged, shown, or part of an error.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

_NAMESPACE = uuid.UUID("0b6f3c1e-54a4-5b0f-8d55-7a0f6f3f8f52")

Values = Mapping[str, str]
"""The parts of one secret value, as a user name and a password."""


@dataclass(frozen=True)
class SecretRef:
    """One secret that is rotated: where consumers read it, and how its class finds it."""

    path: str
    """OpenBao path of the current value, without the mount."""
    kind: str
    """Name of the class, as `postgresql-alternating-users`."""
    environment: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What the class needs to know; never secret."""

    @property
    def secret_id(self) -> str:
        """Derived from path and class, so that any worker finds the same record."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.kind}:{self.path}"))


@dataclass(frozen=True)
class Seen:
    """One consumer, and whether it works with the new value now."""

    consumer: str
    is_on_new: bool | None
    """None when it could not be found out."""
    detail: str = ""


@dataclass(frozen=True)
class Proof:
    """The outcome of trying an old value from outside its holder."""

    is_dead: bool
    method: str
    """What was tried, as `login as app_a`."""
    answer: str
    """The system's refusal in short, without the value."""


class Adapter(Protocol):
    """One class of secrets, against one real system."""

    kind: str
    has_overlap: bool
    """True when old and new value work side by side for a time."""

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Return a new value for `generation`.

        Called again for the same generation after a kill, it may return another value; whatever an
        earlier call left in the system is then removed here or replaced.
        """

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Make the system accept `new` while `current` goes on working."""

    def test(self, secret: SecretRef, new: Values) -> None:
        """Use `new` as a consumer would.

        Raises:
            LifecycleError: it does not work.
        """

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Hand `new` to the consumers that do not read OpenBao by themselves."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look which consumers work with `new` by now; one look, without waiting."""

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Make the system refuse `old`."""

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Try `old` from outside its holder and expect a denial."""

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Undo `create`, `set` and `distribute`: consumers are back on `current`, `new` is gone."""


@runtime_checkable
class KeepsCurrent(Protocol):
    """A class whose consumers read the value from the system itself, not from the secret's path."""

    def current(self, secret: SecretRef) -> Values | None:
        """Return what consumers read now, to be proved dead later; None when there is nothing."""


@runtime_checkable
class NamesAccessors(Protocol):
    """A class of OpenBao's own credentials: one of them could be the run's own."""

    def accessors(self, secret: SecretRef, current: Values | None) -> Collection[str]:
        """Return the accessors of what would be revoked."""
