"""API tokens, roles and access control lists.

Why: a product that was only ever run as root@pam fails at the first real site with 403; in the lab
each token holds exactly the privileges that it was given, on the paths that it was given.

Promises: token secrets are kept as SHA-256 digests only. A machine in a pool inherits what the
token may do on `/pool/<pool>`.
Refuses: tickets, users of their own, groups and realms (see the README).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any

from lab.hypervisor.exceptions import AuthenticationError, PermissionDenied
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
    """The tokens that the cluster knows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens: dict[str, dict[str, Any]] = store.load("token")

    def define(self, identifier: str, secret: str, acl: dict[str, list[str]]) -> None:
        """Create or change a token; `acl` maps paths to role names or single privileges."""
        user, separator, name = identifier.partition("!")
        if not (separator and name and "@" in user):
            raise ValueError(f"Token '{identifier}' is not of the form user@realm!name.")
        privileges = {path: sorted(_expand(entries)) for path, entries in acl.items()}
        self._tokens[identifier] = {"secret_digest": digest(secret), "acl": privileges}
        self._store.put("token", identifier, self._tokens[identifier])

    def authenticate(self, header: str | None) -> Token:
        """The token of an Authorization header, or 401 in Proxmox's words."""
        match = _HEADER.fullmatch(header or "")
        if match is None:
            raise AuthenticationError("No ticket")
        user, name, secret = match.groups()
        known = self._tokens.get(f"{user}!{name}")
        if known is None:
            raise AuthenticationError(f"no such token '{name}' for user '{user}'")
        if not hmac.compare_digest(known["secret_digest"], digest(secret)):
            raise AuthenticationError("invalid token value!")
        acl = {path: frozenset(privileges) for path, privileges in known["acl"].items()}
        return Token(user, name, acl)


def _expand(entries: list[str]) -> set[str]:
    privileges: set[str] = set()
    for entry in entries:
        if entry in ROLES:
            privileges.update(ROLES[entry])
        elif entry in ALL_PRIVILEGES:
            privileges.add(entry)
        else:
            raise ValueError(f"'{entry}' is neither a role nor a privilege of Proxmox VE 8.")
    return privileges


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
