"""The second half: takes what is stored and has it acted on, lane by lane.

Promises that a delivery is pending until its act has ended, so that a kill at any moment loses
nothing; that the deliveries of one project are never acted on by two at once; that what may pass
by itself is tried again, longer apart each time; and that one project's trouble holds up nobody
else's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from blocks.delivery_store import DeliveryStore
from deployments.gateway.acts import Acts
from deployments.gateway.metrics import Metrics
from deployments.gateway.outcomes import Done, Failed, Later, Outcome
from domain.errors import LifecycleError, TemporaryError
from domain.webhooks.delivery import GITLAB, Delivery, DeliveryState, Lane, lane_project
from domain.webhooks.gitlab_events import (
    AppChanged,
    Deployed,
    Meaning,
    MergeRequestChanged,
    decoded,
)

log = logging.getLogger("infraflows.gateway")

LANES_AT_ONCE = 16
LEASE_SECONDS = 180.0
ACT_SECONDS = 90.0
POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0
GIVEN_UP_AFTER_SECONDS = 24 * 3600.0
KEPT_SECONDS = 30 * 24 * 3600.0
CLEANED_EVERY_SECONDS = 3600.0


@dataclass(frozen=True)
class _Group:
    """Deliveries that one act answers."""

    kind: str
    deliveries: Sequence[Delivery]
    act: Callable[[], Awaitable[Outcome]]


class Dispatcher:
    """Works off one store."""

    def __init__(
        self,
        store: DeliveryStore,
        acts: Acts,
        clock: Callable[[], float],
        metrics: Metrics | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Prepare; `run` does the work."""
        self._store = store
        self._acts = acts
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._poll_seconds = poll_seconds
        self._owner = uuid.uuid4().hex
        self._woken = asyncio.Event()
        self._lanes: set[asyncio.Task[None]] = set()
        self._cleaned_at = float("-inf")
        self.is_working = False

    def wake(self) -> None:
        """Have a look at once."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                try:
                    await self._once()
                    self.is_working = True
                except LifecycleError as error:
                    self.is_working = False
                    log.error("the dispatcher cannot work: %s", error)
                except Exception:
                    self.is_working = False
                    log.exception("the dispatcher stumbled in a way that nobody foresaw")
                await self._pause()
        finally:
            self.is_working = False
            for task in self._lanes:
                task.cancel()
            await asyncio.gather(*self._lanes, return_exceptions=True)
            self._acts.close()

    async def _once(self) -> None:
        self._woken.clear()
        now = self._clock()
        if now - self._cleaned_at > CLEANED_EVERY_SECONDS:
            await self._store.forget(now - KEPT_SECONDS)
            self._cleaned_at = now
        free = LANES_AT_ONCE - len(self._lanes)
        if free <= 0:
            return
        for lane in await self._store.claim(
            self._owner, GITLAB, now, lanes_at_most=free, lease_seconds=LEASE_SECONDS
        ):
            task = asyncio.create_task(self._work_off(lane))
            self._lanes.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._lanes.discard(task)
        self._woken.set()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._poll_seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    # --- one lane --------------------------------------------------------------------------------

    async def _work_off(self, lane: Lane) -> None:
        try:
            for group in self._groups(lane):
                await self._settle(group, await self._carried_out(group))
        except LifecycleError as error:
            # The store is in trouble: what is not settled is still pending.
            log.error("%s: %s", lane.name, error)
        finally:
            await self._released(lane)

    async def _released(self, lane: Lane) -> None:
        try:
            await self._store.release(lane.name, self._owner)
        except LifecycleError as error:
            log.error("%s is held until its lease ends: %s", lane.name, error)

    def _groups(self, lane: Lane) -> list[_Group]:
        """One act for all deliveries that ask the same question, in the order of the first."""
        project = lane_project(lane.name)
        gathered: dict[str, list[tuple[Delivery, Meaning]]] = {}
        for delivery in lane.deliveries:
            means = decoded(delivery.content)
            gathered.setdefault(_question(means), []).append((delivery, means))
        # What is onboarded comes first: a deployment waits for it.
        ordered = sorted(gathered.values(), key=lambda pairs: pairs[0][1].kind != AppChanged.kind)
        return [
            _Group(
                kind=pairs[0][1].kind,
                deliveries=[delivery for delivery, _ in pairs],
                act=self._act(project, [means for _, means in pairs]),
            )
            for pairs in ordered
        ]

    def _act(self, project: int, means: list[Meaning]) -> Callable[[], Awaitable[Outcome]]:
        async def act() -> Outcome:
            match means[0]:
                case AppChanged():
                    # A push among them is a person's wish to try again.
                    only_ours = all(isinstance(m, AppChanged) and m.is_reconcile for m in means)
                    return await self._acts.app_changed(project, is_reconcile=only_ours)
                case MergeRequestChanged(iid=iid):
                    return await self._acts.merge_request_changed(project, iid)
                case Deployed():
                    events = [m for m in means if isinstance(m, Deployed)]
                    return await self._acts.deployed(project, events)
                case _:
                    return Done("nothing follows from it")

        return act

    async def _carried_out(self, group: _Group) -> Outcome:
        try:
            async with asyncio.timeout(ACT_SECONDS):
                outcome = await group.act()
        except TemporaryError as error:
            outcome = Later(str(error))
        except TimeoutError:
            outcome = Later(f"it took longer than {ACT_SECONDS:.0f} s")
        except LifecycleError as error:
            outcome = Failed(str(error))
        except Exception as error:
            log.exception("an act failed in a way that nobody foresaw")
            outcome = Later(f"unforeseen: {type(error).__name__}")
        now = self._clock()
        oldest = min(delivery.received_at for delivery in group.deliveries)
        if isinstance(outcome, Later) and now - oldest > GIVEN_UP_AFTER_SECONDS:
            outcome = Failed(f"given up after a day: {outcome.reason}")
        self._metrics.acts.labels(group.kind, type(outcome).__name__.lower()).inc()
        return outcome

    async def _settle(self, group: _Group, outcome: Outcome) -> None:
        numbers = [delivery.number for delivery in group.deliveries]
        now = self._clock()
        match outcome:
            case Done(reason):
                await self._store.finish(numbers, DeliveryState.DONE, reason, now)
            case Failed(reason):
                log.warning("given up: %s", reason)
                await self._store.finish(numbers, DeliveryState.FAILED, reason, now)
            case Later(reason, seconds):
                attempts = max(delivery.attempts for delivery in group.deliveries)
                pause = seconds if seconds is not None else _pause_seconds(attempts)
                log.info("again in %.0f s: %s", pause, reason)
                await self._store.postpone(numbers, now + pause, reason)


def _question(means: Meaning) -> str:
    match means:
        case MergeRequestChanged(iid=iid):
            return f"merge request {iid}"
        case Deployed(stage=stage):
            return f"deployed {stage.value}"
        case _:
            return means.kind


def _pause_seconds(attempts: int) -> float:
    longest = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(attempts, 12))
    return longest * random.uniform(0.75, 1.25)  # noqa: S311 - jitter, no secret
