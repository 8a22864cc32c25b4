"""What is read out of an Application's document."""

from __future__ import annotations

from typing import Any

import pytest

from domain.onboarding.argocd_state import application_state

COMMIT = "a" * 40


def document(**status: Any) -> dict[str, Any]:
    well = {"sync": {"status": "Synced", "revision": COMMIT}, "health": {"status": "Healthy"}}
    return {"metadata": {"name": "shop-staging"}, "status": {**well, **status}}


def test_a_new_application_says_unknown_and_is_not_well() -> None:
    state = application_state({"metadata": {"name": "shop-staging"}})

    assert (state.sync, state.health, state.revision) == ("Unknown", "Unknown", "")
    assert not state.is_well


def test_synced_and_healthy_with_nothing_under_way_is_well() -> None:
    assert application_state(document()).is_well


@pytest.mark.parametrize(
    "change",
    [
        {"operation": {"sync": {}}},
        {"metadata": {"annotations": {"argocd.argoproj.io/refresh": "normal"}}},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"sync": {"status": "OutOfSync"}, "health": {"status": "Healthy"}}},
        {"status": {"sync": {"status": "Synced"}, "health": {"status": "Progressing"}}},
        {"status": {**document()["status"], "operationState": {"phase": "Running"}}},
    ],
)
def test_whatever_is_under_way_is_not_well(change: dict[str, Any]) -> None:
    assert not application_state({**document(), **change}).is_well


def test_a_failed_operation_counts_for_its_own_commit_only() -> None:
    failed = {"phase": "Failed", "message": "no", "syncResult": {"revision": COMMIT}}
    state = application_state(document(operationState=failed))

    assert state.has_failed_at(COMMIT)
    assert not state.has_failed_at("b" * 40)


def test_the_summary_names_each_object_with_its_own_words() -> None:
    resources = [
        {"kind": "Service", "namespace": "x", "name": "fine", "status": "Synced"},
        {
            "kind": "Deployment",
            "namespace": "x",
            "name": "shop",
            "status": "Synced",
            "health": {"status": "Degraded", "message": "exceeded its  progress deadline"},
        },
        {"kind": "Ingress", "namespace": "x", "name": "old", "status": "OutOfSync",
         "requiresPruning": True},
    ]  # fmt: skip
    operation = {
        "phase": "Failed",
        "message": "one or more objects failed",
        "syncResult": {
            "resources": [
                {"kind": "Role", "namespace": "x", "name": "all", "status": "SyncFailed",
                 "message": "not permitted"},
                {"kind": "Service", "namespace": "x", "name": "fine", "status": "Synced"},
            ]
        },
    }  # fmt: skip
    conditions = [{"type": "ComparisonError", "message": "no such path"}]
    state = application_state(
        document(resources=resources, operationState=operation, conditions=conditions)
    )

    assert state.reasons == (
        "ComparisonError: no such path",
        "sync Failed: one or more objects failed",
        "Role x/all: not permitted",
        "Deployment x/shop is Degraded (exceeded its progress deadline)",
        "Ingress x/old is to be pruned",
    )


def test_a_long_list_of_reasons_is_cut_and_counted() -> None:
    resources = [
        {"kind": "Service", "namespace": "x", "name": f"s{i}", "status": "OutOfSync"}
        for i in range(30)
    ]

    assert application_state(document(resources=resources)).summary.endswith("and 18 more")
