"""Where OpenTofu keeps a cluster's state: an HTTP backend with locks, or PostgreSQL.

Promises a backend file without secrets, with the credential handed over in the environment alone,
and one state for each environment and cluster. Refuses to run without a lock: two runs on one
state would each lose the other's machines.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx

from domain.errors import Conflict, PermanentError, Unauthorized, Unreachable

REQUEST_TIMEOUT_SECONDS = 15.0
Kind = Literal["http", "pg"]
Locking = Literal["webdav", "gitlab"]
"""How an HTTP backend locks: the methods LOCK and UNLOCK on the state's own address, or POST and
DELETE on its address with `/lock`, as GitLab does."""


@dataclass(frozen=True)
class StateBackend:
    """One site's place for states."""

    kind: Kind
    url: str
    locking: Locking
    ca_file: str

    def address(self, name: str) -> str:
        """Return the address of one state in an HTTP backend."""
        return f"{self.url.rstrip('/')}/{name}"

    def document(self, name: str) -> dict[str, Any]:
        """Return the backend's configuration, as a `*.tf.json` file holds it."""
        if self.kind == "pg":
            settings: dict[str, Any] = {"schema_name": "infraflows"}
        else:
            address = self.address(name)
            settings = {"address": address, "retry_max": 4, "retry_wait_max": 5}
            if self.locking == "gitlab":
                lock = f"{address}/lock"
                settings |= {"lock_address": lock, "lock_method": "POST"}
                settings |= {"unlock_address": lock, "unlock_method": "DELETE"}
            else:
                settings |= {"lock_address": address, "unlock_address": address}
        return {"terraform": {"backend": {self.kind: settings}}}

    def environment(self, credential: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that hand the credential to OpenTofu."""
        user, password = credential.get("username", ""), credential.get("password", "")
        if self.kind == "http":
            return {"TF_HTTP_USERNAME": user, "TF_HTTP_PASSWORD": password}
        parts = urlsplit(self.url)
        plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return {
            "PG_CONN_STR": plain,
            "PGUSER": user,
            "PGPASSWORD": password,
            "PGSSLROOTCERT": self.ca_file,
            "PGSSLMODE": "verify-full",
        }

    def remove(self, name: str, credential: Mapping[str, str]) -> bool:
        """Remove one state from an HTTP backend; return False when it was absent already.

        Raises:
            Conflict: a run holds its lock. Unauthorized, Unreachable.
        """
        failed = f"Unable to remove the state {name}"
        if self.kind != "http":
            raise PermanentError(f"{failed}: PostgreSQL keeps it as a workspace. Delete that.")
        try:
            with httpx.Client(
                verify=self._verification(),
                timeout=REQUEST_TIMEOUT_SECONDS,
                trust_env=False,
                auth=(credential.get("username", ""), credential.get("password", "")),
            ) as client:
                before = client.get(self.address(name)).status_code
                answer = client.delete(self.address(name))
                after = client.get(self.address(name)).status_code
        except httpx.HTTPError as error:
            kind = type(error).__name__
            raise Unreachable(f"{failed}: no answer ({kind}). Check the backend.") from None
        if answer.status_code in (401, 403):
            raise Unauthorized(f"{failed}: the credential was refused. Renew it in OpenBao.")
        if answer.status_code in (409, 423):
            raise Conflict(f"{failed}: a run holds its lock. Wait for that run.")
        if after not in (204, 404) and answer.status_code != 404:
            raise Unreachable(f"{failed}: it is still there ({after}). Try again.")
        return before == 200

    def _verification(self) -> ssl.SSLContext | bool:
        return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True
