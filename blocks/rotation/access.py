"""Who can read what in OpenBao, as OpenBao itself tells: policies, living tokens, the audit log.

Exists because the question after a leak is what the leaked thing opens. Promises that what this
worker may not look at is named (`unknown`) instead of passed over: an answer with a hole in it says
so. Refuses to read values of secrets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from blocks.openbao import OpenBaoSession
from blocks.openbao_audit import AuditLog, written_at
from domain.errors import LifecycleError, NotFound, PermanentError, Unauthorized
from domain.rotation.access_policies import PathRule, parse_access_policy
from domain.rotation.blast_radius import Holder
from domain.rotation.consumers import AuditRead, audit_reads, written_last
from domain.rotation.contract import SecretRef

APPROLE, TOKEN = "openbao-approle-secret-id", "openbao-periodic-token"
DEVICES = "sys/audit"


@dataclass
class OpenBaoAccess:
    """One look at who can read what, by a logged-in session."""

    session: OpenBaoSession
    unknown: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""
    _device: str | None = None
    """Name of the audit device; empty when there is none to ask."""

    def policies(self) -> dict[str, tuple[PathRule, ...]]:
        """Return the rules of every policy; one that cannot be read is told in `unknown`."""
        try:
            listed = self.session.call("list the policies at", "LIST", "sys/policies/acl")
        except LifecycleError as error:
            self.unknown.append(str(error))
            return {}
        found: dict[str, tuple[PathRule, ...]] = {}
        for name in listed["data"]["keys"]:
            try:
                text = ""
                if name != "root":
                    path = f"sys/policies/acl/{name}"
                    answer = self.session.call("read the policy", "GET", path)
                    text = str(answer["data"]["policy"] or "")
                found[name] = parse_access_policy(name, text)
            except LifecycleError as error:
                self.unknown.append(str(error))
        return found

    def holders(self, reads: Iterable[AuditRead], hashed: dict[str, str]) -> list[Holder]:
        """Return the living tokens, with the hosts that the audit log saw them on.

        `hashed` is filled with the accessor as the audit log writes it -> the accessor.
        """
        try:
            listed = self.session.call("list the tokens at", "LIST", "auth/token/accessors")
        except LifecycleError as error:
            self.unknown.append(str(error))
            return []
        hosts: dict[str, set[str]] = {}
        for read in reads:
            hosts.setdefault(read.accessor, set()).add(read.host)
        own = self.session.own_accessors()
        found = []
        for accessor in (each for each in listed["data"]["keys"] if each not in own):
            # A token may end between the list and the look at it.
            with suppress(Unauthorized, NotFound, PermanentError):
                data = self._token(accessor)
                written = self.hashed(accessor) if hosts else ""
                hashed[written] = accessor
                seen = hosts.get(written, set()) | hosts.get(accessor, set())
                found.append(_holder(accessor, data, sorted(seen)))
        return found

    def _token(self, accessor: str) -> dict[str, Any]:
        path, body = "auth/token/lookup-accessor", {"accessor": accessor}
        return dict(self.session.call("look up a token at", "POST", path, body)["data"])

    def hashed(self, accessor: str) -> str:
        """Return an accessor as the audit log writes it; empty where that cannot be found out."""
        try:
            if self._device is None:
                self._device = self._found_device()
            if not self._device:
                return ""
            path, body = f"sys/audit-hash/{self._device}", {"input": accessor}
            answer = self.session.call("hash an accessor with", "POST", path, body)
        except LifecycleError as error:
            self._device = ""
            self.unknown.append(str(error))
            return ""
        return str((answer.get("data") or answer).get("hash") or "")

    def _found_device(self) -> str:
        """Return the audit device that writes the file which this worker reads."""
        devices = self.session.call("list the audit devices at", "GET", DEVICES)["data"]
        file = self.session.server.audit_file
        for name, device in devices.items():
            if (device.get("options") or {}).get("file_path") == file:
                return str(name).rstrip("/")
        self.unknown.append(f"Unable to find the audit device of {file}: none writes there.")
        return ""

    def opens(self, secrets: Iterable[SecretRef]) -> dict[str, tuple[str, ...]]:
        """Return for each secret that is a login to OpenBao the policies that it gives."""
        found = {}
        for secret in secrets:
            try:
                policies = self._given_by(secret)
            except LifecycleError as error:
                self.unknown.append(str(error))
                continue
            if policies:
                found[secret.path] = tuple(sorted(policies))
        return found

    def _given_by(self, secret: SecretRef) -> Collection[str]:
        if secret.kind == APPROLE:
            mount = secret.parameters.get("mount", "approle")
            path = f"auth/{mount}/role/{secret.parameters['role']}"
            data = self.session.call("read the role", "GET", path)["data"]
            return {str(name) for name in data.get("token_policies") or ()}
        if secret.kind == TOKEN:
            names = [each.strip() for each in secret.parameters["token_roles"].split(",")]
            path = f"auth/token/roles/{names[0]}"
            data = self.session.call("read the token role", "GET", path)["data"]
            return {str(name) for name in data.get("allowed_policies") or ()}
        return ()

    def reads(self, since: datetime) -> list[AuditRead]:
        """Return who read which secret, as far as the audit log can be read here.

        The rotating worker's own logins are left out: it reads what it rotates.
        """
        return self._reads(self._entries(since))

    def reads_of(self, path: str, since: datetime) -> tuple[list[AuditRead], datetime | None]:
        """Return who read one secret, and when a write of it was answered last, if the log says."""
        entries, mount = self._entries(since), self.session.server.kv_mount
        written = written_last(entries, path, mount=mount)
        reads = [read for read in self._reads(entries) if read.path == path]
        return reads, written_at({"time": written})

    def _entries(self, since: datetime) -> list[dict[str, Any]]:
        file = self.session.server.audit_file
        return AuditLog(Path(file)).since(since) if file else []

    def _reads(self, entries: list[dict[str, Any]]) -> list[AuditRead]:
        own = self._own_role() if entries else ""
        others = [_named(entry) for entry in entries if not own or _role(entry) != own]
        return audit_reads(others, mount=self.session.server.kv_mount)

    def _own_role(self) -> str:
        own = self.session.call("look up the own token at", "GET", "auth/token/lookup-self")
        return str((own["data"].get("meta") or {}).get("role_name") or "")

    def revoke(self, accessor: str) -> bool:
        """Revoke a token by its accessor; false when it was gone already.

        Raises:
            PermanentError: it is the run's own.
        """
        if accessor in self.session.own_accessors():
            raise PermanentError(
                "Unable to revoke the leaked token: this run is authenticated with it. "
                "Start the run from a worker that has a credential of its own."
            )
        try:
            self._token(accessor)
        except (NotFound, PermanentError):
            return False
        body = {"accessor": accessor}
        self.session.call("revoke a token at", "POST", "auth/token/revoke-accessor", body)
        return True


def _role(entry: dict[str, Any]) -> str:
    metadata = (entry.get("auth") or {}).get("metadata") or {}
    return str(metadata.get("role_name") or "")


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry whose display name tells AppRoles apart: OpenBao calls them all `approle`."""
    role = _role(entry)
    if not role:
        return entry
    auth = entry["auth"]
    return {**entry, "auth": {**auth, "display_name": f"{auth.get('display_name')} {role}"}}


def _holder(accessor: str, data: dict[str, Any], hosts: list[str]) -> Holder:
    role = str((data.get("meta") or {}).get("role_name") or "")
    name = str(data.get("display_name") or "token")
    policies = tuple(str(each) for each in data.get("policies") or ())
    return Holder(accessor, f"{name} {role}".strip(), policies, tuple(hosts))
