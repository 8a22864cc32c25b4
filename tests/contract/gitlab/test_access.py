"""What the product relies on in GitLab's variables and tokens."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from blocks.gitlab_access import CiVariable
from blocks.gitlab_server import GitLabSession
from blocks.rotation.git_references import references_status
from domain.errors import InvalidSpec, NotFound, Unauthorized

CANARY = "robot$canary+value/with=signs"
PASSWORD = CiVariable(
    "HARBOR_PASSWORD",
    CANARY,
    is_masked=True,
    is_protected=True,
    description="infraflows app=shop",
)


def test_a_variable_is_written_once_and_read_back(gitlab: GitLabSession, project: int) -> None:
    assert gitlab.variable(project, PASSWORD.key) is None
    assert gitlab.set_variable(project, PASSWORD)
    assert not gitlab.set_variable(project, PASSWORD)
    assert gitlab.variables(project) == [PASSWORD]
    changed = replace(PASSWORD, value="another-value-of-it", is_protected=False)
    assert gitlab.set_variable(project, changed)
    assert gitlab.variable(project, PASSWORD.key) == changed


def test_one_key_may_have_a_value_for_each_scope(gitlab: GitLabSession, project: int) -> None:
    other = replace(PASSWORD, value="value-of-production", scope="production")
    gitlab.set_variable(project, PASSWORD)
    gitlab.set_variable(project, other)
    assert gitlab.variable(project, PASSWORD.key, "production") == other
    assert gitlab.delete_variable(project, PASSWORD.key)
    assert not gitlab.delete_variable(project, PASSWORD.key)
    assert gitlab.variables(project) == [other]


@pytest.mark.parametrize("value", ["short", "with a space in it", "two\nlines-of-text"])
def test_a_value_that_cannot_be_masked_is_refused_before_it_is_sent(
    gitlab: GitLabSession, project: int, value: str
) -> None:
    with pytest.raises(InvalidSpec, match="cannot be masked") as refused:
        gitlab.set_variable(project, replace(PASSWORD, value=value))
    assert value not in str(refused.value)
    assert gitlab.variables(project) == []


def test_gitlab_too_refuses_what_cannot_be_masked(side: Any, project: int) -> None:
    for value, is_raw in (("short", True), (CANARY, False)):
        body = {"key": "A", "value": value, "masked": True, "raw": is_raw}
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            side.call("POST", f"/projects/{project}/variables", body)


def test_no_value_is_told_by_what_is_printed(gitlab: GitLabSession, project: int) -> None:
    gitlab.set_variable(project, PASSWORD)
    assert CANARY not in repr(gitlab.variables(project))
    made = gitlab.create_deploy_token(project, "t", ["read_repository"])
    assert made.value not in repr(made)
    with pytest.raises(NotFound) as refused:
        gitlab.set_variable(999_999_999, PASSWORD)
    assert CANARY not in str(refused.value)


def test_a_deploy_tokens_value_is_shown_once_and_reads_the_repository(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    made = gitlab.create_deploy_token(project, "infraflows-shop", ["read_repository"])
    (listed,) = gitlab.deploy_tokens(project)
    assert (listed.token_id, listed.name, listed.username) == (
        made.token_id,
        "infraflows-shop",
        made.username,
    )
    assert listed.is_active
    assert listed.scopes == ("read_repository",)
    url = gitlab.project(project).http_url
    login = {"username": made.username, "password": made.value}
    assert references_status(url, side.ca_file, login, "test") == 200
    assert gitlab.delete_deploy_token(project, made.token_id)
    assert not gitlab.delete_deploy_token(project, made.token_id)
    assert gitlab.deploy_tokens(project) == []
    assert references_status(url, side.ca_file, login, "test") == 401


def test_two_deploy_tokens_may_have_one_name(gitlab: GitLabSession, project: int) -> None:
    made = {gitlab.create_deploy_token(project, "same", ["read_registry"]).token_id for _ in "ab"}
    assert {each.token_id for each in gitlab.deploy_tokens(project)} == made


def test_an_access_token_works_until_it_is_revoked_and_stays_in_the_list(
    gitlab: GitLabSession, side: Any, project: int
) -> None:
    ends = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    number, value = gitlab.create_access_token(project, "reporter", ["read_api"], 20, ends)
    with side.block().session(value) as other:
        assert other.own_token_id() == number
        assert other.project(project).project_id == project
        assert gitlab.revoke_access_token(project, number)
        with pytest.raises(Unauthorized) as refused:
            other.project(project)
    assert value not in str(refused.value)
    (listed,) = [each for each in gitlab.access_tokens(project) if each.token_id == number]
    assert not listed.is_active
    assert (listed.name, listed.scopes, listed.access_level) == ("reporter", ("read_api",), 20)
