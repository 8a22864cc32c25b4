"""Unseal shares of OpenBao: rekeyed, with the switch from old to new in one instant.

There is no overlap: the moment at which the new shares come into force is the moment at which the
old ones die. So that instant is `revoke`. Before it OpenBao holds the new shares back until they
are verified (`require_verification`), everybody has both, and a roll-back only cancels.

Shares inside the OpenBao that they unseal are lost when it seals. Therefore they are written to a
directory of the worker before anything else, and rotation refuses to begin without one. Refuses,
too, to begin without a person's approval.
API: https://openbao.org/api-docs/system/rotate/

Parameters: `shares_directory`, absolute, on the worker, of mode 0700; `shares` and `threshold`
(default: as many as now).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks.openbao import OpenBaoSession
from blocks.rotation.classes import RotationClass
from blocks.rotation.secret_parameters import parameters
from domain.errors import Conflict, InvalidSpec, PermanentError, PolicyViolation
from domain.rotation.contract import Proof, SecretRef, Seen, Values

KIND = "openbao-unseal-keys"
_ROTATE = "sys/rotate/root"
_WRONG_SHARES = ("failed to read root key", "message authentication failed", "invalid key")
CURRENT, PENDING = "current", "pending"
REKEYING = "rekeying"
"""Name of the nonce by which OpenBao tells one rekeying from another."""


class UnsealKeys:
    """The shares of one OpenBao's root key."""

    kind = KIND
    has_overlap = False

    def __init__(self, session: OpenBaoSession, approvals: Mapping[str, str]) -> None:
        """Speak by `session`; `approvals` says by secret id who agreed."""
        self._session = session
        self._approvals = approvals

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Have new shares made, held back by OpenBao until they are verified."""
        self._check(secret)
        if not current:
            raise Conflict(
                f"Unable to rekey for {secret.path}: rekeying needs the present shares and the "
                'path holds none. Write them there as {"shares": "[...]", "threshold": "..."}.'
            )
        old = _shares(secret, current)
        self._cancel()
        threshold = int(secret.parameters.get("threshold") or current["threshold"])
        count = int(secret.parameters.get("shares") or len(old))
        nonce = self._begin(count, threshold)
        answer = self._submit(nonce, old)
        if not answer.get("complete"):
            raise Conflict(
                f"Unable to rekey for {secret.path}: {len(old)} shares are too few. "
                "Write enough of the present shares to the path."
            )
        shares = [str(share) for share in answer["keys_base64"]]
        fresh = {"shares": json.dumps(shares), "threshold": str(threshold), REKEYING: nonce}
        return {**current, **fresh}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Put both sets of shares outside of the OpenBao that they unseal."""
        self._keep(secret, {CURRENT: dict(current or {}), PENDING: dict(new)})

    def test(self, secret: SecretRef, new: Values) -> None:
        """Look whether OpenBao still waits for these shares and they can be read from the disk."""
        if self._kept(secret).get(PENDING) != dict(new) or not self._is_waiting_for(new):
            raise PermanentError(
                f"Unable to go on with the rekeying for {secret.path}: OpenBao does not wait for "
                "the new shares any more; it was restarted or sealed. Other shares are needed."
            )

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: holders find their shares at the path and in the directory."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Look whether the shares that are wanted lie where an unsealing would take them from."""
        has_them = dict(new) in self._kept(secret).values()
        return [Seen("holder of the shares' directory", has_them, "read back from the disk")]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Bring the new shares into force, which ends the old ones."""
        self._check(secret)
        new = self._kept(secret).get(PENDING)
        if new is None:
            return
        if self._is_waiting_for(new):
            self._verify(_shares(secret, new), int(new["threshold"]))
        if not self._are_in_force(_shares(secret, new)):
            raise PermanentError(
                f"Unable to bring the new shares of {secret.path} into force: OpenBao was "
                "restarted meanwhile and the old ones still unseal it. Write them back to the "
                "path, delete the rotation's record, and rotate again."
            )
        self._keep(secret, {CURRENT: new})

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Hand in the old shares as for a rekeying, and expect that they do not fit."""
        method = "the old shares, handed in for a rekeying that is cancelled"
        if self._are_in_force(_shares(secret, old)):
            return Proof(False, method, "they were accepted")
        return Proof(True, method, "they do not decrypt the root key")

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Cancel: OpenBao forgets the new shares."""
        self._cancel()
        if current:
            self._keep(secret, {CURRENT: dict(current)})

    def _check(self, secret: SecretRef) -> None:
        if not self._approvals.get(secret.secret_id):
            raise PolicyViolation(
                f"Unable to rekey for {secret.path}: nobody approved it. "
                "Start it by hand and approve it when the run asks."
            )
        self._directory(secret)

    def _begin(self, count: int, threshold: int) -> str:
        body = {"secret_shares": count, "secret_threshold": threshold, "require_verification": True}
        answer = self._session.call("begin a rekeying at", "POST", f"{_ROTATE}/init", body)
        return str(answer["data"]["nonce"])

    def _submit(self, nonce: str, shares: Sequence[str]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for share in shares:
            body = {"nonce": nonce, "key": share}
            path = f"{_ROTATE}/update"
            data = self._session.call("hand in a share at", "POST", path, body)["data"]
            if data.get("complete"):
                break
        return data

    def _status(self) -> dict[str, Any]:
        path = f"{_ROTATE}/init"
        return dict(self._session.call("look at the rekeying at", "GET", path)["data"])

    def _is_waiting_for(self, new: Values) -> bool:
        """True when the new shares are held back; a killed trial may have left another rekeying."""
        status = self._status()
        return bool(status.get("verification_nonce")) and status.get("nonce") == new[REKEYING]

    def _cancel(self) -> None:
        status = self._status()
        if status.get("started"):
            body = {"nonce": status["nonce"]}
            self._session.call("cancel the rekeying at", "DELETE", f"{_ROTATE}/init", body)

    def _verify(self, shares: Sequence[str], threshold: int) -> None:
        path = f"{_ROTATE}/verify"
        # A killed verification is begun anew, else the same share would be counted twice.
        self._session.call("restart the verification at", "DELETE", path)
        nonce = self._session.call("look at the verification at", "GET", path)["data"]["nonce"]
        for share in shares[:threshold]:
            body = {"nonce": nonce, "key": share}
            self._session.call("verify a share at", "POST", path, body)

    def _are_in_force(self, shares: Sequence[str]) -> bool:
        """Try the shares: begin a rekeying that needs verification, and cancel it."""
        self._cancel()
        required = int(self._status()["required"])
        nonce = self._begin(required, required)
        try:
            return bool(self._submit(nonce, shares).get("complete"))
        except PermanentError as error:
            if any(text in str(error.__context__) for text in _WRONG_SHARES):
                return False
            raise
        finally:
            self._cancel()

    def _directory(self, secret: SecretRef) -> Path:
        directory = Path(parameters(secret, "shares_directory")[0])
        if not directory.is_absolute() or not directory.is_dir():
            problem = "is not an absolute path of a directory on this worker"
        elif directory.stat().st_mode & 0o077:
            problem = "may be entered by others. Give it the mode 0700"
        else:
            return directory
        raise InvalidSpec(f"the secret {secret.path}", [f"shares_directory: {directory} {problem}"])

    def _file(self, secret: SecretRef) -> Path:
        return self._directory(secret) / f"{secret.secret_id}.json"

    def _kept(self, secret: SecretRef) -> dict[str, dict[str, str]]:
        try:
            return dict(json.loads(self._file(secret).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def _keep(self, secret: SecretRef, sets: Mapping[str, Mapping[str, str]]) -> None:
        file = self._file(secret)
        written = file.with_suffix(".new")
        written.unlink(missing_ok=True)
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as output:
            json.dump(sets, output)
            output.flush()
            os.fsync(output.fileno())
        written.replace(file)


def _shares(secret: SecretRef, values: Values) -> list[str]:
    try:
        found = json.loads(values["shares"])
        return [str(share) for share in found]
    except (KeyError, TypeError, ValueError):
        raise InvalidSpec(
            f"the secret {secret.path}",
            ["shares: it is not a JSON list of shares in base64. Write it as one"],
        ) from None


CLASS = RotationClass(
    kind=KIND,
    make=lambda site: UnsealKeys(site.session, site.approvals),
    has_overlap=False,
    observed="the shares are read back from outside of OpenBao",
    proved_dead="the old shares handed in for a rekeying: they do not decrypt the root key",
    parameters=("shares_directory",),
    optional=("shares", "threshold"),
    needs_approval=True,
)
"""How the registry knows it."""
