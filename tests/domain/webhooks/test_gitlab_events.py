"""What an event asks for, as cases; and that no document makes the reading stumble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from domain.webhooks.gitlab_events import (
    MalformedEvent,
    decoded,
    encoded,
    meaning,
    project_id,
    read_document,
)

CASES = yaml.safe_load(
    (Path(__file__).parents[2] / "cases" / "gitlab_events.yaml").read_text(encoding="utf-8")
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = ("ref", "before", "after", "commits", "total_commits_count", "object_attributes", "project")


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_an_event_means_what_its_case_says(case: dict[str, Any]) -> None:
    body = case["body"]
    if case.get("no_project"):
        with pytest.raises(MalformedEvent):
            project_id(body)
        return
    assert project_id(body) == 17
    if "malformed" in case:
        with pytest.raises(MalformedEvent, match=case["malformed"]):
            meaning(body)
        return
    found = meaning(body)
    assert json.loads(encoded(found)) == case["means"]
    assert decoded(encoded(found)) == found


@given(
    st.sampled_from(["push", "merge_request", "deployment", "tag_push"]),
    st.dictionaries(
        st.sampled_from([*NAMES, "status", "deployment_id", "environment", "short_sha"]), VALUES
    ),
)
def test_no_document_makes_it_stumble(kind: str, fields: dict[str, Any]) -> None:
    try:
        project_id({"project_id": 17, **fields})
        found = meaning({"object_kind": kind, "project_id": 17, **fields})
    except MalformedEvent:
        return
    assert decoded(encoded(found)) == found


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"\xff", b"{", b"[" * 100_000, b'"{}"'])
def test_what_is_no_object_is_no_event(body: bytes) -> None:
    with pytest.raises(MalformedEvent):
        read_document(body)
