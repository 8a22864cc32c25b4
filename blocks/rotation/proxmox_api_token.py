"""API tokens of Proxmox VE.

Why it exists: a token's secret is shown once and cannot be changed beside the old one, so two names
take turns. Promises that the new token has the same entries in the access control list before
anybody uses it, and that the old one is removed only by its full name. Refuses to touch the token
that asks. API: https://pve.proxmox.com/pve-docs/api-viewer/#/access/users/{userid}/token

Parameters: `urls` (with commas), `ca_file`, `admin_path`, where `token_id` and `token_secret` of
who may change tokens lie; `lifetime_days` (optional) lets each token expire by itself;
without a current value also `user` (as `infraflows@pve`) and `token` (the first part of the names),
and `acl` as `/path=Role,Role;/other=Role`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from blocks.proxmox_transport import ProxmoxTransport
from blocks.rotation.classes import RotationClass
from blocks.rotation.secret_parameters import parameters
from blocks.rotation.site import RotationSite
from domain.errors import Conflict, InvalidSpec, NotFound, PolicyViolation, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

TURNS = ("-a", "-b")
DAY_SECONDS = 86400
TIMEOUT_SECONDS = 20.0
Entries = frozenset[tuple[str, str]]
"""Paths and roles."""

Administrator = Callable[[SecretRef], Values]
Login = Callable[[SecretRef, Values], ProxmoxTransport]


class ProxmoxApiToken:
    """Tokens of one cluster."""

    kind = "proxmox-api-token"
    has_overlap = True

    def __init__(self, administrator: Administrator, login: Login) -> None:
        """Take who may change tokens, and how any holder reaches the API."""
        self._administrator = administrator
        self._login = login

    def _http(self, secret: SecretRef) -> ProxmoxTransport:
        return self._login(secret, self._administrator(secret))

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make the token whose turn it is; what a killed run left under that name goes first."""
        user, name = self._next(secret, current)
        identifier = f"{user}!{name}"
        if current is not None and current["token_id"] == identifier:
            raise Conflict(f"Unable to make the token {identifier}: it is the one that is in use.")
        self._remove(secret, identifier)
        details: dict[str, Any] = {"comment": f"infraflows, generation {generation}", "privsep": 1}
        if days := secret.parameters.get("lifetime_days"):
            details["expire"] = int(time.time()) + int(days) * DAY_SECONDS
        answer = self._http(secret).post(
            f"make the token {identifier}", f"access/users/{user}/token/{name}", **details
        )
        return {"token_id": identifier, "token_secret": str(answer["value"])}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Give the new token the entries of the current one, and no others."""
        wanted = self._wanted(secret, current)
        held = self._entries(secret, new["token_id"])
        self._change(secret, new["token_id"], wanted - held, is_removal=False)
        self._change(secret, new["token_id"], held - wanted, is_removal=True)
        if self._entries(secret, new["token_id"]) != wanted:
            raise Conflict(
                f"Unable to confirm the rights of {new['token_id']}: others are read back than "
                "were written. Look at the access control list, then run again."
            )

    def test(self, secret: SecretRef, new: Values) -> None:
        """Log in with the new token and see that it may do what its entries say."""
        http = self._login(secret, new)
        http.get("read the version of Proxmox VE", "version")
        held = http.get("read the token's privileges", "access/permissions")
        missing = {path for path, _role in self._entries(secret, new["token_id"])} - set(held)
        if missing:
            raise Unauthorized(
                f"Unable to use the new token {new['token_id']}: it has no rights on "
                f"{', '.join(sorted(missing))}. Look at the roles of its entries."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: who uses the API reads the token from OpenBao."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Return nothing: Proxmox VE does not tell when a token was used last."""
        return ()

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Remove the old token; its entries go with it."""
        self._remove(secret, old["token_id"])

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Log in with the old token and expect a refusal."""
        method = f"login as {old['token_id']}"
        try:
            self._login(secret, old).get("read the version of Proxmox VE", "version")
        except Unauthorized:
            return Proof(True, method, "HTTP 401")
        return Proof(False, method, "HTTP 200")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Remove the new token."""
        if current is None or new["token_id"] != current["token_id"]:
            self._remove(secret, new["token_id"])

    # --- parts -------------------------------------------------------------------------------

    @staticmethod
    def _next(secret: SecretRef, current: Values | None) -> tuple[str, str]:
        if current is None:
            user, base = parameters(secret, "user", "token")
            return user, base + TURNS[0]
        user, _, name = current["token_id"].partition("!")
        for this, other in (TURNS, TURNS[::-1]):
            if name.endswith(this):
                return user, name.removesuffix(this) + other
        return user, name + TURNS[0]

    def _remove(self, secret: SecretRef, identifier: str) -> None:
        if identifier == self._administrator(secret)["token_id"]:
            raise PolicyViolation(
                f"Unable to remove the token {identifier}: this run is logged in with it. Use "
                "another administrator's token."
            )
        user, _, name = identifier.partition("!")
        try:
            self._http(secret).delete(
                f"remove the token {identifier}", f"access/users/{user}/token/{name}"
            )
        except NotFound:
            return

    def _wanted(self, secret: SecretRef, current: Values | None) -> Entries:
        if current is not None:
            return self._entries(secret, current["token_id"])
        (text,) = parameters(secret, "acl")
        found = set()
        for part in text.split(";"):
            path, is_pair, roles = part.strip().partition("=")
            if not (is_pair and path.startswith("/") and roles):
                raise InvalidSpec(
                    f"the secret {secret.path}", [f"acl: {part!r} is not of the form /path=Role"]
                )
            found |= {(path, role.strip()) for role in roles.split(",")}
        return frozenset(found)

    def _entries(self, secret: SecretRef, identifier: str) -> Entries:
        answer = self._http(secret).get("read the access control list", "access/acl")
        return frozenset(
            (str(entry["path"]), str(entry["roleid"]))
            for entry in answer
            if entry.get("type") == "token" and entry.get("ugid") == identifier
        )

    def _change(
        self,
        secret: SecretRef,
        identifier: str,
        entries: Iterable[tuple[str, str]],
        *,
        is_removal: bool,
    ) -> None:
        for path, role in sorted(entries):
            options: dict[str, Any] = {"path": path, "roles": role, "tokens": identifier}
            if is_removal:
                options["delete"] = 1
            self._http(secret).put(f"change the rights of {identifier}", "access/acl", **options)


def _login(secret: SecretRef, values: Values) -> ProxmoxTransport:
    urls, ca_file = parameters(secret, "urls", "ca_file")
    addresses = [url.strip() for url in urls.split(",") if url.strip()]
    return ProxmoxTransport(addresses, ca_file, values, TIMEOUT_SECONDS)


def _administrators(site: RotationSite) -> Administrator:
    def read(secret: SecretRef) -> Values:
        (path,) = parameters(secret, "admin_path")
        return site.session.read(path)

    return read


CLASS = RotationClass(
    kind=ProxmoxApiToken.kind,
    make=lambda site: ProxmoxApiToken(_administrators(site), _login),
    has_overlap=True,
    observed="not told by Proxmox VE; by OpenBao's audit log",
    proved_dead="login with the old token: 401",
    parameters=("urls", "ca_file", "admin_path"),
    is_observed_by_reads=True,
    optional=("quiet_seconds", "lifetime_days", "user", "token", "acl"),
)
"""How the registry knows it."""
