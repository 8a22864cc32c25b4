"""The verdict on each case; the API server's own is compared in tests/tasks/onboarding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.onboarding.pod_security import containers, pod_template, restricted_faults

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[2] / "cases" / "pod_security.yaml").read_text(encoding="utf-8")
)
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "case"},
    "spec": {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "app",
                "image": "example.org/app:1",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    },
}


def changed(document: dict[str, Any], changes: list[dict[str, Any]]) -> dict[str, Any]:
    found = copy.deepcopy(document)
    for change in changes:
        place: Any = found
        *way, last = change["at"]
        for part in way:
            place = place[part] if isinstance(part, int) else place.setdefault(part, {})
        if change["to"] == "__remove__":
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(change["to"])
    return found


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_a_pod_is_refused_exactly_when_the_level_refuses_it(case: dict[str, Any]) -> None:
    faults = restricted_faults(changed(POD, case["changes"]))
    assert (faults == []) is case["is_accepted"], faults
    for fault in faults:
        assert fault.fix.endswith(".")


def test_all_faults_of_a_pod_are_told_at_once() -> None:
    pod = {"kind": "Pod", "spec": {"hostNetwork": True, "containers": [{"name": "app"}]}}
    assert [fault.text for fault in restricted_faults(pod)] == [
        "hostNetwork is on",
        "container app may gain privileges",
        "container app keeps capabilities",
        "container app may run as root",
        "container app has no seccomp profile",
    ]


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        ("Deployment", lambda pod: {"template": pod}),
        ("StatefulSet", lambda pod: {"template": pod}),
        ("Job", lambda pod: {"template": pod}),
        ("CronJob", lambda pod: {"jobTemplate": {"spec": {"template": pod}}}),
        ("Pod", lambda pod: pod["spec"]),
    ],
)
def test_pods_are_found_in_every_kind_of_workload(kind: str, wrap: Any) -> None:
    found = pod_template({"kind": kind, "spec": wrap(POD)})
    assert found is not None
    assert [container["name"] for container in containers(found)] == ["app"]


def test_what_runs_no_pod_has_none() -> None:
    assert pod_template({"kind": "Service", "spec": {"ports": []}}) is None
    assert pod_template({"kind": "ConfigMap"}) is None
