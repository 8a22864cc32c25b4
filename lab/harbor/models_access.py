"""Who asks, and what they may do: the administrator, robots, and bearer tokens of the registry.

Why: the rights of robots are what keeps applications apart. Promises that secrets are kept as
salted hashes, that an expired, disabled or deleted robot is nobody, and that a bearer token holds
what its owner might do when it was issued, for half an hour, as Harbor's does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.harbor.exceptions import Unauthorized
from lab.hypervisor.store import Store

TOKEN_SECONDS = 1800
SERVICE = "harbor-registry"
EVERY_PROJECT = "*"

Access = frozenset[tuple[str, str]]
"""Resources and actions, as ("repository", "push")."""


@dataclass(frozen=True)
class Caller:
    """Somebody who asks."""

    name: str = "anonymous"
    user_id: int = 0
    is_administrator: bool = False
    is_robot: bool = False
    rights: Mapping[str, Access] = field(default_factory=dict)
    """Of a robot: project name (or `*`, or `/` for the system) -> what it may do there."""
    scopes: Mapping[str, frozenset[str]] | None = None
    """Of a bearer token: repository -> actions; None for everybody else."""

    @property
    def is_authenticated(self) -> bool:
        """False for the anonymous; a bearer token was given to somebody."""
        return self.user_id != 0 or self.scopes is not None

    def may(self, project: str, resource: str, action: str) -> bool:
        """Whether the caller may do this to a project (`/` is the system)."""
        if self.is_administrator:
            return True
        wildcards = () if project == "/" else (EVERY_PROJECT,)
        return any((resource, action) in self.rights.get(n, ()) for n in (project, *wildcards))

    def may_in_registry(self, repository: str, action: str) -> bool:
        """Whether the caller may pull, push or delete in a repository."""
        if self.scopes is not None:
            return action in self.scopes.get(repository, ())
        resource = "artifact" if action == "delete" else "repository"
        return self.may(repository.partition("/")[0], resource, action)


ANONYMOUS = Caller()


def hashed(secret: str, salt: str) -> str:
    """What is kept of a secret: they are random and long, so one round is enough."""
    return hashlib.sha256(f"{salt}:{secret}".encode()).hexdigest()


def _encoded(document: Any) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Logins:
    """Logs callers in by what a request carries."""

    def __init__(self, store: Store, administrator: Mapping[str, str]) -> None:
        """Know the administrator; robots are looked up in the store's documents."""
        self._administrator = administrator
        held = store.load("key").get("token")
        if held is None:
            held = {"key": secrets.token_hex(32)}
            store.put("key", "token", held)
        self._key = bytes.fromhex(held["key"])

    @property
    def administrator_name(self) -> str:
        """The user who owns every project."""
        return self._administrator["username"]

    def login(self, header: str, robots: Iterable[dict[str, Any]]) -> Caller:
        """The caller of a request with this `Authorization` header; the anonymous without one.

        Raises:
            Unauthorized: it is wrong.
        """
        if not header:
            return ANONYMOUS
        scheme, _, value = header.partition(" ")
        if scheme.lower() == "bearer":
            return self._bearer(value.strip())
        if scheme.lower() != "basic":
            raise Unauthorized
        try:
            name, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Unauthorized from None
        if name == self._administrator["username"]:
            if hmac.compare_digest(secret.encode(), self._administrator["password"].encode()):
                return Caller(name, user_id=1, is_administrator=True)
            raise Unauthorized
        return self._robot(name, secret, robots)

    @staticmethod
    def _robot(name: str, secret: str, robots: Iterable[dict[str, Any]]) -> Caller:
        robot = next((each for each in robots if each["name"] == name), None)
        if robot is None:
            raise Unauthorized
        is_right = hmac.compare_digest(hashed(secret, robot["salt"]), robot["hash"])
        is_over = robot["expires_at"] != -1 and robot["expires_at"] <= time.time()
        if not is_right or is_over or robot["disable"]:
            raise Unauthorized
        rights: dict[str, set[tuple[str, str]]] = {}
        for permission in robot["permissions"]:
            place = "/" if permission["kind"] == "system" else permission["namespace"]
            for access in permission["access"]:
                rights.setdefault(place, set()).add((access["resource"], access["action"]))
        return Caller(
            name,
            user_id=-robot["id"],
            is_robot=True,
            rights={place: frozenset(held) for place, held in rights.items()},
        )

    # --- bearer tokens of the registry -------------------------------------------------------

    def issue(
        self, caller: Caller, scopes: Iterable[str], may: Callable[[Caller, str, str], bool]
    ) -> dict[str, Any]:
        """A token with as much of the scopes as the caller `may` do."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            repository, _, actions = rest.rpartition(":")
            if kind != "repository":
                continue
            wanted = {"pull", "push", "delete"} if actions == "*" else set(actions.split(","))
            held = sorted(each for each in wanted if may(caller, repository, each))
            access.append({"type": kind, "name": repository, "actions": held})
        now = int(time.time())
        claims = {
            "iss": "harbor-token-issuer",
            "sub": caller.name,
            "uid": caller.user_id,
            "aud": SERVICE,
            "iat": now,
            "exp": now + TOKEN_SECONDS,
            "access": access,
        }
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'HS256'})}.{_encoded(claims)}"
        token = f"{signed}.{_encoded(self._signature(signed))}"
        issued_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        return {"token": token, "expires_in": TOKEN_SECONDS, "issued_at": issued_at}

    def _signature(self, signed: str) -> bytes:
        return hmac.digest(self._key, signed.encode(), "sha256")

    def _bearer(self, token: str) -> Caller:
        signed, _, signature = token.rpartition(".")
        try:
            is_ours = hmac.compare_digest(self._signature(signed), _decoded(signature))
            claims = json.loads(_decoded(signed.partition(".")[2])) if is_ours else {}
        except (binascii.Error, ValueError):
            raise Unauthorized from None
        if claims.get("exp", 0) <= time.time():
            raise Unauthorized
        scopes = {each["name"]: frozenset(each["actions"]) for each in claims["access"]}
        return Caller(claims["sub"], user_id=claims["uid"], scopes=scopes)
