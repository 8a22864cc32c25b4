"""Access keys of object stores (AWS, Ceph RGW, SeaweedFS), two of one user side by side.

Promises that a key which a killed run left is removed before another is made, and no key that was
there before: which keys there were is noted before the first request (`rotation/<environment>/
<id>-keys` in OpenBao; ids only, they are no secrets). What appears at the user while a rotation is
under way counts as its own. Refuses the user whose key the run itself asks with, and a user that
does not have the current key: the policy names the wrong one.
AWS makes a new key known everywhere within seconds, so the test of it waits that long.

Parameters: `iam_url` (https), `s3_url`, `user`; `admin_path`, where `access_key_id` and
`secret_access_key` of who may change the user's keys lie; `bucket`, which the key may list (else
the buckets are listed); `region`; `ca_file`; `quiet_seconds`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from blocks.iam_server import DEFAULT_REGION, KEY_ID, SECRET, AccessKey, IamServer
from blocks.openbao import OpenBaoSession
from blocks.openbao_versions import VersionedSecrets
from blocks.rotation.classes import RotationClass
from blocks.rotation.last_use import quiet_seconds
from blocks.rotation.readers import READ_EVERY_SECONDS
from blocks.rotation.secret_parameters import parameters
from domain.errors import Conflict, NotFound, PolicyViolation, Unauthorized
from domain.rotation.contract import Proof, SecretRef, Seen, Values

SETTLE_SECONDS = 30.0
POLL_SECONDS = 0.5
GENERATION = "generation"
KEYS = "keys"


class S3AccessKey:
    """Access keys of one object store's users."""

    kind = "s3-access-key"
    has_overlap = True

    def __init__(self, session: OpenBaoSession, environment: str) -> None:
        """Read administrators' keys and keep notes by `session`."""
        self._session = session
        self._versions = VersionedSecrets(session)
        self._environment = environment

    def create(self, secret: SecretRef, generation: int, current: Values | None) -> Values:
        """Make a key beside the current one; what a killed run left goes first."""
        (user,) = parameters(secret, "user")
        administrator = self._administrator(secret)
        with _server(secret).session(administrator) as iam:
            keys = iam.keys(user)
            _refuse(secret, user, keys, administrator, current)
            known = self._known_before(secret, generation, keys)
            for key in keys:
                if key.key_id not in known:
                    iam.delete(user, key.key_id)
            key_id, value = iam.create(user)
        return {**(current or {}), KEY_ID: key_id, SECRET: value}

    def set(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """See that the server has it: it was made with the user's rights."""
        (user,) = parameters(secret, "user")
        with _server(secret).session(self._administrator(secret)) as iam:
            if AccessKey(new[KEY_ID], is_active=True) not in iam.keys(user):
                raise Conflict(
                    f"Unable to use the new access key of {secret.path}: {user} does not have it, "
                    "or it is not active. Somebody changed it: run again."
                )

    def test(self, secret: SecretRef, new: Values) -> None:
        """Send a request that is signed with it, until every server knows it."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            answer = _server(secret).answer(new, _bucket(secret))
            if answer.is_accepted:
                return
            if not answer.is_unknown_key or time.monotonic() > deadline:
                raise Unauthorized(
                    f"Unable to use the new access key of {secret.path}: the object store answered "
                    f"{answer}. Look at the user's rights; name a bucket that it may list."
                )
            time.sleep(POLL_SECONDS)

    def distribute(self, secret: SecretRef, new: Values) -> None:
        """Nothing to do: consumers read the secret's path."""

    def observe(self, secret: SecretRef, new: Values, current: Values | None) -> Sequence[Seen]:
        """Return whether the old key is in use still, where the server tells; most do not."""
        handed_out_at = self._versions.written_at(secret.path)
        if current is None or handed_out_at is None:
            return ()
        with _server(secret).session(self._administrator(secret)) as iam:
            used_at = iam.last_used(current[KEY_ID])
        if used_at is None or used_at <= handed_out_at:
            return ()
        (user,) = parameters(secret, "user")
        pause = timedelta(seconds=quiet_seconds(secret, READ_EVERY_SECONDS))
        is_quiet = datetime.now(UTC) - used_at > pause
        detail = f"the old key was used at {used_at:%Y-%m-%d %H:%M:%S} UTC"
        return [Seen(f"users of {user}", is_quiet, detail)]

    def revoke(self, secret: SecretRef, old: Values) -> None:
        """Have the old key refused, then remove it."""
        self._remove(secret, old)

    def prove_dead(self, secret: SecretRef, old: Values) -> Proof:
        """Send a request that is signed with the old key and expect a refusal."""
        answer = _server(secret).answer(old, _bucket(secret))
        return Proof(answer.is_refusal, f"request signed with {old[KEY_ID]}", str(answer))

    def rollback(self, secret: SecretRef, new: Values, current: Values | None) -> None:
        """Remove the new key."""
        if current is None or new[KEY_ID] != current[KEY_ID]:
            self._remove(secret, new)

    # --- parts -------------------------------------------------------------------------------

    def _remove(self, secret: SecretRef, values: Values) -> None:
        (user,) = parameters(secret, "user")
        administrator = self._administrator(secret)
        if administrator[KEY_ID] == values[KEY_ID]:
            raise _own(secret, user)
        with _server(secret).session(administrator) as iam:
            iam.deactivate(user, values[KEY_ID])
            iam.delete(user, values[KEY_ID])
        self._forget_note(secret)

    def _forget_note(self, secret: SecretRef) -> None:
        """Empty the note: what somebody adds to the user from now on is theirs."""
        note = self._versions.read(self._note_path(secret))
        if note.values:
            self._versions.write(self._note_path(secret), {}, note.version)

    def _note_path(self, secret: SecretRef) -> str:
        return f"rotation/{self._environment}/{secret.secret_id}-keys"

    def _known_before(
        self, secret: SecretRef, generation: int, keys: Iterable[AccessKey]
    ) -> frozenset[str]:
        """Return the ids of the keys from before this rotation; noted the first time."""
        path = self._note_path(secret)
        note = self._versions.read(path)
        if note.values and note.values.get(GENERATION) == str(generation):
            return frozenset(note.values[KEYS].split())
        ids = sorted(key.key_id for key in keys)
        self._versions.write(path, {GENERATION: str(generation), KEYS: " ".join(ids)}, note.version)
        return frozenset(ids)

    def _administrator(self, secret: SecretRef) -> Values:
        (path,) = parameters(secret, "admin_path")
        if path == secret.path:
            raise _own(secret, secret.parameters.get("user", ""))
        values = self._session.read(path)
        missing = [name for name in (KEY_ID, SECRET) if not values.get(name)]
        if missing:
            raise Conflict(
                f"Unable to ask IAM for {secret.path}: {path} has no {', '.join(missing)}. "
                "Write the administrator's access key there."
            )
        return values


def _refuse(
    secret: SecretRef,
    user: str,
    keys: Sequence[AccessKey],
    administrator: Values,
    current: Values | None,
) -> None:
    ids = {key.key_id for key in keys}
    if administrator[KEY_ID] in ids:
        raise _own(secret, user)
    if current is not None and current.get(KEY_ID) not in ids:
        raise NotFound(
            f"Unable to rotate {secret.path}: its access key is none of {user}'s. Correct the user "
            "in the policy; if somebody removed the key, delete the value, too."
        )


def _own(secret: SecretRef, user: str) -> PolicyViolation:
    return PolicyViolation(
        f"Unable to rotate {secret.path}: this run asks IAM with a key of {user}. Name another "
        "administrator in admin_path."
    )


def _server(secret: SecretRef) -> IamServer:
    iam_url, s3_url = parameters(secret, "iam_url", "s3_url")
    return IamServer(
        iam_url,
        s3_url,
        secret.parameters.get("region") or DEFAULT_REGION,
        secret.parameters.get("ca_file", ""),
    )


def _bucket(secret: SecretRef) -> str:
    return secret.parameters.get("bucket", "")


CLASS = RotationClass(
    kind=S3AccessKey.kind,
    make=lambda site: S3AccessKey(site.session, site.environment),
    has_overlap=True,
    observed="by OpenBao's audit log; where the server tells it, the old key's last use, too",
    proved_dead="request signed with the old key: 403 InvalidAccessKeyId",
    parameters=("iam_url", "s3_url", "admin_path", "user"),
    is_observed_by_reads=True,
    optional=("quiet_seconds", "bucket", "region", "ca_file"),
)
"""How the registry knows it."""
