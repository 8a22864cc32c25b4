"""The queue of webhooks: what was acknowledged is on disk, once, and acted on in its lane's order.

Exists because a sender that got its 2xx never sends again. Promises that `put` returns after the
commit; that one delivery is stored once however often it comes; that a lane is with one dispatcher
at a time; and that many callers share one commit, so that the disk's latency is paid once.
Refuses to take more than it can write: it says so instead of queueing in memory without end.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from blocks.delivery_store_engines import Engine
from domain.errors import LifecycleError, Unreachable
from domain.webhooks.delivery import Delivery, DeliveryState, Dispatch, Lane, NewDelivery

BATCH_AT_MOST = 256
WAITING_AT_MOST = 4096

Result = TypeVar("Result")

_INSERT = """
INSERT INTO deliveries
    (source, lane, delivery_key, event, content, received_at, state, reason, due_at, finished_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (lane, delivery_key) DO NOTHING RETURNING number
"""
_REVIVE = """
UPDATE deliveries SET state = 'pending', reason = '', attempts = 0, due_at = ?, finished_at = NULL
WHERE lane = ? AND delivery_key = ? AND state = 'failed' RETURNING number
"""
_DUE_LANES = """
SELECT lane FROM deliveries
WHERE state = 'pending' AND due_at <= ? AND source = ?
  AND NOT EXISTS (
      SELECT 1 FROM lanes WHERE lanes.lane = deliveries.lane AND lanes.lease_until > ?)
GROUP BY lane ORDER BY min(number) LIMIT ?
"""
_LEASE = """
INSERT INTO lanes (lane, owner, lease_until) VALUES (?, ?, ?)
ON CONFLICT (lane) DO UPDATE SET owner = excluded.owner, lease_until = excluded.lease_until
WHERE lanes.lease_until <= ? RETURNING lane
"""
_OF_LANE = """
SELECT number, source, lane, content, received_at, attempts FROM deliveries
WHERE state = 'pending' AND lane = ? AND due_at <= ? ORDER BY number LIMIT 500
"""
_DISPATCH = """
INSERT INTO dispatches (scope, marker, generation, name, run_id, tries)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (scope) DO UPDATE SET
    marker = excluded.marker, generation = excluded.generation, name = excluded.name,
    run_id = excluded.run_id, tries = excluded.tries
"""


@dataclass
class _Work:
    act: Callable[[Engine], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


def _settle(work: _Work, result: Any, error: BaseException | None) -> None:
    if work.future.done():
        return
    if error is not None:
        work.future.set_exception(error)
    else:
        work.future.set_result(result)


class DeliveryStore:
    """Asynchronous methods over one thread that owns the connection."""

    def __init__(self, engine: Engine) -> None:
        """Take over the engine and begin to serve."""
        self._engine = engine
        self._waiting: queue.Queue[_Work | None] = queue.Queue(WAITING_AT_MOST)
        if not engine.is_shared:
            # Nobody else can hold a lane: what a killed process held is free at once.
            engine.execute("DELETE FROM lanes")
            engine.commit()
        self._thread = threading.Thread(target=self._serve, name="delivery-store", daemon=True)
        self._thread.start()

    # --- the one writer ----------------------------------------------------------------------

    async def _do(self, act: Callable[[Engine], Result]) -> Result:
        loop = asyncio.get_running_loop()
        work = _Work(act, loop.create_future(), loop)
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            raise Unreachable(
                "Unable to use the store of deliveries: too much waits to be written. "
                "Try again, and check the disk."
            ) from None
        result: Result = await work.future
        return result

    def _serve(self) -> None:
        is_open = True
        while is_open:
            first = self._waiting.get()
            if first is None:
                break
            batch = [first]
            while len(batch) < BATCH_AT_MOST:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    is_open = False
                    break
                batch.append(following)
            self._answer(self._together(batch))
        self._engine.close()

    def _together(self, batch: list[_Work]) -> list[tuple[_Work, Any, BaseException | None]]:
        """Do all in one transaction; when one of them fails, each in one of its own."""
        try:
            results = [work.act(self._engine) for work in batch]
            self._engine.commit()
        except Exception as error:
            self._roll_back()
            if len(batch) == 1:
                return [(batch[0], None, _explained(error))]
            return [answer for work in batch for answer in self._together([work])]
        return [(work, result, None) for work, result in zip(batch, results, strict=True)]

    def _roll_back(self) -> None:
        try:
            self._engine.rollback()
        except LifecycleError:
            # There is no connection yet: the next act fails, is told so, and tries again.
            return

    @staticmethod
    def _answer(answers: list[tuple[_Work, Any, BaseException | None]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Work, Any, Any]]] = {}
        for answer in answers:
            by_loop.setdefault(answer[0].loop, []).append(answer)

        def settle(mine: list[tuple[_Work, Any, Any]]) -> None:
            for work, result, error in mine:
                _settle(work, result, error)

        for loop, mine in by_loop.items():
            try:
                loop.call_soon_threadsafe(settle, mine)
            except RuntimeError:
                # The loop has ended: nobody waits for the answer any more.
                continue

    def close(self) -> None:
        """Finish what waits, then close the database."""
        self._waiting.put(None)
        self._thread.join()

    # --- taking in ---------------------------------------------------------------------------

    async def put(self, new: NewDelivery) -> bool:
        """Store a delivery durably; False when it was there already.

        Raises:
            Unreachable: it is not stored, or nobody knows.
        """

        def act(engine: Engine) -> bool:
            finished_at = None if new.state is DeliveryState.PENDING else new.received_at
            values = (new.source, new.lane, new.key, new.event, new.content, new.received_at)
            values_too = (new.state.value, new.reason, new.received_at, finished_at)
            if engine.execute(_INSERT, (*values, *values_too)):
                return True
            return bool(engine.execute(_REVIVE, (new.received_at, new.lane, new.key)))

        return await self._do(act)

    # --- handing out -------------------------------------------------------------------------

    async def claim(
        self, owner: str, source: str, now: float, *, lanes_at_most: int, lease_seconds: float
    ) -> list[Lane]:
        """Lease lanes that have something due, with all that is due in them."""

        def act(engine: Engine) -> list[Lane]:
            claimed = []
            for (lane,) in engine.execute(_DUE_LANES, (now, source, now, lanes_at_most)):
                if not engine.execute(_LEASE, (lane, owner, now + lease_seconds, now)):
                    continue
                rows = engine.execute(_OF_LANE, (lane, now))
                claimed.append(Lane(lane, tuple(Delivery(*row) for row in rows)))
            return claimed

        return await self._do(act)

    async def release(self, lane: str, owner: str) -> None:
        """Give a lane back."""
        statement = "DELETE FROM lanes WHERE lane = ? AND owner = ?"
        await self._do(lambda engine: engine.execute(statement, (lane, owner)))

    async def finish(
        self, numbers: Sequence[int], state: DeliveryState, reason: str, now: float
    ) -> None:
        """Set deliveries to their end."""
        statement = (
            "UPDATE deliveries SET state = ?, reason = ?, finished_at = ? "
            "WHERE number = ? AND state = 'pending'"
        )

        def act(engine: Engine) -> None:
            for number in numbers:
                engine.execute(statement, (state.value, reason, now, number))

        await self._do(act)

    async def postpone(self, numbers: Sequence[int], until: float, reason: str) -> None:
        """Leave deliveries pending, not due before a moment."""
        statement = (
            "UPDATE deliveries SET due_at = ?, reason = ?, attempts = attempts + 1 "
            "WHERE number = ? AND state = 'pending'"
        )

        def act(engine: Engine) -> None:
            for number in numbers:
                engine.execute(statement, (until, reason, number))

        await self._do(act)

    # --- memory of what was asked of flows -----------------------------------------------------

    async def dispatch(self, scope: str) -> Dispatch | None:
        """Return what a scope was last told to be."""
        statement = (
            "SELECT scope, marker, generation, name, run_id, tries FROM dispatches WHERE scope = ?"
        )
        rows = await self._do(lambda engine: engine.execute(statement, (scope,)))
        return Dispatch(*rows[0]) if rows else None

    async def remember(self, dispatch: Dispatch) -> None:
        """Keep what a scope is told to be; durable when it returns."""
        values = (
            dispatch.scope,
            dispatch.marker,
            dispatch.generation,
            dispatch.name,
            dispatch.run_id,
            dispatch.tries,
        )
        await self._do(lambda engine: engine.execute(_DISPATCH, values))

    async def scopes_of(self, name: str) -> list[str]:
        """Return the scopes that were told to be an application of this name."""
        statement = "SELECT scope FROM dispatches WHERE name = ? ORDER BY scope"
        rows = await self._do(lambda engine: engine.execute(statement, (name,)))
        return [str(row[0]) for row in rows]

    # --- looking and cleaning ------------------------------------------------------------------

    async def pending(self) -> int:
        """Return how many deliveries are not acted on."""
        statement = "SELECT count(*) FROM deliveries WHERE state = 'pending'"
        rows = await self._do(lambda engine: engine.execute(statement))
        return int(rows[0][0])

    async def counts(self) -> Mapping[str, int]:
        """Return how many deliveries are in each state."""
        statement = "SELECT state, count(*) FROM deliveries GROUP BY state"
        rows = await self._do(lambda engine: engine.execute(statement))
        return {str(state): int(count) for state, count in rows}

    async def oldest_pending(self, source: str) -> float | None:
        """Return when the oldest delivery that is not acted on was received."""
        statement = "SELECT min(received_at) FROM deliveries WHERE state = 'pending' AND source = ?"
        rows = await self._do(lambda engine: engine.execute(statement, (source,)))
        return None if rows[0][0] is None else float(rows[0][0])

    async def forget(self, finished_before: float) -> None:
        """Delete what was finished long ago, or was left for so long that nobody wants it."""
        statements = (
            "DELETE FROM deliveries WHERE finished_at < ?",
            "DELETE FROM deliveries WHERE state = 'pending' AND received_at < ? "
            "AND source <> 'gitlab'",
        )

        def act(engine: Engine) -> None:
            for statement in statements:
                engine.execute(statement, (finished_before,))

        await self._do(act)


def _explained(error: Exception) -> Exception:
    if isinstance(error, LifecycleError):
        return error
    unexpected = Unreachable(
        f"Unable to use the store of deliveries: {type(error).__name__}. Read the gateway's log."
    )
    unexpected.__cause__ = error
    return unexpected
