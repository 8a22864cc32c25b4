"""Secret ids of an OpenBao AppRole: two live side by side, the old one is destroyed.

Promises secret ids that are made here and registered afterwards (`custom-secret-id`), so that a
kill leaves nothing behind that nobody knows. Each carries a mark (a hash of it, as metadata) that
OpenBao copies to every token that is issued for it: by the mark a login tells which secret id it
was made with. Logins are found in the audit log, or else among the live tokens, where a token that
its holder gives back at once may be missed. (Counting uses would tell too, but makes OpenBao 2.7
refuse logins at the same moment.) Refuses to rotate the secret id that the run itself logged in
with. Tokens that were issued for the old secret id live on until
their own end (`token_max_ttl` of the role): a login with it is what is refused.
API: https://openbao.org/api-docs/auth/approle/

Parameters: `role`; `mount` (default `approle`); `quiet_seconds`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from blocks.openbao import OpenBaoSession
from blocks.openbao_audit import AuditLog, written_at
from blocks.openbao_versions import VersionedSecrets, moment
from blocks.rotation.classes import RotationClass
from blocks.rotation.last_use import Uses, judged, quiet_seconds
from blocks.rotation.secret_parameters import parameters
from domain.errors import NotFound, PermanentError, PolicyViolation, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "openbao-approle-secret-id"
SECRET_ID_BYTES = 32
MARK = "rotation"

_Login = tuple[str, Mapping[str, Any], datetime]
"""Path of the login, metadata of the token, time."""


class AppRoleSecretId:
    """Secret ids of the roles of one OpenBao."""

    kind = KIND
    has_overlap = True

    def __init__(self, session: OpenBaoSession) -> None:
        """Speak by `session`, which may register and destroy secret ids of the roles."""
        self._session = session
        self._versions = VersionedSecrets(session)

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a secret id; OpenBao does not know it yet."""
        self._refuse_own(secret, current)
        path = f"{_role(secret)}/role-id"
        role_id = str(self._session.call("read the role id", "GET", path)["data"]["role_id"])
        kept = dict(current or {})
        return {**kept, "role_id": role_id, "secret_id": secrets.token_hex(SECRET_ID_BYTES)}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Register the secret id."""
        if self._found(secret, new) is not None:
            return
        body = {"secret_id": new["secret_id"], "metadata": json.dumps({MARK: _mark(new)})}
        path = f"{_role(secret)}/custom-secret-id"
        self._session.call("register a secret id with", "POST", path, body)

    def test(self, secret: SecretRef, new: Values) -> None:
        """Log in with the new secret id and give the token back."""
        self._log_in(secret, new)

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Compare when the two were used last with when the new one was handed out."""
        handed_out_at = self._versions.written_at(secret.path)
        since = (handed_out_at or datetime.now(UTC)) - timedelta(seconds=quiet_seconds(secret) + 1)
        logins = self._logins(secret, since)
        mark = _mark(new)
        uses = Uses(
            handed_out_at=handed_out_at,
            new_used_at=max((at for found, at in logins if found == mark), default=None),
            # Whatever is not the new one counts as old: also what was made before there were marks.
            old_used_at=max((at for found, at in logins if found != mark), default=None),
        )
        return judged(secret, f"approle {secret.parameters['role']}", uses)

    def _logins(self, secret: SecretRef, since: datetime) -> list[tuple[str, datetime]]:
        """Return (mark, time) of the role's logins after `since`."""
        has_log = bool(self._session.server.audit_file)
        found = self._logged(since) if has_log else self._live_tokens()
        return [
            (str(metadata.get(MARK, "")), at)
            for path, metadata, at in found
            if path == f"auth/{_mount(secret)}/login"
            and metadata.get("role_name") == secret.parameters["role"]
            and at > since
        ]

    def _logged(self, since: datetime) -> Iterator[_Login]:
        for entry in AuditLog(Path(self._session.server.audit_file)).since(since):
            at = written_at(entry)
            if entry.get("type") == "response" and not entry.get("error") and at:
                metadata = (entry.get("auth") or {}).get("metadata") or {}
                yield str((entry.get("request") or {}).get("path")), metadata, at

    def _live_tokens(self) -> Iterator[_Login]:
        listed = self._session.call("list tokens at", "LIST", "auth/token/accessors")
        for accessor in listed["data"]["keys"]:
            path, body = "auth/token/lookup-accessor", {"accessor": accessor}
            # A token may end between the list and the look at it.
            with suppress(Unauthorized, NotFound, PermanentError):
                data = self._session.call("look up a token at", "POST", path, body)["data"]
                at = moment(str(data.get("issue_time") or ""))
                if at:
                    yield str(data.get("path")), data.get("meta") or {}, at

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Destroy the secret id."""
        self._refuse_own(secret, old)
        body = {"secret_id": old["secret_id"]}
        self._session.call(
            "destroy a secret id of", "POST", f"{_role(secret)}/secret-id/destroy", body
        )

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in with the old secret id, as nobody in particular."""
        method = f"login to the approle {secret.parameters['role']}"
        try:
            self._log_in(secret, old)
        except PermanentError as error:
            if "invalid role or secret ID" not in str(error.__context__):
                raise
            return Proof(True, method, "invalid role or secret ID")
        return Proof(False, method, "the login succeeded")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Destroy the new secret id."""
        self.revoke(secret, new)

    def accessors(self, secret: SecretRef, current: Values | None) -> Collection[str]:
        """Return the accessor of the current secret id."""
        found = self._found(secret, current)
        return [str(found["secret_id_accessor"])] if found else []

    def _log_in(self, secret: SecretRef, values: Values) -> None:
        body = {"role_id": values["role_id"], "secret_id": values["secret_id"]}
        server = self._session.server
        path = f"auth/{_mount(secret)}/login"
        answer = server.holder().call("log in with a secret id at", "POST", path, body)
        holder = server.holder(str(answer["auth"]["client_token"]))
        holder.call("give back a token at", "POST", "auth/token/revoke-self")

    def _found(self, secret: SecretRef, values: Values | None) -> dict[str, Any] | None:
        if not values or "secret_id" not in values:
            return None
        path, body = f"{_role(secret)}/secret-id/lookup", {"secret_id": values["secret_id"]}
        # An unknown secret id is answered without a body.
        return self._session.call("look up a secret id of", "POST", path, body).get("data")

    def _refuse_own(self, secret: SecretRef, values: Values | None) -> None:
        own = self._session.server.own_secret_id()
        if values and secrets.compare_digest(values.get("secret_id", "").encode(), own.encode()):
            raise PolicyViolation(
                f"Unable to rotate {secret.path}: this run is authenticated with it. "
                "Rotate it from a worker that has a credential of its own."
            )


def _mount(secret: SecretRef) -> str:
    return secret.parameters.get("mount", "approle")


def _role(secret: SecretRef) -> str:
    return f"auth/{_mount(secret)}/role/{parameters(secret, 'role')[0]}"


def _mark(values: Values) -> str:
    """Return what tells secret ids apart and says nothing about them: they are random."""
    return hashlib.sha256(f"infraflows:{values['secret_id']}".encode()).hexdigest()[:16]


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: AppRoleSecretId(site.session),
    has_overlap=True,
    observed="audit log (or live tokens): last login with the new and with another secret id",
    proved_dead="login with the old secret id: invalid role or secret ID",
    parameters=("role",),
    optional=("mount", "quiet_seconds"),
)
"""How the registry knows it."""
