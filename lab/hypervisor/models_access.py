"""API tokens, roles and access control lists.

Why: a product that was only ever run as root@pam fails at the first real site with 403; in the lab
each token holds exactly the privileges that it was given, on the paths that it was given.

Promises: token secrets are kept as SHA-256 digests only and shown once, to who made the token. A
machine in a pool inherits what the token may do on `/pool/<pool>`. A token that was removed stays
removed when the API starts again.
Refuses: tickets, groups, realms, and tokens that have all of their user's rights (see the README).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lab.hypervisor.exceptions import (
    ApiError,
    AuthenticationError,
    ParameterError,
    PermissionDenied,
)
from lab.hypervisor.store import Store


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_CONFIG = _words(
    "VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk VM.Config.HWType"
    " VM.Config.Memory VM.Config.Network VM.Config.Options"
)
_VM_ADMIN = _CONFIG + _words(
    "VM.Allocate VM.Audit VM.Backup VM.Clone VM.Console VM.Migrate VM.Monitor VM.PowerMgmt"
    " VM.Snapshot VM.Snapshot.Rollback"
)
_DATASTORE = _words(
    "Datastore.Allocate Datastore.AllocateSpace Datastore.AllocateTemplate Datastore.Audit"
)
_PVE_ADMIN = (
    _VM_ADMIN
    + _DATASTORE
    + _words(
        "Group.Allocate Mapping.Audit Mapping.Use Pool.Allocate Pool.Audit Realm.AllocateUser"
        " SDN.Allocate SDN.Audit SDN.Use Sys.Audit Sys.Console Sys.Syslog User.Modify"
    )
)
ROLES: dict[str, tuple[str, ...]] = {
    "NoAccess": (),
    "Administrator": _PVE_ADMIN
    + _words(
        "Mapping.Modify Permissions.Modify Realm.Allocate Sys.AccessNetwork Sys.Incoming"
        " Sys.Modify Sys.PowerMgmt"
    ),
    "PVEAdmin": _PVE_ADMIN,
    "PVEAuditor": _words("Datastore.Audit Mapping.Audit Pool.Audit SDN.Audit Sys.Audit VM.Audit"),
    "PVEDatastoreAdmin": _DATASTORE,
    "PVEDatastoreUser": ("Datastore.AllocateSpace", "Datastore.Audit"),
    "PVEPoolAdmin": ("Pool.Allocate", "Pool.Audit"),
    "PVEPoolUser": ("Pool.Audit",),
    "PVESDNUser": ("SDN.Audit", "SDN.Use"),
    "PVETemplateUser": ("VM.Audit", "VM.Clone"),
    "PVEVMAdmin": _VM_ADMIN,
    "PVEVMUser": _words(
        "VM.Audit VM.Backup VM.Config.CDROM VM.Config.Cloudinit VM.Console VM.PowerMgmt"
    ),
}
ALL_PRIVILEGES = frozenset(ROLES["Administrator"])
_HEADER = re.compile(r"PVEAPIToken[=\s]([^@\s!]+@[^!\s]+)!([^=:\s]+)[=:](\S+)")


@dataclass(frozen=True)
class Token:
    """Who asks. `acl` maps a path to the privileges given there (and below)."""

    user: str
    name: str
    acl: dict[str, frozenset[str]]

    @property
    def identifier(self) -> str:
        """`user@realm!name`, as task ids carry it."""
        return f"{self.user}!{self.name}"

    def privileges(self, path: str, pool: str | None = None) -> frozenset[str]:
        """What may be done on a path: the nearest entry upwards counts, and the pool's."""
        found: frozenset[str] = frozenset()
        current = path
        while True:
            if current in self.acl:
                found = self.acl[current]
                break
            if current in ("/", ""):
                break
            current = current.rsplit("/", 1)[0] or "/"
        if pool is not None:
            found |= self.privileges(f"/pool/{pool}")
        return found

    def permissions(self) -> dict[str, dict[str, int]]:
        """The body of GET /access/permissions."""
        return {
            path: dict.fromkeys(sorted(privileges), 1)
            for path, privileges in sorted(self.acl.items())
        }


def digest(secret: str) -> str:
    """How a token's secret is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Access:
    """The tokens that the cluster knows, and what each may do."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens: dict[str, dict[str, Any]] = store.load("token")
        self._seeds: dict[str, dict[str, Any]] = store.load("token_seed")
        self._roles: dict[str, dict[str, Any]] = store.load("role")

    def define(self, identifier: str, secret: str, acl: dict[str, list[str]]) -> None:
        """Create or change a token as the site was given it; once for one definition.

        `acl` maps paths to role names or single privileges. What the API changed later is kept.
        """
        user, separator, name = identifier.partition("!")
        if not (separator and name and "@" in user):
            raise ValueError(f"Token '{identifier}' is not of the form user@realm!name.")
        roles = {path: self._as_roles(entries) for path, entries in acl.items()}
        seed = digest(json.dumps([secret, acl], sort_keys=True))
        if self._seeds.get(identifier, {}).get("digest") == seed:
            return
        self._save(identifier, {"secret_digest": digest(secret), "roles": roles})
        self._seeds[identifier] = {"digest": seed}
        self._store.put("token_seed", identifier, self._seeds[identifier])

    def _as_roles(self, entries: list[str]) -> list[str]:
        """Role names; single privileges become one role of their own, as an administrator's."""
        single = sorted(entry for entry in entries if entry not in ROLES)
        unknown = [entry for entry in single if entry not in ALL_PRIVILEGES]
        if unknown:
            raise ValueError(f"'{unknown[0]}' is neither a role nor a privilege of Proxmox VE 8.")
        roles = [entry for entry in entries if entry in ROLES]
        if single:
            name = f"Lab-{digest(' '.join(single))[:8]}"
            self._roles[name] = {"privileges": single}
            self._store.put("role", name, self._roles[name])
            roles.append(name)
        return roles

    def _privileges(self, roles: Iterable[str]) -> frozenset[str]:
        found: set[str] = set()
        for role in roles:
            found.update(ROLES.get(role) or self._roles.get(role, {}).get("privileges", ()))
        return frozenset(found)

    def _save(self, identifier: str, token: dict[str, Any]) -> None:
        self._tokens[identifier] = token
        self._store.put("token", identifier, token)

    def authenticate(self, header: str | None) -> Token:
        """The token of an Authorization header, or 401 in Proxmox's words."""
        match = _HEADER.fullmatch(header or "")
        if match is None:
            raise AuthenticationError("No ticket")
        user, name, secret = match.groups()
        known = self._tokens.get(f"{user}!{name}")
        if known is None:
            raise AuthenticationError(f"no such token '{name}' for user '{user}'")
        if known.get("expire") and known["expire"] < time.time():
            raise AuthenticationError(f"token '{name}' access expired")
        if not hmac.compare_digest(known["secret_digest"], digest(secret)):
            raise AuthenticationError("invalid token value!")
        acl = {path: self._privileges(roles) for path, roles in known["roles"].items()}
        return Token(user, name, acl)

    # --- what the API's own routes do ----------------------------------------------------------

    def require_user(self, user: str) -> None:
        """Refuse a user that owns no token and never did; users cannot be made here."""
        if all(known.partition("!")[0] != user for known in (*self._tokens, *self._seeds)):
            raise ApiError(f"no such user ('{user}')")

    def tokens_of(self, user: str) -> list[dict[str, Any]]:
        """A user's tokens, as they are listed."""
        self.require_user(user)
        return [
            {"tokenid": name, **self.information(user, name)}
            for owner, _, name in (known.partition("!") for known in sorted(self._tokens))
            if owner == user
        ]

    def _token(self, user: str, name: str) -> dict[str, Any]:
        self.require_user(user)
        if f"{user}!{name}" not in self._tokens:
            raise ApiError(f"no such token '{name}' for user '{user}'")
        return self._tokens[f"{user}!{name}"]

    def information(self, user: str, name: str) -> dict[str, Any]:
        """What is shown of a token."""
        token = self._token(user, name)
        told: dict[str, Any] = {"expire": token.get("expire", 0), "privsep": 1}
        if token.get("comment"):
            told["comment"] = token["comment"]
        return told

    def create(self, user: str, name: str, details: dict[str, Any]) -> str:
        """Make a token without any right, and return its secret: the only time that it is told."""
        self.require_user(user)
        if f"{user}!{name}" in self._tokens:
            raise ParameterError({"tokenid": "Token already exists."})
        secret = str(uuid.uuid4())
        token = {"secret_digest": digest(secret), "roles": {}, **details}
        self._save(f"{user}!{name}", token)
        return secret

    def change(self, user: str, name: str, details: dict[str, Any]) -> None:
        """Change comment or expiry."""
        self._save(f"{user}!{name}", {**self._token(user, name), **details})

    def remove(self, user: str, name: str) -> None:
        """Remove a token and all that it might do."""
        self._token(user, name)
        del self._tokens[f"{user}!{name}"]
        self._store.delete("token", f"{user}!{name}")

    def entries(self) -> list[dict[str, Any]]:
        """The access control list: one entry for each token, path and role."""
        return [
            {"path": path, "propagate": 1, "roleid": role, "type": "token", "ugid": identifier}
            for identifier, token in sorted(self._tokens.items())
            for path, roles in sorted(token["roles"].items())
            for role in roles
        ]

    def grant(self, identifier: str, path: str, roles: list[str], *, is_removal: bool) -> None:
        """Add roles to a token on a path, or take them away."""
        user, _, name = identifier.partition("!")
        unknown = [role for role in roles if role not in ROLES and role not in self._roles]
        if unknown:
            raise ApiError(f"role '{unknown[0]}' does not exist")
        token = self._token(user, name)
        held = [role for role in token["roles"].get(path, []) if role not in roles]
        changed = {**token["roles"], path: held if is_removal else [*held, *roles]}
        kept = {path: entries for path, entries in changed.items() if entries}
        self._save(identifier, {**token, "roles": kept})


def require(token: Token, path: str, wanted: str, pool: str | None = None) -> None:
    """Refuse with 403 unless the token has all privileges (`a,b`) or any of them (`a|b`)."""
    held = token.privileges(path, pool)
    if "|" in wanted:
        if not held & set(wanted.split("|")):
            raise PermissionDenied(path, wanted)
        return
    missing = [privilege for privilege in wanted.split(",") if privilege not in held]
    if missing:
        raise PermissionDenied(path, ", ".join(missing))
