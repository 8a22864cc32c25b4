"""Whether a delivery comes from whom it says, decided without I/O and with the clock given.

Exists because everything that the gateway does begins with this answer. Promises Standard Webhooks
as published (several signatures, a window of five minutes, comparison in constant time, the raw
bytes), and that a signature which is there must verify: there is no falling back to the older
token. Refuses what could be read in two ways: repeated headers, and an id with a full stop, which
is the separator of what is signed.
Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

TOLERANCE_SECONDS = 300
KEY_PREFIX = "whsec_"
KEY_BYTES_AT_LEAST = 24
KEY_BYTES_AT_MOST = 64
SIGNATURES_AT_MOST = 16
ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
TOKEN_HEADER = "x-gitlab-token"  # noqa: S105 - name of a header
IDEMPOTENCY_HEADER = "idempotency-key"

_ID = re.compile(r"[!-\-/-~]{1,200}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,200}")

Headers = Sequence[tuple[str, str]]
"""Names in lower case, in the order in which they came."""


class Proof(StrEnum):
    """How a delivery proved where it comes from."""

    SIGNATURE = "signature"
    TOKEN = "token"  # noqa: S105 - a word


class Refusal(StrEnum):
    """Why a delivery is not believed; for counting, never told to the sender in more detail."""

    NO_PROOF = "no_proof"
    REPEATED_HEADER = "repeated_header"
    BAD_ID = "bad_id"
    BAD_TIMESTAMP = "bad_timestamp"
    TOO_OLD = "too_old"
    TOO_NEW = "too_new"
    BAD_SIGNATURE = "bad_signature"
    BAD_TOKEN = "bad_token"  # noqa: S105 - a word


@dataclass(frozen=True)
class Verdict:
    """Either a proof and the delivery's key, or a refusal."""

    proof: Proof | None = None
    key: str = ""
    """Same for each attempt of one delivery."""
    refusal: Refusal | None = None


@dataclass(frozen=True)
class WebhookSecrets:
    """What one sender can prove itself with. Never printed."""

    keys: tuple[bytes, ...] = field(default=(), repr=False)
    """The signing key, and the previous one while it is replaced."""
    token: str = field(default="", repr=False)


def decoded_key(text: str) -> bytes:
    """Return a signing key's bytes.

    Raises:
        ValueError: it is no key. The text does not hold it.
    """
    encoded = text.removeprefix(KEY_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64 after whsec_") from None
    if not KEY_BYTES_AT_LEAST <= len(key) <= KEY_BYTES_AT_MOST:
        raise ValueError(
            f"has {len(key)} bytes; it must have {KEY_BYTES_AT_LEAST} to {KEY_BYTES_AT_MOST}"
        )
    return key


def encoded_key(key: bytes) -> str:
    """Return a key as it is shown to GitLab and kept in OpenBao."""
    return KEY_PREFIX + base64.b64encode(key).decode("ascii")


def webhook_secrets(values: Mapping[str, str]) -> WebhookSecrets:
    """Return the secrets of an OpenBao path: signing_key, previous, token.

    Raises:
        ValueError: a key is unusable, or there is nothing to prove anything with.
    """
    given = [values.get("signing_key") or "", values.get("previous") or ""]
    keys = tuple(decoded_key(text) for text in given if text)
    token = values.get("token") or ""
    if not keys and not token:
        raise ValueError("holds neither signing_key nor token")
    return WebhookSecrets(keys, token)


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature` for one key."""
    digest = _digest(key, f"{message_id}.{timestamp}.".encode() + body)
    return "v1," + base64.b64encode(digest).decode("ascii")


def _digest(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")


def _single(headers: Headers, name: str) -> str | None:
    found = [value for header, value in headers if header == name]
    if len(found) > 1:
        raise LookupError(name)
    return found[0] if found else None


def verify(headers: Headers, body: bytes, secrets: WebhookSecrets, now: float) -> Verdict:
    """Decide whether to believe a delivery."""
    try:
        signature = _single(headers, SIGNATURE_HEADER)
        if signature is not None:
            message_id = _single(headers, ID_HEADER)
            timestamp = _single(headers, TIMESTAMP_HEADER)
            return _by_signature(message_id, timestamp, signature, body, secrets, now)
        token = _single(headers, TOKEN_HEADER)
        idempotency_key = _single(headers, IDEMPOTENCY_HEADER)
    except LookupError:
        return Verdict(refusal=Refusal.REPEATED_HEADER)
    if token is None or not secrets.token:
        return Verdict(refusal=Refusal.NO_PROOF)
    if not hmac.compare_digest(token.encode(), secrets.token.encode()):
        return Verdict(refusal=Refusal.BAD_TOKEN)
    return Verdict(Proof.TOKEN, unsigned_key(idempotency_key, body))


def _by_signature(
    message_id: str | None,
    timestamp: str | None,
    signature: str,
    body: bytes,
    secrets: WebhookSecrets,
    now: float,
) -> Verdict:
    if message_id is None or not _ID.fullmatch(message_id):
        return Verdict(refusal=Refusal.BAD_ID)
    if timestamp is None or not _TIMESTAMP.fullmatch(timestamp):
        return Verdict(refusal=Refusal.BAD_TIMESTAMP)
    given = _signatures(signature)
    content = f"{message_id}.{timestamp}.".encode() + body
    is_right = False
    for key in secrets.keys:
        expected = _digest(key, content)
        for candidate in given:
            # Never cut short: the time taken tells nothing about which key or signature was right.
            is_right |= hmac.compare_digest(expected, candidate)
    if not is_right:
        return Verdict(refusal=Refusal.BAD_SIGNATURE)
    age = now - int(timestamp)
    if age > TOLERANCE_SECONDS:
        return Verdict(refusal=Refusal.TOO_OLD)
    if age < -TOLERANCE_SECONDS:
        return Verdict(refusal=Refusal.TOO_NEW)
    return Verdict(Proof.SIGNATURE, f"id:{message_id}")


def _signatures(header: str) -> list[bytes]:
    """Return the signatures of the version that we know; what is malformed is no signature."""
    found = []
    for part in header.split(" ")[:SIGNATURES_AT_MOST]:
        version, _, encoded = part.partition(",")
        if version != "v1":
            continue
        try:
            found.append(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            continue
    return found


def unsigned_key(idempotency_key: str | None, body: bytes) -> str:
    """Return the key of a delivery that carries no signed id: the sender's, or of its content."""
    if idempotency_key is not None and _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        return f"id:{idempotency_key}"
    return f"body:{hashlib.sha256(body).hexdigest()}"
