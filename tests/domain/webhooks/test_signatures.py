"""Signatures against an independent implementation, and what is refused."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from domain.webhooks.signatures import (
    Proof,
    Refusal,
    WebhookSecrets,
    decoded_key,
    encoded_key,
    sign,
    verify,
    webhook_secrets,
)

NOW = 1_800_000_000
BODY = b'{"object_kind":"push"}'
KEY = secrets.token_bytes(32)
OTHER = secrets.token_bytes(32)
IDS = st.text(st.sampled_from("abcXYZ019-_"), min_size=1, max_size=40)


def headers(
    signature: str, message_id: str = "m1", timestamp: str = str(NOW)
) -> list[tuple[str, str]]:
    return [
        ("webhook-id", message_id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", signature),
    ]


def refusal(given: list[tuple[str, str]], body: bytes = BODY, token: str = "") -> Refusal | None:
    return verify(given, body, WebhookSecrets((KEY,), token), NOW).refusal


@given(IDS, st.text(), st.integers(-300, 300), st.binary(min_size=24, max_size=64))
def test_what_an_independent_signer_signs_is_believed(
    message_id: str, body: str, skew: int, key: bytes
) -> None:
    at = datetime.fromtimestamp(NOW + skew, UTC)
    raw = (
        body.encode("utf-8", "surrogatepass") if body.isascii() else body.encode("utf-8", "ignore")
    )
    signer = standardwebhooks.Webhook(encoded_key(key))
    given_headers = headers(signer.sign(message_id, at, raw.decode()), message_id, str(NOW + skew))
    verdict = verify(given_headers, raw, WebhookSecrets((key,)), NOW)
    assert verdict.proof is Proof.SIGNATURE
    assert verdict.key == f"id:{message_id}"


@given(IDS, st.text(), st.binary(min_size=24, max_size=64))
def test_what_we_sign_an_independent_verifier_believes(
    message_id: str, body: str, key: bytes
) -> None:
    now = int(datetime.now(UTC).timestamp())
    raw = body.encode("utf-8", "ignore")
    given_headers = dict(headers(sign(key, message_id, now, raw), message_id, str(now)))
    standardwebhooks.Webhook(encoded_key(key)).verify(raw, given_headers, json_parse=False)


@given(st.binary(max_size=200), st.integers(0, 199), st.integers(1, 255))
def test_a_changed_byte_is_not_believed(body: bytes, place: int, change: int) -> None:
    body = body or b"x"
    place %= len(body)
    changed = body[:place] + bytes([body[place] ^ change]) + body[place + 1 :]
    good = headers(sign(KEY, "m1", NOW, body))
    assert refusal(good, body) is None
    assert refusal(good, changed) is Refusal.BAD_SIGNATURE


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["webhook-id", "webhook-timestamp", "webhook-signature", "x-gitlab-token", "other"]
            ),
            st.text(max_size=60),
        ),
        max_size=8,
    ),
    st.binary(max_size=60),
)
def test_no_header_makes_it_stumble_or_believe(
    given_headers: list[tuple[str, str]], body: bytes
) -> None:
    assert verify(given_headers, body, WebhookSecrets((KEY,), "secret-token"), NOW).proof is None


def test_one_right_signature_among_several_is_enough() -> None:
    several = f"v1a,abc v1,AAAA {sign(OTHER, 'm1', NOW, BODY)} {sign(KEY, 'm1', NOW, BODY)}"
    assert refusal(headers(several)) is None


def test_of_more_signatures_than_anybody_needs_the_rest_is_not_looked_at() -> None:
    many = " ".join(["v1,AAAA"] * 16 + [sign(KEY, "m1", NOW, BODY)])
    assert refusal(headers(many)) is Refusal.BAD_SIGNATURE


def test_the_previous_key_is_believed_while_it_is_there() -> None:
    values = {"signing_key": encoded_key(KEY), "previous": encoded_key(OTHER)}
    both = webhook_secrets(values)
    assert verify(headers(sign(OTHER, "m1", NOW, BODY)), BODY, both, NOW).proof is Proof.SIGNATURE
    only = webhook_secrets({"signing_key": encoded_key(KEY)})
    assert verify(headers(sign(OTHER, "m1", NOW, BODY)), BODY, only, NOW).proof is None


@pytest.mark.parametrize(
    ("skew", "expected"),
    [
        (0, None),
        (-300, None),
        (300, None),
        (-301, Refusal.TOO_OLD),
        (301, Refusal.TOO_NEW),
        (-(10**9), Refusal.TOO_OLD),
    ],
)
def test_the_window_is_five_minutes_both_ways(skew: int, expected: Refusal | None) -> None:
    at = NOW + skew
    assert refusal(headers(sign(KEY, "m1", at, BODY), timestamp=str(at))) is expected


@pytest.mark.parametrize(
    ("timestamp", "message_id", "expected"),
    [
        ("", "m1", Refusal.BAD_TIMESTAMP),
        ("1e9", "m1", Refusal.BAD_TIMESTAMP),
        (f" {NOW}", "m1", Refusal.BAD_TIMESTAMP),
        (f"{NOW}.0", "m1", Refusal.BAD_TIMESTAMP),
        ("9" * 13, "m1", Refusal.BAD_TIMESTAMP),
        ("١٨٠٠٠٠٠٠٠٠", "m1", Refusal.BAD_TIMESTAMP),
        (str(NOW), "", Refusal.BAD_ID),
        (str(NOW), "m.1", Refusal.BAD_ID),
        (str(NOW), "m 1", Refusal.BAD_ID),
        (str(NOW), "m" * 201, Refusal.BAD_ID),
    ],
)
def test_an_id_or_a_time_of_another_form_is_refused(
    timestamp: str, message_id: str, expected: Refusal
) -> None:
    assert refusal(headers("v1,AAAA", message_id, timestamp)) is expected


def test_what_is_signed_cannot_be_cut_at_another_place() -> None:
    signature = sign(KEY, "m1", NOW, b"5.rest")
    assert refusal(headers(signature, f"m1.{NOW}", "5"), b"rest") is Refusal.BAD_ID


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_repeated_header_is_refused(name: str) -> None:
    good = headers(sign(KEY, "m1", NOW, BODY))
    again = [pair for pair in good if pair[0] == name]
    assert refusal(good + again) is Refusal.REPEATED_HEADER


def test_the_token_counts_where_there_is_no_signature_only() -> None:
    token = [("x-gitlab-token", "secret-token")]
    believed = verify(token, BODY, WebhookSecrets((KEY,), "secret-token"), NOW)
    assert believed.proof is Proof.TOKEN
    assert refusal([*token, *headers("v1,AAAA")], token="secret-token") is Refusal.BAD_SIGNATURE
    assert refusal([*token, ("webhook-signature", "")], token="secret-token") is Refusal.BAD_ID
    assert refusal(token) is Refusal.NO_PROOF
    assert refusal([("x-gitlab-token", "other")], token="secret-token") is Refusal.BAD_TOKEN
    assert refusal([], token="secret-token") is Refusal.NO_PROOF


def test_an_empty_token_is_never_right() -> None:
    assert verify([("x-gitlab-token", "")], BODY, WebhookSecrets((KEY,), ""), NOW).proof is None


def test_a_delivery_by_token_is_known_by_its_idempotency_key_or_its_content() -> None:
    held = WebhookSecrets((), "secret-token")
    token = ("x-gitlab-token", "secret-token")
    assert verify([token, ("idempotency-key", "k1")], BODY, held, NOW).key == "id:k1"
    first, second = (verify([token], body, held, NOW).key for body in (BODY, BODY + b" "))
    assert first.startswith("body:")
    assert first != second


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"signing_key": ""},
        {"signing_key": "whsec_"},
        {"signing_key": "whsec_!!!"},
        {"signing_key": "whsec_" + base64.b64encode(b"short").decode()},
        {"signing_key": "whsec_" + base64.b64encode(b"x" * 65).decode()},
    ],
)
def test_secrets_that_prove_nothing_are_refused_without_being_shown(values: dict[str, str]) -> None:
    shown = values.get("signing_key", "").removeprefix("whsec_")
    with pytest.raises(ValueError, match=r"has|holds|is not") as caught:
        webhook_secrets(values)
    assert not shown or shown not in str(caught.value)


def test_a_key_without_padding_or_prefix_is_the_same_key() -> None:
    text = encoded_key(KEY)
    assert decoded_key(text) == decoded_key(text.rstrip("=")) == KEY
    assert decoded_key(text.removeprefix("whsec_")) == KEY


def test_secrets_are_not_in_their_own_text() -> None:
    assert "secret-token" not in repr(WebhookSecrets((KEY,), "secret-token"))
