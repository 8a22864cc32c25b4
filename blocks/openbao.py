"""OpenBao (or Vault): where every secret of the product lives.

Exists so that flows pass paths and never values. Promises a session that ends with its token
revoked, writes that survive being cut short (check-and-set for what must be created once), and
errors that name the path and never a value. Refuses to speak without TLS verification.
API: https://openbao.org/api-docs/
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import hvac.exceptions
import requests
from prefect.blocks.core import Block
from pydantic import Field

from blocks.documents import document
from domain.errors import (
    Conflict,
    LifecycleError,
    NotFound,
    PermanentError,
    Unauthorized,
    Unreachable,
)

REQUEST_TIMEOUT_SECONDS = 15


@dataclass(frozen=True)
class OpenBaoHealth:
    """What `sys/health` tells without a login."""

    is_initialized: bool
    is_sealed: bool
    version: str


@contextmanager
def _explained(act: str, thing: str) -> Iterator[None]:
    """Turn hvac's errors into the product's, saying which act on which path failed."""
    failed = f"Unable to {act} {thing}"
    try:
        yield
    except hvac.exceptions.InvalidPath as error:
        raise NotFound(f"{failed}: it does not exist. Create it in OpenBao.") from error
    except hvac.exceptions.Forbidden as error:
        raise Unauthorized(
            f"{failed}: permission denied. Give the worker's policy the right on this path."
        ) from error
    except hvac.exceptions.VaultDown as error:
        raise Unreachable(
            f"{failed}: OpenBao is sealed or not initialised. Unseal it: bao operator unseal."
        ) from error
    except (hvac.exceptions.InternalServerError, hvac.exceptions.RateLimitExceeded) as error:
        raise Unreachable(f"{failed}: OpenBao answered that it cannot serve now.") from error
    except hvac.exceptions.VaultError as error:
        # The error's text may repeat what was sent: only its kind is told.
        kind = type(error).__name__
        if "check-and-set" in str(error):
            raise Conflict(f"{failed}: another writer was first. Read it again.") from None
        raise PermanentError(f"{failed}: OpenBao refused it ({kind}). See its audit log.") from None
    except requests.exceptions.RequestException as error:
        kind = type(error).__name__
        raise Unreachable(
            f"{failed}: no answer ({kind}). Check the address, the CA file and the network."
        ) from None


class OpenBaoSession:
    """A logged-in client; made by `OpenBaoServer.session` and dead when that block ends."""

    def __init__(self, server: OpenBaoServer, client: hvac.Client) -> None:
        """Wrap a client that holds a token of the worker's AppRole."""
        self._server = server
        self._client = client

    @property
    def token(self) -> str:
        """The session's token, for a child process that speaks to OpenBao itself. Never log it."""
        return str(self._client.token)

    @property
    def server(self) -> OpenBaoServer:
        """How the server is reached, for another login beside this one."""
        return self._server

    @property
    def address(self) -> str:
        """Base URL of the server."""
        return self._server.address

    @property
    def ca_file(self) -> str:
        """File of the CA that signed the server's certificate."""
        return self._server.ca_file

    def call(
        self, act: str, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Speak to any path of the API; an answer without a body is empty.

        Raises:
            NotFound, Unauthorized, Unreachable, Conflict, PermanentError: naming `act` and path.
        """
        with _explained(act, path):
            answer = self._client.adapter.request(method, f"/v1/{path}", json=body)
        return answer if isinstance(answer, dict) else {}

    def own_accessors(self) -> frozenset[str]:
        """Return the accessors of the session's token and of the secret id that it came from."""
        own = self.call("look up the own token at", "GET", "auth/token/lookup-self")["data"]
        found = {str(own.get("accessor") or "")}
        role = (own.get("meta") or {}).get("role_name")
        if role and str(own.get("path", "")).endswith("/login"):
            path = f"auth/{self._server.approle_mount}/role/{role}/secret-id/lookup"
            body = {"secret_id": self._server.own_secret_id()}
            # Without the right to look it up, the class compares the secret ids themselves.
            with suppress(Unauthorized):
                answer = self.call("look up the own secret id at", "POST", path, body)
                found.add(str((answer.get("data") or {}).get("secret_id_accessor") or ""))
        return frozenset(found - {""})

    def read(self, path: str) -> dict[str, str]:
        """Return the current values under a KV path.

        Raises:
            NotFound: there is no live version. Unauthorized, Unreachable as their names say.
        """
        with _explained("read the secret", path):
            answer = self._client.secrets.kv.v2.read_secret_version(
                path=path, mount_point=self._server.kv_mount, raise_on_deleted_version=True
            )
        values = answer["data"]["data"] or {}
        return {str(key): str(value) for key, value in values.items()}

    def exists(self, path: str) -> bool:
        """True when a live version is under the path."""
        try:
            self.read(path)
        except NotFound:
            return False
        return True

    def write(self, path: str, values: Mapping[str, str], *, only_if_absent: bool = False) -> None:
        """Write a new version and read it back.

        Raises:
            Conflict: `only_if_absent` and another writer was first.
        """
        with _explained("write the secret", path):
            self._client.secrets.kv.v2.create_or_update_secret(
                path=path,
                secret=dict(values),
                cas=0 if only_if_absent else None,
                mount_point=self._server.kv_mount,
            )
        if self.read(path) != dict(values):
            raise Conflict(
                f"Unable to confirm the secret {path}: another value was read back than was "
                "written. Find the other writer in the audit log, then run again."
            )

    def read_or_create(self, path: str, make: Callable[[], Mapping[str, str]]) -> dict[str, str]:
        """Return the values under a path, creating them once if there are none.

        Of two writers one wins, and both return the winner's values.
        """
        try:
            return self.read(path)
        except NotFound:
            pass
        # A deleted secret keeps its versions, and check-and-set 0 would fail for ever.
        self.delete(path)
        try:
            self.write(path, make(), only_if_absent=True)
        except Conflict:
            return self.read(path)
        return self.read(path)

    def delete(self, path: str) -> None:
        """Remove a path with all its versions; an absent path is a success."""
        with _explained("delete the secret", path):
            self._client.secrets.kv.v2.delete_metadata_and_all_versions(
                path=path, mount_point=self._server.kv_mount
            )

    def names_under(self, path: str) -> list[str]:
        """Return the full paths of the secrets under a prefix, depth first; empty if none."""
        try:
            with _explained("list the secrets under", path):
                answer = self._client.secrets.kv.v2.list_secrets(
                    path=path, mount_point=self._server.kv_mount
                )
        except NotFound:
            return []
        found: list[str] = []
        for key in answer["data"]["keys"]:
            full = f"{path.rstrip('/')}/{key}".lstrip("/")
            found += self.names_under(full.rstrip("/")) if key.endswith("/") else [full]
        return found

    def sign_ssh_key(
        self, role: str, public_key: str, principals: list[str], ttl_seconds: int
    ) -> str:
        """Return a user certificate for a public key, valid for `ttl_seconds`."""
        with _explained("sign an SSH key with the role", role):
            answer = self._client.write(
                f"{self._server.ssh_mount}/sign/{role}",
                public_key=public_key,
                valid_principals=",".join(principals),
                ttl=f"{ttl_seconds}s",
                cert_type="user",
            )
        return str(answer["data"]["signed_key"]).strip()

    def ssh_ca_public_key(self) -> str:
        """Return the public key of the SSH user CA."""
        thing = f"{self._server.ssh_mount}/config/ca"
        with _explained("read the SSH CA", thing):
            answer = self._client.read(thing)
        if not answer:
            raise NotFound(f"Unable to read the SSH CA {thing}: it has no key. Generate one.")
        return str(answer["data"]["public_key"]).strip()

    def sign(self, payload: bytes) -> str:
        """Sign with the ledger's Ed25519 key; returns `vault:v<version>:<base64>`."""
        key = self._server.ledger_key
        with _explained("sign with the transit key", key):
            answer = self._client.secrets.transit.sign_data(
                name=key,
                hash_input=base64.b64encode(payload).decode(),
                mount_point=self._server.transit_mount,
            )
        return str(answer["data"]["signature"])

    def ledger_public_keys(self) -> dict[int, str]:
        """Return the ledger key's public halves, base64 of 32 bytes, by version."""
        key = self._server.ledger_key
        with _explained("read the transit key", key):
            answer = self._client.secrets.transit.read_key(
                name=key, mount_point=self._server.transit_mount
            )
        versions: dict[str, Any] = answer["data"]["keys"]
        return {int(number): str(entry["public_key"]) for number, entry in versions.items()}

    def has_transit_key(self, name: str) -> bool:
        """True when the transit engine holds the key."""
        try:
            with _explained("read the transit key", name):
                self._client.secrets.transit.read_key(
                    name=name, mount_point=self._server.transit_mount
                )
        except NotFound:
            return False
        return True


class OpenBaoServer(Block):
    """How to reach OpenBao and log in to it as the worker."""

    _block_type_name = "OpenBao server"
    _block_type_slug = "infraflows-openbao"
    _description = (
        "OpenBao or Vault, reached with TLS and an AppRole whose files only the worker reads."
    )

    address: str = Field(description="Base URL, as https://openbao.example.org:8200.")
    ca_file: str = Field(description="File of the CA that signed the server's certificate.")
    role_id_file: str = Field(description="File with the AppRole's role id, on the worker.")
    secret_id_file: str = Field(description="File with the AppRole's secret id, on the worker.")
    approle_mount: str = Field(default="approle", description="Mount of the AppRole method.")
    kv_mount: str = Field(default="kv", description="Mount of the KV version 2 engine.")
    transit_mount: str = Field(default="transit", description="Mount of the transit engine.")
    ssh_mount: str = Field(default="ssh", description="Mount of the SSH engine.")
    ssh_role: str = Field(default="infraflows", description="Role that signs user keys.")
    ledger_key: str = Field(default="infraflows-ledger", description="Transit key of the ledger.")
    state_key: str = Field(default="infraflows-state", description="Transit key of the states.")
    audit_file: str = Field(
        default="", description="File of the audit device, if this worker can read it."
    )
    rotation_key: str = Field(
        default="infraflows-rotation", description="Transit key of the rotated secrets' HMACs."
    )

    def _client(self) -> hvac.Client:
        session = requests.Session()
        # REQUESTS_CA_BUNDLE would replace the CA file that the operator named.
        session.trust_env = False
        # hvac takes the CA of a given session and not the one it is given beside it.
        session.verify = self.ca_file
        return hvac.Client(
            url=self.address,
            timeout=REQUEST_TIMEOUT_SECONDS,
            session=session,
            strict_http=False,
        )

    def health(self) -> OpenBaoHealth:
        """Return whether the server is initialised and unsealed.

        Raises:
            Unreachable: it does not answer.
        """
        with _explained("read the health of", self.address):
            answer = self._client().sys.read_health_status(method="GET")
            body = answer if isinstance(answer, dict) else answer.json()
        return OpenBaoHealth(
            is_initialized=bool(body.get("initialized")),
            is_sealed=bool(body.get("sealed", True)),
            version=str(body.get("version", "unknown")),
        )

    @contextmanager
    def session(self) -> Iterator[OpenBaoSession]:
        """Log in by AppRole; the token is revoked when the block ends.

        Raises:
            Unauthorized: the AppRole was refused or its files cannot be read. Unreachable.
        """
        role_id, secret_id = (
            self._credential(path) for path in (self.role_id_file, self.secret_id_file)
        )
        client = self._client()
        with _explained("log in to", self.address):
            try:
                client.auth.approle.login(
                    role_id=role_id, secret_id=secret_id, mount_point=self.approle_mount
                )
            except hvac.exceptions.InvalidRequest:
                raise Unauthorized(
                    f"Unable to log in to {self.address}: the AppRole was refused. "
                    "Renew the worker's secret id."
                ) from None
        try:
            yield OpenBaoSession(self, client)
        finally:
            try:
                client.auth.token.revoke_self()
            except (hvac.exceptions.VaultError, requests.exceptions.RequestException):
                # The token dies by its own time to live; the work that was done stands.
                client.token = None

    def holder(self, token: str = "") -> OpenBaoSession:
        """Return a session of whoever holds `token`, or of nobody; it is not revoked in the end."""
        client = self._client()
        client.token = token or None
        return OpenBaoSession(self, client)

    def own_secret_id(self) -> str:
        """Return the secret id that this worker logs in with. Never log it."""
        return self._credential(self.secret_id_file)

    @staticmethod
    def _credential(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise Unauthorized(
                f"Unable to read the worker's credential {path}: {reason}. "
                "Put the AppRole's file there, readable by the worker alone."
            ) from error


def openbao(environment: str) -> OpenBaoServer:
    """Return the OpenBao server of an environment, by its block document.

    Raises:
        NotFound: `infraflows setup` has not been run for this environment.
    """
    return document(OpenBaoServer, environment)


__all__ = ["LifecycleError", "OpenBaoHealth", "OpenBaoServer", "OpenBaoSession", "openbao"]
