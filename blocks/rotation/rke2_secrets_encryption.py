"""The key with which an RKE2 cluster encrypts its Secrets at rest.

Why it exists: the key never leaves the servers, so its name stands for it here. Promises that every
Secret is written anew with the new key and that every server holds it, as RKE2 itself tells.
Refuses to begin while the servers do not hold the same keys.
API: https://docs.rke2.io/security/secrets_encryption

Parameters: `hosts`, the servers with commas, and how to reach them (see `hosts`); `restart`, a
command for servers that do not take the new key by themselves (optional).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from blocks.rotation.classes import RotationClass
from blocks.rotation.hosts import Host, Hosts, HostsOf, command_of
from domain.errors import Conflict, LifecycleError, PermanentError
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "rke2-secrets-encryption"
FINISHED = "reencrypt_finished"
STAGES = ("start", FINISHED)
_FIELD = re.compile(r"^([A-Z][\w ]+): (.*)$")
_KEY = re.compile(r"^\s*(\*?)\s+(\S+)\s+(\S+)\s*$")


@dataclass(frozen=True)
class Status:
    """What `rke2 secrets-encrypt status` tells."""

    is_enabled: bool
    stage: str
    do_hashes_match: bool
    active: str
    names: tuple[str, ...]


def read_status(text: str) -> Status:
    """Read RKE2's own table."""
    fields: dict[str, str] = {}
    active, names = "", []
    for line in text.splitlines():
        if match := _FIELD.match(line):
            fields[match[1]] = match[2].strip()
        elif (match := _KEY.match(line)) and match[3] not in ("Name", "----"):
            names.append(match[3])
            if match[1]:
                active = match[3]
    return Status(
        is_enabled=fields.get("Encryption Status") == "Enabled",
        stage=fields.get("Current Rotation Stage", ""),
        do_hashes_match="match" in fields.get("Server Encryption Hashes", "")
        and "not" not in fields.get("Server Encryption Hashes", ""),
        active=active,
        names=tuple(names),
    )


class Rke2SecretsEncryption:
    """Encryption keys of RKE2 clusters, by name."""

    kind = KIND
    has_overlap = True

    def __init__(self, hosts: HostsOf) -> None:
        """Take the way to a cluster's servers."""
        self._hosts = hosts

    def current(self, secret: SecretRef) -> Values | None:
        """Return the name of the key in use: consumers are the servers themselves."""
        return {"active": self._status(self._hosts(secret)[0]).active}

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Return which key is to be replaced; the new one is made and named by RKE2."""
        status = self._status(self._hosts(secret)[0])
        if status.stage not in STAGES or not status.do_hashes_match:
            raise Conflict(
                f"Unable to rotate the keys of {secret.path}: its stage is {status.stage!r} or "
                "the servers hold different keys. Finish it by hand: rke2 secrets-encrypt status."
            )
        return {"replaces": (current or {}).get("active") or status.active}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Have RKE2 make a key and write every Secret anew, unless a killed run has had it."""
        first = self._hosts(secret)[0]
        if self._status(first).active == new["replaces"]:
            first.run(["rke2", "secrets-encrypt", "rotate-keys"])

    def test(self, secret: SecretRef, new: Values) -> None:
        """See that another key is in use."""
        status = self._status(self._hosts(secret)[0])
        if status.active == new["replaces"]:
            raise PermanentError(
                f"Unable to see a new key of {secret.path}: {status.active} is still in use, the "
                f"stage is {status.stage!r}. Look at rke2-server's journal."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Restart, where the policy says how, the servers that have not taken the new key."""
        if not secret.parameters.get("restart"):
            return
        for host in self._hosts(secret)[1:]:
            if self._status(host).active == new["replaces"]:
                host.run(command_of(secret, "restart", ""))

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Ask every server."""
        replaced = new.get("replaces")
        seen = []
        for host in self._hosts(secret):
            try:
                status = self._status(host)
            except LifecycleError as error:
                seen.append(Seen(f"server {host.name}", None, str(error)))
                continue
            is_wanted = status.active != replaced
            is_done = status.stage in STAGES and status.do_hashes_match
            detail = f"{status.active}, {status.stage}"
            seen.append(Seen(f"server {host.name}", is_wanted and is_done, detail))
        return seen

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Nothing to do: RKE2 drops the old key when every Secret is written anew."""

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """See that no server holds a key of the old name."""
        hosts = self._hosts(secret)
        holding = [host.name for host in hosts if old["active"] in self._status(host).names]
        method = "rke2 secrets-encrypt status on every server"
        if holding:
            return Proof(False, method, f"held by {', '.join(holding)}")
        return Proof(True, method, "no server holds it")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Nothing to do: a key that was never made leaves nothing, one that was made stays."""

    @staticmethod
    def _status(host: Host) -> Status:
        status = read_status(host.run(["rke2", "secrets-encrypt", "status"]).decode())
        if not status.is_enabled:
            raise PermanentError(
                f"Unable to rotate encryption keys on {host.name}: encryption is off. Switch it "
                "on: secrets-encryption: true."
            )
        return status


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: Rke2SecretsEncryption(Hosts(site.session)),
    has_overlap=True,
    observed="rke2 secrets-encrypt status on every server",
    proved_dead="no server holds a key of the old name",
    parameters=("hosts",),
    optional=("host_keys_path", "ssh_user", "restart"),
)
"""How the registry knows it."""
