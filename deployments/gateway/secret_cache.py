"""Secrets of senders, at hand for a moment: OpenBao is not asked for each delivery.

Promises that an answer comes within a time limit, that many who wait for one path ask once, and
that what OpenBao does not know is remembered shortly too. While OpenBao does not answer, what was
known goes on being used for a bounded time. Refuses to serve anything older than that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.gateway.ports import SecretReader
from domain.errors import LifecycleError, NotFound, Unreachable

FRESH_SECONDS = 60.0
ABSENT_SECONDS = 15.0
STALE_SECONDS = 900.0
ENTRIES_AT_MOST = 20_000
THREADS = 8

Secrets = TypeVar("Secrets")


@dataclass(frozen=True)
class _Entry(Generic[Secrets]):
    secrets: Secrets | None
    """None: there are none."""
    at: float


class SecretCache(Generic[Secrets]):
    """Secrets by OpenBao path."""

    def __init__(
        self,
        reader: SecretReader,
        parse: Callable[[Mapping[str, str]], Secrets],
        clock: Callable[[], float],
        timeout_seconds: float,
    ) -> None:
        """Use `parse` to make the secrets of what lies under a path."""
        self._reader = reader
        self._parse = parse
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._entries: OrderedDict[str, _Entry[Secrets]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Entry[Secrets]]] = {}
        # Of its own: threads that hang on OpenBao must not keep others from working.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="secrets")

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def is_at_hand(self, path: str) -> bool:
        """True when a look at the path does not go to OpenBao."""
        entry = self._entries.get(path)
        return entry is not None and self._age(entry) < self._lifetime(entry)

    def age(self, path: str) -> float:
        """Return how many seconds ago a path was read."""
        entry = self._entries.get(path)
        return float("inf") if entry is None else self._age(entry)

    async def get(self, path: str, *, is_anew: bool = False) -> Secrets:
        """Return the secrets of a path.

        Raises:
            NotFound: there are none. Unreachable: OpenBao does not answer, or with nothing usable.
        """
        entry = self._entries.get(path)
        if entry is None or is_anew or self._age(entry) >= self._lifetime(entry):
            entry = await self._ask(path, entry)
        if entry.secrets is None:
            raise NotFound(f"Unable to find {path}: there is no such secret. Connect the project.")
        return entry.secrets

    def _age(self, entry: _Entry[Secrets]) -> float:
        return self._clock() - entry.at

    @staticmethod
    def _lifetime(entry: _Entry[Secrets]) -> float:
        return ABSENT_SECONDS if entry.secrets is None else FRESH_SECONDS

    async def _ask(self, path: str, known: _Entry[Secrets] | None) -> _Entry[Secrets]:
        task = self._asking.get(path)
        if task is None:
            task = asyncio.create_task(self._read(path))
            self._asking[path] = task
            task.add_done_callback(lambda _: self._asking.pop(path, None))
        try:
            # Shielded: whoever else waits for it still gets it when this one gives up.
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.shield(task)
        except (LifecycleError, TimeoutError) as error:
            if known is not None and known.secrets and self._age(known) < STALE_SECONDS:
                return known
            raise Unreachable(
                f"Unable to read {path}: OpenBao gives no usable answer. Check it, and the secret."
            ) from error

    async def _read(self, path: str) -> _Entry[Secrets]:
        loop = asyncio.get_running_loop()
        at = self._clock()
        secrets: Secrets | None = None
        try:
            values = await loop.run_in_executor(self._threads, self._reader.read, path)
            secrets = self._parse(values)
        except NotFound:
            secrets = None
        except ValueError as error:
            # A person wrote it wrongly; an unusable secret proves nothing.
            raise Unreachable(f"Unable to use {path}: it {error}. Correct it.") from None
        entry = _Entry(secrets, at)
        self._entries.pop(path, None)
        self._entries[path] = entry
        if len(self._entries) > ENTRIES_AT_MOST:
            self._entries.popitem(last=False)
        return entry
