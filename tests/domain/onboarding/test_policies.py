"""Every rule by an application that breaks it, and none by an application that does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domain.findings import Level
from domain.onboarding.app_reading import parse_app
from domain.onboarding.app_spec import EXAMPLE_APP, ServiceLevel, Stage
from domain.onboarding.manifests.tenancy import tenancy_objects
from domain.onboarding.manifests.workload import rendered
from domain.onboarding.policies import evaluate, judge, rules_of
from domain.onboarding.quantities import quantity
from domain.onboarding.tenant import Platform, Tenant

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[2] / "cases" / "policy_violations.yaml").read_text(encoding="utf-8")
)
PLATFORM = Platform(
    environment="lab",
    clusters=dict.fromkeys(Stage, "demo"),
    domain="apps.example.org",
    ingress_address="10.0.0.5",
    outside_address="",
    registry="harbor.example.org:8443",
    gitops_url="https://git.example.org/gitops.git",
    gitops_branch="main",
    gitops_credential="infraflows/lab/git",
    gitlab_url="https://gitlab.example.org",
    gateway_url="https://hooks.example.org",
    database_mount="database",
    database_server="apps",
    database_credential="infraflows/lab/database",
    pki_mount="pki",
    pki_role="apps",
    openbao_url="https://bao.example.org",
    database_address="db.example.org:5432",
)
CLAIMED = {"blog.apps.example.org": "blog"}


def changed(objects: list[dict[str, Any]], changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = copy.deepcopy(objects)
    for change in changes:
        first, *rest = change["at"]
        if first == "__object__":
            found.append(change["to"])
        elif first == "__remove__":
            found = [d for d in found if [d["kind"], d["metadata"]["name"]] != rest]
        else:
            (document,) = (
                d for d in found if d["kind"] == first and d["metadata"]["name"] == rest[0]
            )
            put(document, rest[1:], change["to"])
    return found


def put(document: dict[str, Any], path: list[Any], value: Any) -> None:
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    if value == "__remove__":
        del place[path[-1]]
    else:
        place[path[-1]] = value


@pytest.fixture
def staging(full_tenant: Tenant) -> Tenant:
    environments = {Stage.STAGING: full_tenant.app.environments[Stage.STAGING]}
    return replace(
        full_tenant, app=full_tenant.app.model_copy(update={"environments": environments})
    )


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_every_violation_is_told_with_reason_and_fix(case: dict[str, Any], staging: Tenant) -> None:
    objects = [
        *tenancy_objects(staging, Stage.STAGING),
        *rendered(staging, Stage.STAGING),
    ]
    found = judge(changed(objects, case["changes"]), rules_of(staging, CLAIMED))
    assert [f"{f.subject}: {f.text}. {f.fix}" for f in found] == case["violations"]
    assert all(finding.level is Level.ERROR for finding in found)


def test_the_examples_keep_every_rule(full_tenant: Tenant, image_tenant: Tenant) -> None:
    assert evaluate(full_tenant) == []
    assert evaluate(image_tenant) == []


def test_a_claimed_derived_host_name_is_refused(make_tenant: Callable[..., Tenant]) -> None:
    found = evaluate(make_tenant(), {"shop.apps.example.org": "older-shop"})
    assert [finding.text for finding in found] == ["shop.apps.example.org belongs to older-shop"]


def test_an_application_that_is_too_large_is_refused(make_tenant: Callable[..., Tenant]) -> None:
    stages = {"production": {"replicas": 50}}
    found = evaluate(make_tenant(environments=stages, resources={"cpu": "8", "memory": "16Gi"}))
    assert [finding.text for finding in found] == [
        "limits.memory is 832Gi, and one stage may have 256Gi",
        "requests.cpu is 416, and one stage may have 64",
        "requests.memory is 832Gi, and one stage may have 256Gi",
    ]


def test_what_the_platform_lacks_is_told(full_tenant: Tenant) -> None:
    platform = replace(
        full_tenant.platform, openbao_url="", database_address="", outside_address=""
    )
    found = evaluate(replace(full_tenant, platform=platform))
    assert [finding.subject for finding in found] == [
        "secrets",
        "database",
        "host name shop.example.com",
    ]


SPECS = st.fixed_dictionaries(
    {
        "service_level": st.sampled_from([level.value for level in ServiceLevel]),
        "resources": st.fixed_dictionaries(
            {
                "cpu": st.sampled_from(["1m", "0.5", "1", "1500m"]),
                "memory": st.sampled_from(["1Mi", "128Mi", "2Gi"]),
            }
        ),
        "environments": st.dictionaries(
            st.sampled_from([stage.value for stage in Stage]),
            st.fixed_dictionaries({"replicas": st.integers(2, 8)}),
            min_size=1,
        ),
        "metrics_path": st.sampled_from(["/metrics", None]),
        "database": st.sampled_from([{}, None]),
        "secrets": st.sampled_from([[], [{"path": "a/b", "keys": ["K"]}]]),
    }
)


@given(SPECS)
def test_every_right_spec_of_a_moderate_size_keeps_every_rule(change: dict[str, Any]) -> None:
    app = parse_app({**EXAMPLE_APP, **change})
    tenant = Tenant(PLATFORM, app, 7, {})
    assert evaluate(tenant) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("250m", "0.25"), ("1.5", "1.5"), ("2Gi", str(2 * 1024**3)), ("1k", "1000"),
        ("1e3", "1000"), ("1E", str(10**18)), ("100n", "1e-7"), ("many", None), ("1.2.3", None),
        ("", None), (None, None), ("1Zi", None),
    ],
)  # fmt: skip
def test_quantities_are_read_as_kubernetes_reads_them(text: Any, number: str | None) -> None:
    found = quantity(text)
    assert (
        (found is None) if number is None else (found is not None and float(found) == float(number))
    )
