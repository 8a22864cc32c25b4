from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.cluster_checks import (
    CHECKS,
    ClusterFacts,
    EtcdMember,
    NodeFact,
    Outcome,
    PlacementFacts,
    ServerFacts,
    check_cluster,
    check_rows,
    server_facts,
    stale_nodes,
)
from domain.machines import machines, servers
from domain.specs import EXAMPLE, ClusterSpec, parse_spec

CASES = yaml.safe_load((Path(__file__).parents[1] / "cases" / "cluster_checks.yaml").read_text())
PARTS = ("api_version", "readiness", "nodes", "placement", "anonymous_statuses")


def cluster(**kubernetes: Any) -> ClusterSpec:
    return parse_spec({**EXAMPLE, "kubernetes": {**EXAMPLE["kubernetes"], **kubernetes}})


def healthy(spec: ClusterSpec) -> ClusterFacts:
    version = spec.kubernetes.version
    members = tuple(EtcdMember(m.name, m.address, is_healthy=True) for m in servers(spec))
    names = tuple(m.name for m in machines(spec))
    return ClusterFacts(
        api_version=version,
        readiness={"ping": True, "etcd": True},
        nodes=tuple(NodeFact(m.name, True, version, m.address) for m in machines(spec)),
        placement=PlacementFacts(wanted=len(names), available=len(names), nodes=names),
        anonymous_statuses={"/version": 401, "/api/v1/secrets": 403},
        server_facts={m.name: ServerFacts(members, True, True) for m in servers(spec)},
    )


def member(spec: ClusterSpec, text: str) -> EtcdMember:
    name, *state = text.split()
    address = {m.name: m.address for m in servers(spec)}.get(name, name)
    return EtcdMember(name, address, is_healthy="sick" not in state, is_learner="learner" in state)


def with_nodes(facts: ClusterFacts, changes: dict[str, dict[str, Any] | None]) -> ClusterFacts:
    nodes = {node.name: node for node in facts.nodes or ()}
    for name, change in changes.items():
        if change is None:
            del nodes[name]
        else:
            fresh = NodeFact(name, True, facts.api_version or "")
            nodes[name] = replace(nodes.get(name, fresh), **change)
    return replace(facts, nodes=tuple(nodes.values()))


def facts_of(case: dict[str, Any], spec: ClusterSpec) -> ClusterFacts:
    facts = with_nodes(healthy(spec), case.get("nodes", {}))
    changed = dict(case.get("facts", {}))
    if changed.get("placement"):
        changed["placement"] = PlacementFacts(
            **{**changed["placement"], "nodes": tuple(changed["placement"]["nodes"])}
        )
    unknown = {part: "no route to the API" for part in PARTS if changed.get(part, "") is None}
    facts = replace(facts, **changed, unknown=unknown)
    if "server" in case:
        first = dict(case["server"])
        if first.get("etcd_members"):
            first["etcd_members"] = tuple(member(spec, text) for text in first["etcd_members"])
        mended = replace(facts.server_facts["demo-server-1"], **first)
        facts = replace(facts, server_facts={**facts.server_facts, "demo-server-1": mended})
    return facts


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_a_check_passes_only_what_is_known_to_be_right(case: dict[str, Any]) -> None:
    spec = cluster(**case.get("spec", {}))

    results = check_cluster(spec, facts_of(case, spec))

    found = [(r.name, r.outcome.value) for r in results if not r.is_passed]
    assert found == [(name, outcome) for name, outcome, _ in case["fails"]]
    details = {result.name: result.detail for result in results}
    for name, _, words in case["fails"]:
        assert words in details[name]


def test_nothing_that_was_looked_at_passes_nothing() -> None:
    results = check_cluster(cluster(), ClusterFacts())

    assert [result.outcome for result in results] == [Outcome.UNKNOWN] * len(CHECKS)


def test_the_table_marks_every_outcome() -> None:
    rows = check_rows(check_cluster(cluster(), ClusterFacts(api_version="v1.36.3+rke2r1")))

    assert rows[0]["result"] == "✔ passed"
    assert rows[1] == {
        "check": "API server ready",
        "result": "? unknown",
        "detail": "it was not looked at",
    }


def test_what_a_probe_could_not_read_stays_unknown() -> None:
    found = server_facts(
        {"etcd_members": "unknown", "has_encrypted_secrets": "unknown", "has_audit_log": 1}
    )

    assert found == ServerFacts(None, None, None)


def test_a_probe_names_members_by_their_peer_address() -> None:
    found = server_facts(
        {
            "etcd_members": [
                {"name": "a-1f2e", "peer_urls": ["https://10.0.0.1:2380"], "is_healthy": True},
                {"name": "", "peer_urls": [], "is_learner": True},
            ],
            "has_encrypted_secrets": True,
            "has_audit_log": False,
        }
    )

    assert found.etcd_members == (
        EtcdMember("a-1f2e", "10.0.0.1", is_healthy=True),
        EtcdMember("", "", is_healthy=False, is_learner=True),
    )
    assert (found.has_encrypted_secrets, found.has_audit_log) == (True, False)


def test_only_nodes_of_this_cluster_that_the_spec_no_longer_has_are_stale() -> None:
    names = ["demo-server-1", "demo-server-5", "demo-worker-3", "demo-worker-x", "demo2-server-9"]

    assert stale_nodes(cluster(), [*names, "other"]) == ["demo-server-5", "demo-worker-3"]
