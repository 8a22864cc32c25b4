"""The gateway's way to Prefect, against a real server."""

from __future__ import annotations

import uuid
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed, Paused, Pending, Running

from deployments.gateway.ports import RunState
from deployments.gateway.prefect_flows import PrefectFlows
from domain.errors import PermanentError, TemporaryError, Unreachable

NAME = "trial-flow/default"
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer"}},
    "required": ["count"],
}


@pytest.fixture(scope="module", autouse=True)
def _deployment(_prefect_server: None) -> None:
    with get_client(sync_client=True) as client:
        client.create_deployment(
            client.create_flow_from_name("trial-flow"),
            name="default",
            entrypoint="flows.trial",
            parameter_openapi_schema=SCHEMA,
            enforce_parameter_schema=True,
        )


async def started(state: State | None = None) -> str:
    run_id = await PrefectFlows().start(NAME, {"count": 1}, uuid.uuid4().hex)
    if state is not None:
        async with get_client() as client:
            await client.set_flow_run_state(UUID(run_id), state, force=True)
    return run_id


async def test_the_same_key_is_the_same_run_and_is_found_by_it() -> None:
    flows, key = PrefectFlows(), uuid.uuid4().hex
    assert await flows.find(NAME, key) == ""
    first = await flows.start(NAME, {"count": 1}, key)
    assert await flows.start(NAME, {"count": 2}, key) == first
    assert await flows.find(NAME, key) == first
    assert await flows.find("no-flow/default", key) == ""


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, RunState.WAITING),
        (Pending(), RunState.WAITING),
        (Paused(), RunState.WAITING),
        (Running(), RunState.RUNNING),
        (Completed(), RunState.DONE),
        (Failed(), RunState.FAILED),
        (Crashed(), RunState.FAILED),
    ],
)
async def test_a_runs_state_is_told_as_the_next_one_depends_on_it(
    state: State | None, expected: RunState
) -> None:
    assert await PrefectFlows().state(await started(state)) is expected


async def test_a_run_that_is_not_there_is_gone() -> None:
    flows, unknown = PrefectFlows(), str(uuid.uuid4())
    assert await flows.state(unknown) is RunState.GONE
    await flows.withdraw(unknown)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, RunState.GONE),
        (Pending(), RunState.GONE),
        # Its worker ends its process first.
        (Paused(), RunState.RUNNING),
        (Running(), RunState.RUNNING),
        (Completed(), RunState.DONE),
    ],
)
async def test_only_what_waits_is_withdrawn(state: State | None, expected: RunState) -> None:
    flows, run_id = PrefectFlows(), await started(state)
    await flows.withdraw(run_id)
    assert await flows.state(run_id) is expected


async def test_refused_parameters_are_final_and_a_missing_deployment_is_not() -> None:
    flows = PrefectFlows()
    with pytest.raises(PermanentError, match="refused the parameters"):
        await flows.start(NAME, {"count": "many"}, "key")
    with pytest.raises(TemporaryError, match="no such deployment"):
        await flows.start("no-flow/default", {}, "key")


async def test_a_server_that_does_not_answer_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    nobody = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(nobody), pytest.raises(Unreachable, match="Check the server"):
        await PrefectFlows().start(NAME, {"count": 1}, "key")
