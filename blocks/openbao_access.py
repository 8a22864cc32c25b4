"""OpenBao's policies and logins of applications, and whose a secret path is.

Exists so that steps of onboarding speak of policies and roles and not of HTTP. Promises that
absence is None, that deleting what is absent succeeds, and that a secret's versions are never
touched by describing its path. Refuses to answer with values.
API: https://openbao.org/api-docs/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from domain.errors import NotFound, PermanentError


class ApplicationAccess:
    """What applications may do, seen and changed by one session."""

    def __init__(self, session: OpenBaoSession) -> None:
        """Speak by `session`."""
        self._session = session
        self._versions = VersionedSecrets(session)

    @property
    def kv_mount(self) -> str:
        """Mount of the engine in which secrets lie."""
        return self._session.server.kv_mount

    def _read(self, what: str, path: str) -> dict[str, Any] | None:
        try:
            return dict(self._session.call(f"read the {what}", "GET", path).get("data") or {})
        except NotFound:
            return None

    def _delete(self, what: str, path: str) -> None:
        try:
            self._session.call(f"delete the {what}", "DELETE", path)
        except NotFound:
            return

    # --- policies ----------------------------------------------------------------------------

    def policy(self, name: str) -> str | None:
        """Return a policy's text."""
        found = self._read("policy", f"sys/policies/acl/{name}")
        return None if found is None else str(found.get("policy") or "")

    def set_policy(self, name: str, text: str) -> None:
        """Make a policy's text exactly this."""
        self._session.call("write the policy", "PUT", f"sys/policies/acl/{name}", {"policy": text})

    def delete_policy(self, name: str) -> None:
        """Remove a policy."""
        self._delete("policy", f"sys/policies/acl/{name}")

    # --- login methods and their roles -------------------------------------------------------

    def methods(self) -> dict[str, dict[str, Any]]:
        """Return the login methods by mount: `type` and `description` among other things."""
        found = self._session.call("list the login methods at", "GET", "sys/auth")["data"]
        return {str(mount).rstrip("/"): dict(entry) for mount, entry in found.items()}

    def enable(self, mount: str, kind: str, description: str) -> None:
        """Enable a login method; another run that was first is as good."""
        body = {"type": kind, "description": description}
        try:
            self._session.call("enable the login method", "POST", f"sys/auth/{mount}", body)
        except PermanentError:
            if self.methods().get(mount, {}).get("type") != kind:
                raise

    def describe(self, mount: str, description: str) -> None:
        """Change what is told of a login method."""
        path = f"sys/auth/{mount}/tune"
        self._session.call("describe the login method", "POST", path, {"description": description})

    def method_settings(self, mount: str) -> dict[str, Any] | None:
        """Return the settings of a login method; None before they are written."""
        return self._read("settings of the login method", f"auth/{mount}/config")

    def set_method_settings(self, mount: str, settings: Mapping[str, Any]) -> None:
        """Write the settings of a login method."""
        self._session.call("set up the login method", "POST", f"auth/{mount}/config", settings)

    def role(self, mount: str, name: str) -> dict[str, Any] | None:
        """Return a role of a login method."""
        return self._read("login role", f"auth/{mount}/role/{name}")

    def set_role(self, mount: str, name: str, fields: Mapping[str, Any]) -> None:
        """Write a role of a login method."""
        self._session.call("write the login role", "POST", f"auth/{mount}/role/{name}", fields)

    def delete_role(self, mount: str, name: str) -> None:
        """Remove a role of a login method."""
        self._delete("login role", f"auth/{mount}/role/{name}")

    # --- secret paths ------------------------------------------------------------------------

    def paths_under(self, prefix: str) -> list[str]:
        """Return the secret paths under a prefix, also those without a value."""
        return self._session.names_under(prefix)

    def described(self, path: str) -> dict[str, str] | None:
        """Return the custom metadata of a secret path; None when nothing is there."""
        found = self._versions.metadata(path)
        return dict(found.get("custom_metadata") or {}) if found else None

    def describe_path(self, path: str, custom: Mapping[str, str]) -> None:
        """Set the custom metadata of a path, which is made if absent. Values are not touched."""
        where = f"{self.kv_mount}/metadata/{path}"
        body = {"custom_metadata": dict(custom)}
        self._session.call("describe the secret", "POST", where, body)

    def destroy_path(self, path: str) -> None:
        """Remove a secret path with every version that it ever had."""
        self._session.delete(path)
