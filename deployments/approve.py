"""Answering a run that waits at its gate, from the command line.

The same form is in the UI. Promises that an answer that the server refuses is an error: a refused
resume is an HTTP success with the word REJECT in its body.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from domain.errors import Conflict, NotFound


def _paused_run(client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    try:
        run = client.read_flow_run(run_id)
    except ObjectNotFound as error:
        raise NotFound(
            f"Unable to answer run {run_id}: there is no such run. List them: infraflows runs."
        ) from error
    if run.state is None or not run.state.is_paused():
        name = run.state.name if run.state else "Unknown"
        raise Conflict(
            f"Unable to answer run {run_id}: it does not wait, it is {name}. Nothing was sent."
        )
    return run


def shown_plan_hash(run_id: UUID) -> str:
    """Return the hash of the plan that a paused run shows.

    Raises:
        NotFound: no such run, or it shows no plan. Conflict: it does not wait.
    """
    with get_client(sync_client=True) as client:
        run = _paused_run(client, run_id)
        keyset = run.state.state_details.run_input_keyset if run.state else None
        schema = _input(client, run_id, keyset["schema"]) if keyset else {}
    found = schema.get("properties", {}).get("plan_hash", {}).get("default")
    if not found:
        raise NotFound(f"Unable to answer run {run_id}: it shows no plan. Answer it in the UI.")
    return str(found)


def _input(client: SyncPrefectClient, run_id: UUID, key: str) -> dict[str, Any]:
    answer = client._client.get(f"/flow_runs/{run_id}/input/{key}")
    answer.raise_for_status()
    content = answer.json() if isinstance(answer.json(), dict) else json.loads(answer.json())
    return dict(content)


def answer(run_id: UUID, *, approve: bool, plan_hash: str, approver: str) -> None:
    """Send the approval or the rejection of the plan with `plan_hash`.

    Raises:
        Conflict: the run does not wait any more, or the server refused the answer.
    """
    with get_client(sync_client=True) as client:
        _paused_run(client, run_id)
        result = client.resume_flow_run(
            run_id,
            run_input={"approve": approve, "plan_hash": plan_hash, "approved_by": approver},
        )
    if result.status.value != "ACCEPT":
        reason = getattr(result.details, "reason", None) or "no reason was given"
        raise Conflict(f"Unable to answer run {run_id}: the server refused it: {reason}.")
