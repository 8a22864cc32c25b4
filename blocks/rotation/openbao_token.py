"""Periodic tokens of OpenBao: made by two token roles in turn, the old one is revoked.

Why two roles: OpenBao chooses the token, so a kill between its answer and the record leaves a token
that nobody knows. All tokens of one role can be revoked by its prefix: before one is made, what the
role that is *not* in use has left is revoked. Promises that the current token's role is never the
one that is cleared. Refuses to rotate the token that the run itself holds.
API: https://openbao.org/api-docs/auth/token/

Parameters: `token_roles`, two names with a comma, whose roles have the same policies and
`token_period`, and `orphan`; `quiet_seconds`, at least the time between two renewals of a consumer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets, moment
from blocks.rotation.classes import RotationClass
from blocks.rotation.last_use import Uses, judged
from blocks.rotation.secret_parameters import parameters
from domain.errors import Conflict, InvalidSpec, PermanentError, PolicyViolation, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "openbao-periodic-token"
_UNKNOWN = ("bad token", "invalid accessor")


class PeriodicToken:
    """Periodic tokens of one OpenBao."""

    kind = KIND
    has_overlap = True

    def __init__(self, session: OpenBaoSession) -> None:
        """Speak by `session`, which may make tokens of the roles and revoke them by prefix."""
        self._session = session
        self._versions = VersionedSecrets(session)

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Have a token made by the role that is not in use, after clearing what it has left."""
        self._refuse_own(secret, current)
        role = self._free_role(secret, current)
        self._check(secret, role)
        self._session.call(
            "revoke what is left of",
            "PUT",
            f"sys/leases/revoke-prefix/auth/token/create/{role}",
            {"sync": True},
        )
        body = {"meta": {"rotated_by": "infraflows", "generation": str(generation)}}
        answer = self._session.call("make a token of", "POST", f"auth/token/create/{role}", body)
        made = answer["auth"]
        kept = dict(current or {})
        return {**kept, "token": str(made["client_token"]), "accessor": str(made["accessor"])}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Nothing to do: a token is accepted from the moment at which it exists."""

    def test(self, secret: SecretRef, new: Values) -> None:
        """Look the new token up and renew it, as its holder."""
        holder = self._session.server.holder(new["token"])
        own = holder.call("look up the own token at", "GET", "auth/token/lookup-self")["data"]
        if not own.get("renewable"):
            raise PermanentError(
                f"Unable to use the new token of {secret.path}: it cannot be renewed. "
                "Set token_period and renewable in its token role."
            )
        holder.call("renew the own token at", "POST", "auth/token/renew-self", {})

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Compare when the two were renewed last with when the new one was handed out."""
        uses = Uses(
            handed_out_at=self._versions.written_at(secret.path),
            new_used_at=_renewed_at(self._found(new)),
            old_used_at=_renewed_at(self._found(current)),
        )
        roles = secret.parameters.get("token_roles", "")
        return judged(secret, f"holder of a token of {roles}", uses)

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Revoke the token."""
        self._refuse_own(secret, old)
        if self._found(old) is not None:
            body = {"token": old["token"]}
            self._session.call("revoke a token at", "POST", "auth/token/revoke", body)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Use the old token as its holder; OpenBao must not know it any more either."""
        method = "look-up by the token itself"
        try:
            holder = self._session.server.holder(old["token"])
            holder.call("look up the own token at", "GET", "auth/token/lookup-self")
        except Unauthorized:
            # A live token may lack the right to look itself up: that alone proves nothing.
            if self._found(old) is None:
                return Proof(True, method, "permission denied, and the token is not known")
            return Proof(False, method, "permission denied, but the token is known")
        return Proof(False, method, "the token was accepted")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Revoke the new token."""
        self.revoke(secret, new)

    def accessors(self, secret: SecretRef, current: Values | None) -> Collection[str]:
        """Return the accessor of the current token."""
        found = self._found(current)
        return [str(found["accessor"])] if found else []

    def _found(self, values: Values | None) -> dict[str, Any] | None:
        if not values or not values.get("token"):
            return None
        body = {"token": values["token"]}
        try:
            answer = self._session.call("look up a token at", "POST", "auth/token/lookup", body)
        except Unauthorized as error:
            if any(text in str(error.__cause__) for text in _UNKNOWN):
                return None
            raise
        return dict(answer["data"])

    def _free_role(self, secret: SecretRef, current: Values | None) -> str:
        (names,) = parameters(secret, "token_roles")
        roles = [name.strip() for name in names.split(",") if name.strip()]
        if len(set(roles)) != 2:
            raise InvalidSpec(
                f"the secret {secret.path}",
                [f"token_roles: {names!r} does not name two roles. Write them as app-a,app-b"],
            )
        found = self._found(current)
        used = str((found or {}).get("role") or "")
        return roles[1] if used == roles[0] else roles[0]

    def _check(self, secret: SecretRef, role: str) -> None:
        path = f"auth/token/roles/{role}"
        data = self._session.call("read the token role", "GET", path)["data"]
        if not data.get("token_period") or not data.get("orphan"):
            raise Conflict(
                f"Unable to make a periodic token of {role} for {secret.path}: the role must have "
                "a token_period and orphan=true, else the token ends with this run. Change it."
            )

    def _refuse_own(self, secret: SecretRef, values: Values | None) -> None:
        if values and values.get("token") == self._session.token:
            raise PolicyViolation(
                f"Unable to rotate {secret.path}: this run is authenticated with it. "
                "Rotate it from a worker that has a credential of its own."
            )


def _renewed_at(found: dict[str, Any] | None) -> datetime | None:
    if not found:
        return None
    if found.get("last_renewal"):
        return moment(str(found["last_renewal"]))
    seconds = found.get("last_renewal_time")
    return datetime.fromtimestamp(int(seconds), UTC) if seconds else None


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: PeriodicToken(site.session),
    has_overlap=True,
    observed="time of the last renewal of the new and of the old token",
    proved_dead="look-up by the old token itself: permission denied; it is not known any more",
    parameters=("token_roles",),
    optional=("quiet_seconds",),
)
"""How the registry knows it."""
