"""When a task is tried again: only for what may pass by itself.

Promises that a `TemporaryError` is retried a bounded number of times with jitter, and that every
other error ends the task at its first occurrence. Refuses to retry for other reasons: a retry
that cannot help hides the cause and costs the operator's time.
"""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from domain.errors import TemporaryError

RETRIES = 5
DELAYS_SECONDS = [1.0, 2.0, 5.0, 10.0, 20.0]
JITTER_FACTOR = 0.5


def is_temporary(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return True when the failed state holds an error that may pass by itself."""
    try:
        state.result()
    except TemporaryError:
        return True
    except BaseException:  # the state's own error, whatever it is, is what is being classified
        return False
    return False


TEMPORARY: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": DELAYS_SECONDS,
    "retry_jitter_factor": JITTER_FACTOR,
    "retry_condition_fn": is_temporary,
    "persist_result": False,
    "cache_policy": NO_CACHE,
}
"""Keyword arguments of `@task` for a step on an outside system."""
