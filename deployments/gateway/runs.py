"""Starting flows so that the newest wish wins and nothing is started twice.

Promises that for each scope, as one project, there is one run at a time: a run that has not begun
is withdrawn when the wish has changed, one that has begun is waited for. What is wished is stored
under a generation before the run is started with a key made of it; whoever is killed in between
starts the same run again. So the last run that begins always carries the last wish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from blocks.delivery_store import DeliveryStore
from deployments.gateway.outcomes import Done, Later, Outcome
from deployments.gateway.ports import FlowPort, RunState
from domain.webhooks.delivery import Dispatch

POLL_SECONDS = 3.0
WITHDRAWN = "0"
"""Marker of what nobody wishes any more: no digest, and older than every deployment."""
TRIES_BY_ITSELF = 3
"""How often a failed run is started again without anybody's push."""


@dataclass(frozen=True)
class Wish:
    """What a scope is to be."""

    scope: str
    marker: str
    name: str
    deployment: str
    parameters: Mapping[str, Any]


class Runs:
    """Runs that the gateway starts in one environment."""

    def __init__(self, environment: str, store: DeliveryStore, flows: FlowPort) -> None:
        """Keep what was wished in `store`."""
        self._environment = environment
        self._store = store
        self._flows = flows

    async def last(self, scope: str) -> Dispatch | None:
        """Return what a scope was last told to be."""
        return await self._store.dispatch(scope)

    async def state(self, dispatch: Dispatch) -> RunState:
        """Return where the run of a dispatch is."""
        if not dispatch.run_id:
            return RunState.GONE
        return await self._flows.state(dispatch.run_id)

    async def make(self, wish: Wish, last: Dispatch | None) -> Outcome:
        """Start the run of a wish that differs from `last`, or was not acknowledged, or failed."""
        if last is None:
            return await self._start(wish, Dispatch(wish.scope, wish.marker, 1, wish.name))
        if not last.run_id:
            if last.marker == wish.marker:
                return await self._start(wish, replace(last, name=wish.name))
            # Killed between writing it down and starting it: nobody knows whether it was started.
            found = await self._flows.find(wish.deployment, self._key(last))
            last = replace(last, run_id=found)
        state = await self.state(last)
        if state is RunState.WAITING:
            # First forgotten: the same wish may come back before the next one is written down.
            await self._store.remember(replace(last, marker=WITHDRAWN))
            await self._flows.withdraw(last.run_id)
            state = await self.state(last)
        if state in (RunState.WAITING, RunState.RUNNING):
            return Later("an earlier run has not ended", POLL_SECONDS)
        tries = last.tries + 1 if last.marker == wish.marker else 1
        following = Dispatch(wish.scope, wish.marker, last.generation + 1, wish.name, tries=tries)
        return await self._start(wish, following)

    def _key(self, dispatch: Dispatch) -> str:
        return f"{self._environment}/{dispatch.scope}/{dispatch.generation}"

    async def _start(self, wish: Wish, dispatch: Dispatch) -> Outcome:
        await self._store.remember(dispatch)
        run_id = await self._flows.start(wish.deployment, wish.parameters, self._key(dispatch))
        await self._store.remember(replace(dispatch, run_id=run_id))
        return Done(f"run {run_id} of {wish.deployment} is started")
