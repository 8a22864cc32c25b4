"""The mark in a project is read back as it was written, and anything else counts as nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.onboarding.gitlab_mark import ProjectMark, ProtectionBefore, read_mark

MARK = ProjectMark(
    app="shop",
    files=(".gitlab-ci.yml", ".releaserc.yaml"),
    settings_before={"only_allow_merge_if_pipeline_succeeds": False},
    branch="main",
    protection_before=ProtectionBefore(40, 30, is_force_push_allowed=True),
    tags_before={"v*": 30},
)


@pytest.mark.parametrize("mark", [MARK, ProjectMark(app="shop")])
def test_a_mark_is_read_back_as_it_was_written(mark: ProjectMark) -> None:
    assert read_mark(mark.text()) == mark


def test_the_same_mark_is_the_same_text_whatever_the_order() -> None:
    other = ProjectMark(
        app=MARK.app,
        files=tuple(reversed(MARK.files)),
        settings_before=MARK.settings_before,
        branch=MARK.branch,
        protection_before=MARK.protection_before,
        tags_before=MARK.tags_before,
    )
    assert other.text() == MARK.text()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "no json",
        "[]",
        "{}",
        '{"managed-by": "somebody", "app": "shop"}',
        '{"managed-by": "infraflows"}',
        '{"managed-by": "infraflows", "app": 7}',
    ],
)
def test_what_is_not_a_mark_of_ours_is_none(text: str | None) -> None:
    assert read_mark(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["settings", "protection", "branch", "tags", "push", "merge", "v*"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(files=JSON, before=JSON)
def test_whatever_a_person_writes_into_it_is_read_without_a_fault(
    files: object, before: object
) -> None:
    document = {"managed-by": "infraflows", "app": "shop", "files": files, "before": before}
    mark = read_mark(json.dumps(document))
    assert mark is not None
    assert mark.app == "shop"
    assert all(isinstance(path, str) for path in mark.files)
    assert all(isinstance(level, int) for level in mark.tags_before.values())
    assert read_mark(mark.text()) is not None
