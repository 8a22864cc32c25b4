"""A PostgreSQL user whose password OpenBao's database engine makes, keeps and changes.

There is no overlap: PostgreSQL keeps one password per user, and the engine changes it in place.
What keeps consumers working is that they read the password from the engine *when they connect*,
and read it once more when a login is denied; open sessions go on. Promises that one rotation
changes the password once, however often it is killed: the new value is known by the time of the
rotation that came before it. Refuses to rotate the user that the engine or this run logs in with.
API: https://openbao.org/api-docs/secret/databases/

Parameters: `static_role`; `mount` (default `database`); `admin_path`, where the server is and who
may look at its sessions; `wait_for_reconnect` (`true`: consumers must open new sessions).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import moment
from blocks.rotation import postgresql_login as postgresql
from blocks.rotation.classes import RotationClass
from blocks.rotation.secret_parameters import parameters
from domain.errors import PermanentError
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "postgresql-static-role"
ROTATED_AFTER = "rotated_after"


class StaticRole:
    """Static roles of the database engine of one OpenBao."""

    kind = KIND
    has_overlap = False

    def __init__(self, session: OpenBaoSession) -> None:
        """Speak by `session`, which may read and rotate the role."""
        self._session = session

    def current(self, secret: SecretRef) -> Values | None:
        """Return the user and the password that the engine gives out now."""
        found = self._given_out(secret)
        return {"username": found["username"], "password": found["password"]}

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Name the rotation after which the password is the new one."""
        found = self._given_out(secret)
        login = postgresql.place(self._session, secret)
        postgresql.refuse_own(secret, login, [found["username"]])
        return {"username": found["username"], ROTATED_AFTER: found["last_vault_rotation"]}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Have the engine rotate, unless it has since `create`."""
        if not self._is_rotated(secret, new):
            self._rotate(secret)

    def test(self, secret: SecretRef, new: Values) -> None:
        """Log in with what the engine gives out, and see that it is not what it was."""
        found = self._given_out(secret)
        if found["last_vault_rotation"] == new[ROTATED_AFTER]:
            raise PermanentError(
                f"Unable to rotate {secret.path}: the engine gives out the old password still. "
                "See OpenBao's log for the database's refusal."
            )
        login = postgresql.place(self._session, secret)
        with postgresql.connected(login, found["username"], found["password"]):
            pass

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read from the engine when they connect."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look which consumers have connected since the rotation.

        An open session from before goes on and reads the new password at its next connect; it is
        waited for only where the secret says so.
        """
        if ROTATED_AFTER not in new:
            return []
        found = self._given_out(secret)
        rotated_at = moment(found["last_vault_rotation"])
        login = postgresql.place(self._session, secret)
        with postgresql.administrator(login) as connection:
            open_now = postgresql.sessions(connection, [found["username"]])
        is_strict = secret.parameters.get("wait_for_reconnect") == "true"
        return _seen([(c, start) for c, _, start in open_now], rotated_at, is_strict=is_strict)

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Nothing is left to do: the old password ended in `set`; rotate if it has not."""
        if self._given_out(secret)["password"] == old["password"]:
            self._rotate(secret)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in with the old password."""
        login = postgresql.place(self._session, secret)
        refusal = postgresql.denial(login, old)
        method = f"login as {old['username']} with the old password"
        return Proof(refusal is not None, method, refusal or "the login succeeded")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Have the engine rotate again when it has: the password that failed is gone then."""
        if self._is_rotated(secret, new):
            self._rotate(secret)

    def _given_out(self, secret: SecretRef) -> dict[str, str]:
        path = f"{_mount(secret)}/static-creds/{_role(secret)}"
        data = self._session.call("read the static role's login at", "GET", path)["data"]
        return {
            key: str(data[key] or "") for key in ("username", "password", "last_vault_rotation")
        }

    def _is_rotated(self, secret: SecretRef, new: Values) -> bool:
        return self._given_out(secret)["last_vault_rotation"] != new.get(ROTATED_AFTER)

    def _rotate(self, secret: SecretRef) -> None:
        path = f"{_mount(secret)}/rotate-role/{_role(secret)}"
        self._session.call("rotate the static role at", "POST", path)


def _seen(
    found: Sequence[tuple[str, datetime]], rotated_at: datetime | None, *, is_strict: bool
) -> list[Seen]:
    old = {name for name, start in found if rotated_at is None or start <= rotated_at}
    moved = {name for name, _ in found} - old
    seen = [Seen(name, True, "connected after the rotation") for name in sorted(moved)]
    if is_strict:
        seen += [Seen(name, False, "a session from before is open") for name in sorted(old)]
    return seen


def _mount(secret: SecretRef) -> str:
    return secret.parameters.get("mount", "database")


def _role(secret: SecretRef) -> str:
    return parameters(secret, "static_role")[0]


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: StaticRole(site.session),
    has_overlap=False,
    observed="pg_stat_activity: sessions that began after the rotation",
    proved_dead="login with the old password: password authentication failed",
    parameters=("static_role", "admin_path"),
    optional=("mount", "wait_for_reconnect"),
)
"""How the registry knows it."""
