"""Runs of other flows: which are under way, starting one, and where one is.

Exists because a flow over many targets starts the flow that is for one, as a person would. Promises
that starting with the same key starts no second run, also after a kill; that what the server
refuses is a `PermanentError` and an answer which does not come a `TemporaryError`; and that waiting
is not starting: each is a call of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.urls import url_for

from domain.errors import NotFound, PermanentError, Unreachable

PAGE = 200
SOON = timedelta(minutes=5)
"""A run that is planned for later than this is not under way."""
STUCK_AFTER = timedelta(minutes=10)
"""A run whose worker is gone stays `Cancelling` for ever; nobody works on it."""

LIVE = (
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
)
SHOWN_CHARACTERS = 600
SERVER_ERROR = 500
TRANSPORT = ("httpx", "httpcore")
"""Libraries that Prefect's client speaks by; their errors say that there was no answer."""


@dataclass(frozen=True)
class LiveRun:
    """A run that has not ended."""

    flow: str
    parameters: Mapping[str, Any]
    url: str
    key: str
    """What it was started with; empty if nobody gave one."""


@dataclass(frozen=True)
class RunLook:
    """Where a run is."""

    is_ended: bool
    is_good: bool
    is_paused: bool
    text: str
    """The last state in words."""
    seconds: float


def live_runs(flow_names: Sequence[str]) -> list[LiveRun]:
    """Return the runs of these flows that wait, run or pause now.

    Raises:
        Unreachable: the server does not answer.
    """
    found: list[LiveRun] = []
    for name in flow_names:
        found += [
            LiveRun(name, run.parameters or {}, run_url(run.id), run.idempotency_key or "")
            for run in _live(name)
            if not (_is_for_later(run) or _is_stuck(run))
        ]
    return found


def _live(flow_name: str) -> list[FlowRun]:
    found: list[FlowRun] = []
    with _explained(f"list the runs of {flow_name}"), get_client(sync_client=True) as client:
        while len(found) % PAGE == 0:
            page = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(LIVE)))
                ),
                limit=PAGE,
                offset=len(found),
            )
            if not page:
                break
            found += page
    return found


def _is_for_later(run: FlowRun) -> bool:
    is_scheduled = run.state is not None and run.state.type is StateType.SCHEDULED
    at = run.expected_start_time
    return bool(is_scheduled and at is not None and at > datetime.now(UTC) + SOON)


def _is_stuck(run: FlowRun) -> bool:
    if run.state is None or run.state.type is not StateType.CANCELLING:
        return False
    return datetime.now(UTC) - run.state.timestamp > STUCK_AFTER


def start_run(
    deployment: str, parameters: Mapping[str, Any], key: str, tags: Sequence[str] = ()
) -> tuple[UUID, str]:
    """Start a deployment as part of the present run; the same key starts no second one.

    Must be called in the flow's own thread. Returns the run's id and where a person sees it.

    Raises:
        NotFound: there is no such deployment. PermanentError: the parameters were refused.
        Unreachable: the server does not answer.
    """
    with _explained(f"start {deployment}"):
        run: Any = run_deployment(
            deployment,
            parameters=dict(parameters),
            idempotency_key=key,
            timeout=0,
            tags=list(tags),
        )
    return run.id, run_url(run.id)


def look_at_run(run_id: UUID) -> RunLook:
    """Return where a run is now.

    Raises:
        NotFound: somebody removed it. Unreachable: the server does not answer.
    """
    with _explained("look at a run"), get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
    state = run.state
    if state is None:
        return RunLook(False, False, False, "", 0.0)
    text = state.message if state.message and not state.is_completed() else state.name
    return RunLook(
        is_ended=state.is_final(),
        is_good=state.is_completed(),
        is_paused=state.is_paused(),
        text=str(text or state.type.value)[:SHOWN_CHARACTERS],
        seconds=run.total_run_time.total_seconds(),
    )


def run_url(run_id: UUID) -> str:
    """Return where a person sees a run; empty where no UI is known."""
    return str(url_for("flow-run", run_id) or "")


@contextmanager
def _explained(act: str) -> Iterator[None]:
    try:
        yield
    except ObjectNotFound as error:
        raise NotFound(
            f"Unable to {act}: Prefect does not know it. Run: infraflows setup --site <file>."
        ) from error
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status < SERVER_ERROR:
            raise PermanentError(
                f"Unable to {act}: Prefect refused it ({status}). Run: infraflows setup --site "
                "<file>, so that server and worker are of one version."
            ) from None
        raise Unreachable(
            f"Unable to {act}: the Prefect server answered {status}. Read its log."
        ) from None
    except Exception as error:
        # The client's own words for a server that does not answer are a RuntimeError.
        is_silence = type(error).__module__.partition(".")[0] in TRANSPORT
        if not (is_silence or isinstance(error, OSError | RuntimeError)):
            raise
        raise Unreachable(
            f"Unable to {act}: no answer of Prefect ({type(error).__name__}). Check the server."
        ) from None
