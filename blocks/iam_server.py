"""Access keys of object stores, by the IAM and S3 API of AWS that Ceph and SeaweedFS speak, too.

Why it exists: an S3 key is made, listed and removed by one API and proved by another. Promises that
no request is sent twice by the library (a repeated CreateAccessKey is a second key), that nothing
of the worker's own AWS configuration is used, and that errors are told by their codes alone.
Refuses plain HTTP towards IAM: the answer to CreateAccessKey holds the secret.
API: https://docs.aws.amazon.com/IAM/latest/APIReference/ (CreateAccessKey and its neighbours)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from domain.errors import (
    InvalidSpec,
    NotFound,
    PermanentError,
    QuotaExceeded,
    Unauthorized,
    Unreachable,
)

KEY_ID = "access_key_id"
SECRET = "secret_access_key"  # noqa: S105 - the name of a field
DEFAULT_REGION = "us-east-1"
TIMEOUT_SECONDS = 15
ACTIVE = "Active"
INACTIVE = "Inactive"

ABSENT = ("NoSuchEntity", "NoSuchEntityException")
FULL = ("LimitExceeded", "LimitExceededException")
UNKNOWN_ACTION = ("InvalidAction", "NotImplemented", "MethodNotAllowed", "UnsupportedOperation")
BUSY = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "SlowDown")
UNKNOWN_KEY = ("InvalidAccessKeyId", "InvalidClientTokenId")
REFUSED = (*UNKNOWN_KEY, "AccessDenied")
SERVER_ERROR = 500

_SESSION_LOCK = Lock()
_SESSION = botocore.session.Session()
"""Holds the descriptions of the services, which are large, and no credential."""
for _name in ("config_file", "credentials_file"):
    _SESSION.set_config_variable(_name, "/dev/null")


@dataclass(frozen=True)
class AccessKey:
    """One key of a user, without its secret."""

    key_id: str
    is_active: bool


@dataclass(frozen=True)
class Answer:
    """What the object store answered to a signed request."""

    status: int
    code: str = ""

    @property
    def is_accepted(self) -> bool:
        """True when the key worked."""
        return not self.code

    @property
    def is_unknown_key(self) -> bool:
        """True when the server knows no such key, or no longer, or not yet."""
        return self.code in UNKNOWN_KEY

    @property
    def is_refusal(self) -> bool:
        """True when the server refused who asked, whatever was asked for."""
        return self.code in REFUSED

    def __str__(self) -> str:
        """Return it as a proof shows it."""
        return f"HTTP {self.status} {self.code}".strip()


class IamSession:
    """IAM of one server, spoken to by one administrator."""

    def __init__(self, client: Any, where: str) -> None:
        """Wrap botocore's client."""
        self._client = client
        self._where = where

    def keys(self, user: str) -> list[AccessKey]:
        """Return the keys of a user.

        Raises:
            NotFound: there is no such user.
        """
        with _explained(f"list the access keys of {user}", self._where):
            pages = self._client.get_paginator("list_access_keys").paginate(UserName=user)
            found = [entry for page in pages for entry in page["AccessKeyMetadata"]]
        return [AccessKey(each["AccessKeyId"], each.get("Status") == ACTIVE) for each in found]

    def create(self, user: str) -> tuple[str, str]:
        """Make a key; returns its id and its secret.

        Raises:
            QuotaExceeded: the user has as many as the server allows.
        """
        with _explained(f"make an access key of {user}", self._where):
            made = self._client.create_access_key(UserName=user)["AccessKey"]
        return str(made["AccessKeyId"]), str(made["SecretAccessKey"])

    def deactivate(self, user: str, key_id: str) -> None:
        """Have a key refused at once; a server that cannot, or has no such key, is passed over."""
        try:
            with _explained(f"deactivate an access key of {user}", self._where):
                self._client.update_access_key(UserName=user, AccessKeyId=key_id, Status=INACTIVE)
        except (NotFound, _UnknownActionError):
            return

    def delete(self, user: str, key_id: str) -> None:
        """Remove a key; one that is gone is a success."""
        try:
            with _explained(f"delete an access key of {user}", self._where):
                self._client.delete_access_key(UserName=user, AccessKeyId=key_id)
        except NotFound:
            return

    def last_used(self, key_id: str) -> datetime | None:
        """Return when a key was used last; None: never, or this server does not tell."""
        try:
            with _explained("ask for the last use of an access key", self._where):
                found = self._client.get_access_key_last_used(AccessKeyId=key_id)
        except (NotFound, Unauthorized, _UnknownActionError):
            # That the administrator may not ask is as good as a server that does not tell.
            return None
        at = found.get("AccessKeyLastUsed", {}).get("LastUsedDate")
        return at.astimezone(UTC) if isinstance(at, datetime) else None


@dataclass(frozen=True)
class IamServer:
    """Where an object store's two APIs answer."""

    iam_url: str
    s3_url: str
    region: str = DEFAULT_REGION
    ca_file: str = ""

    @contextmanager
    def session(self, values: Mapping[str, str]) -> Iterator[IamSession]:
        """Speak to IAM as who holds a key.

        Raises:
            InvalidSpec: the address is not https.
        """
        if not self.iam_url.startswith("https://"):
            raise InvalidSpec(
                f"the IAM server {self.iam_url}",
                ["iam_url: is not https, and the answer holds the new secret. Use https"],
            )
        client = self._client("iam", self.iam_url, values)
        try:
            yield IamSession(client, self.iam_url)
        finally:
            client.close()

    def answer(self, values: Mapping[str, str], bucket: str = "") -> Answer:
        """Send one signed request that changes nothing: list a bucket's first object, or buckets.

        Raises:
            Unreachable: there was no answer, or none about the key.
        """
        client = self._client("s3", self.s3_url, values)
        try:
            with _silence_explained("use an access key", self.s3_url):
                told = self._asked(client, bucket)
        except ClientError as error:
            answer = Answer(_status(error), _code(error))
            if answer.status >= SERVER_ERROR or answer.code in BUSY:
                raise Unreachable(
                    f"Unable to use an access key at {self.s3_url}: it answered {answer}. "
                    "Look at the object store."
                ) from None
            return answer
        finally:
            client.close()
        return Answer(int(told["ResponseMetadata"]["HTTPStatusCode"]))

    @staticmethod
    def _asked(client: Any, bucket: str) -> Any:
        if bucket:
            return client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        return client.list_buckets()

    def _client(self, service: str, url: str, values: Mapping[str, str]) -> Any:
        with _SESSION_LOCK:
            return self._made(service, url, values)

    def _made(self, service: str, url: str, values: Mapping[str, str]) -> Any:
        return _SESSION.create_client(
            service,
            region_name=self.region,
            endpoint_url=url,
            verify=self.ca_file or True,
            aws_access_key_id=values[KEY_ID],
            aws_secret_access_key=values[SECRET],
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 1},
                connect_timeout=TIMEOUT_SECONDS,
                read_timeout=TIMEOUT_SECONDS,
                # A store of one's own has seldom a DNS name for each bucket.
                s3={"addressing_style": "path"},
            ),
        )


class _UnknownActionError(PermanentError):
    """The server does not have this action."""


@contextmanager
def _explained(act: str, where: str) -> Iterator[None]:
    failed = f"Unable to {act} at {where}"
    try:
        with _silence_explained(act, where):
            yield
    except ClientError as error:
        # The message may repeat what was sent: the code says what there is to know.
        raise _translated(failed, _code(error), _status(error)) from None


@contextmanager
def _silence_explained(act: str, where: str) -> Iterator[None]:
    try:
        yield
    except BotoCoreError as error:
        raise Unreachable(
            f"Unable to {act} at {where}: no answer ({type(error).__name__}). "
            "Check the address, the CA file and the network."
        ) from None


def _translated(failed: str, code: str, status: int) -> Exception:
    if code in UNKNOWN_ACTION:
        return _UnknownActionError(f"{failed}: it does not have this action ({code}).")
    if code in ABSENT:
        return NotFound(f"{failed}: there is no such user or key. Check the user's name.")
    if code in FULL:
        return QuotaExceeded(
            f"{failed}: the user has as many keys as it may have. Remove one that nobody uses."
        )
    if status >= SERVER_ERROR or code in BUSY:
        return Unreachable(f"{failed}: it cannot serve now ({status} {code}). Look at it.")
    if status in (401, 403):
        return Unauthorized(
            f"{failed}: it refused the administrator ({code}). Check its key and its rights."
        )
    return PermanentError(f"{failed}: it refused this ({status} {code}). See its log.")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code") or "Unknown")


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
