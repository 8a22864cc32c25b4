"""Flows by their deployments' names, over Prefect's API.

Promises that an answer of the server that may be another one tomorrow is a `TemporaryError`, also
that there is no such deployment: the set-up may be on its way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments.flow_runs import arun_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling

from blocks.prefect_answers import NO_ANSWER
from deployments.gateway.ports import RunState
from domain.errors import PermanentError, TemporaryError, Unreachable

REFUSED = (409, 422)
STUCK_AFTER = timedelta(seconds=120)
"""A run whose worker is gone stays `Cancelling`."""

_STATES: Mapping[StateType, RunState] = {
    StateType.SCHEDULED: RunState.WAITING,
    StateType.PENDING: RunState.WAITING,
    StateType.PAUSED: RunState.WAITING,
    StateType.RUNNING: RunState.RUNNING,
    StateType.CANCELLING: RunState.RUNNING,
    StateType.COMPLETED: RunState.DONE,
    StateType.FAILED: RunState.FAILED,
    StateType.CRASHED: RunState.FAILED,
    # Somebody wanted it not to be: as if it had never been.
    StateType.CANCELLED: RunState.GONE,
}


class PrefectFlows:
    """One Prefect server."""

    async def start(self, deployment: str, parameters: Mapping[str, Any], key: str) -> str:
        """Start a deployment; the same key starts no second run."""
        async with _connected(f"start {deployment}") as client:
            try:
                run = await arun_deployment(
                    deployment,
                    client=client,
                    parameters=dict(parameters),
                    idempotency_key=key,
                    timeout=0,
                    as_subflow=False,
                    tags=["trigger:webhook"],
                )
            except ObjectNotFound:
                raise TemporaryError(
                    f"Unable to start {deployment}: there is no such deployment. "
                    "Run: infraflows setup --site <file>."
                ) from None
        return str(run.id)

    async def find(self, deployment: str, key: str) -> str:
        """Return the id of the run that was started with a key; empty if there is none."""
        async with _connected(f"look for a run of {deployment}") as client:
            try:
                found = await client.read_deployment_by_name(deployment)
            except ObjectNotFound:
                return ""
            runs = await client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[found.id])),
                flow_run_filter=FlowRunFilter(
                    idempotency_key=FlowRunFilterIdempotencyKey(any_=[key])
                ),
                limit=1,
            )
        return str(runs[0].id) if runs else ""

    async def state(self, run_id: str) -> RunState:
        """Return where a run is."""
        run = await self._run(run_id)
        if run is None:
            return RunState.GONE
        if run.state is None:
            return RunState.WAITING
        age = datetime.now(UTC) - run.state.timestamp
        if run.state.type is StateType.CANCELLING and age > STUCK_AFTER:
            return RunState.WAITING
        return _STATES[run.state.type]

    async def withdraw(self, run_id: str) -> None:
        """Cancel a run that waits; one that has begun in the meantime is left alone."""
        run = await self._run(run_id)
        if run is None or run.state is None or await self.state(run_id) is not RunState.WAITING:
            return
        # A paused run has a process: its worker ends it. Of the others there is none yet.
        is_paused = run.state.is_paused()
        wanted: State[Any] = Cancelling() if is_paused else Cancelled()
        async with _connected("withdraw a run") as client:
            await client.set_flow_run_state(
                run.id, wanted, force=run.state.type is StateType.CANCELLING
            )

    @staticmethod
    async def _run(run_id: str) -> FlowRun | None:
        async with _connected("read a run") as client:
            try:
                return await client.read_flow_run(UUID(run_id))
            except ObjectNotFound:
                return None


@asynccontextmanager
async def _connected(act: str) -> AsyncIterator[PrefectClient]:
    try:
        async with get_client() as client:
            yield client
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise PermanentError(
                f"Unable to {act}: Prefect refused the parameters ({status}). "
                "Run: infraflows setup --site <file>, so that both are of one version."
            ) from None
        raise Unreachable(
            f"Unable to {act}: the Prefect server answered {status}. Read its log."
        ) from None
    except NO_ANSWER as error:
        raise Unreachable(
            f"Unable to {act}: no answer of Prefect ({type(error).__name__}). Check the server."
        ) from None
