"""The page of the gateway's benchmark tells its figures; the rest of the page is not touched."""

from __future__ import annotations

import pytest

from benchmarks.gateway_figures import (
    BEGIN,
    END,
    NOT_MEASURED,
    GatewayResults,
    LoadFigures,
    RoundFigures,
    gateway_section,
    with_gateway_section,
)
from benchmarks.gateway_load import quantile, requests
from benchmarks.results import Machine
from domain.webhooks.signatures import Proof, encoded_key, verify, webhook_secrets

MACHINE = Machine(
    cores=2,
    memory_gib=8.0,
    kernel="6.1",
    architecture="x86_64",
    measured_on="2026-11-27",
    versions={"Python": "3.11"},
)


def load(per_second: float, p99: float) -> LoadFigures:
    return LoadFigures(
        per_second=per_second, p50_milliseconds=1, p99_milliseconds=p99, longest_milliseconds=99
    )


def results(*paced_p99: float) -> GatewayResults:
    rounds = [
        RoundFigures(
            load_average=0.5,
            bare_full=load(4000, 5),
            bare_paced=load(100, 2),
            gateway_full=load(1000, 9),
            gateway_paced=load(100, p99),
        )
        for p99 in paced_p99
    ]
    return GatewayResults(
        machine=MACHINE,
        deliveries=4000,
        connections=32,
        pace_per_second=100,
        fsync_milliseconds=2.0,
        rounds=rounds,
    )


def test_the_goal_is_judged_by_the_median_and_the_worst_is_told() -> None:
    text = gateway_section(results(10, 20, 90))
    assert "is met at 100 deliveries a second: 20.0 ms" in text
    assert "90.0 ms in the worst" in text
    assert "missed" in gateway_section(results(60, 70, 10))


def test_the_share_is_that_of_the_bare_application() -> None:
    assert "takes 25% of what" in gateway_section(results(10))


def test_only_what_is_between_the_marks_is_written() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    written = with_gateway_section(page, results(10))
    assert written.startswith(f"before\n{BEGIN}\n")
    assert written.endswith(f"\n{END}\nafter\n")
    assert "old" not in written
    assert NOT_MEASURED in with_gateway_section(page, None)
    with pytest.raises(ValueError, match="lacks"):
        with_gateway_section("no marks", None)


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100)]
    assert quantile(values, 0.5) == 50
    assert quantile(values, 0.99) == 99
    assert quantile([1.0], 0.99) == 1


def test_what_is_sent_is_a_delivery_that_the_gateway_believes() -> None:
    key = encoded_key(b"k" * 32)
    first, second = requests(key, 2, 8448)
    head, _, body = first.partition(b"\r\n\r\n")
    lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
    headers = [(name, value) for name, _, value in lines]
    now = float(dict(headers)["webhook-timestamp"])
    verdict = verify(headers, body, webhook_secrets({"signing_key": key}), now)
    assert verdict.proof is Proof.SIGNATURE
    assert dict(headers)["webhook-id"].encode() not in second
