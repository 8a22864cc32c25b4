"""One Prefect task a step: looking at it, and carrying out what the saga orders.

Promises that an order ends only when what was wanted is what is found, or when nothing is found
any more. Steps go by their names: an instance is no parameter of a task.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.futures import PrefectFuture

from domain.errors import PermanentError
from domain.onboarding.saga import Act, Order
from domain.onboarding.tenant import Tenant
from domain.onboarding.things import Things
from tasks.onboarding import registry
from tasks.onboarding.engine import Ended
from tasks.onboarding.ledger_line import record_line
from tasks.onboarding.step import Step
from tasks.retry_rules import TEMPORARY

SHOWN_AT_MOST = 12


def steps() -> tuple[Step, ...]:
    """Return every step, in the order of work."""
    return registry.STEPS


def step_named(name: str) -> Step:
    """Return one step."""
    for step in steps():
        if step.name == name:
            return step
    raise PermanentError(f"Unable to find the step {name}: there is none of this name. Report it.")


@task(name="look at a step", task_run_name="look at {name}", **TEMPORARY)
def look_at(name: str, tenant: Tenant) -> Things:
    """Return what a step finds of the application."""
    return dict(step_named(name).found(tenant))


@task(name="carry out a step", task_run_name="{act} {name}", **TEMPORARY)
def carry_out(name: str, act: str, tenant: Tenant, plan_hash: str) -> None:
    """Apply or remove, look again, and leave a line in the ledger.

    Raises:
        PermanentError: what is found is not what was wanted; names the things.
    """
    converge_step(step_named(name), act, tenant)
    environment, details = tenant.platform.environment, {"plan": plan_hash}
    record_line(environment, tenant.name, f"{act} {name}", "changed", details)


def converge_step(step: Step, act: str, tenant: Tenant) -> None:
    """Apply or remove, then look again.

    Raises:
        PermanentError: what is found is not what was wanted; names the things.
    """
    name = step.name
    if act == Act.REMOVE:
        step.remove(tenant)
        left = sorted(step.found(tenant))
        if left:
            raise PermanentError(
                f"Unable to remove {name} of {tenant.name}: {_shown(left)} is still there. "
                f"Look into {step.system}, then run again."
            )
        return
    step.apply(tenant)
    wrong = _wrong(step.found(tenant), step.wanted(tenant))
    if wrong:
        raise PermanentError(
            f"Unable to confirm {name} of {tenant.name}: {_shown(wrong)}. "
            f"Find who else changes {step.system}, then run again."
        )


def _wrong(found: Things, wanted: Things) -> list[str]:
    missing = [f"{thing} is missing" for thing in wanted if thing not in found]
    other = [
        f"{thing} is not as wanted"
        for thing, state in wanted.items()
        if thing in found and found[thing] != state
    ]
    left = [f"{thing} is still there" for thing in found if thing not in wanted]
    return missing + other + left


def _shown(texts: list[str]) -> str:
    more = len(texts) - SHOWN_AT_MOST
    return ", ".join(texts[:SHOWN_AT_MOST]) + (f" and {more} more" if more > 0 else "")


class TaskWorkers:
    """Carries orders out as tasks of the run; must be used in the flow's own thread."""

    def __init__(self, plan_hash: str) -> None:
        """Name the plan in each line of the ledger."""
        self._plan_hash = plan_hash

    def start(self, order: Order, tenant: Tenant, tell: Callable[[Ended], None]) -> None:
        """Submit the task; `tell` is called when its last attempt has ended."""
        began = time.monotonic()

        def ended(future: PrefectFuture[Any]) -> None:
            tell(Ended(order, time.monotonic() - began, _error(future)))

        tagged = carry_out.with_options(tags=[f"system:{step_named(order.step).system}"])
        submitted = tagged.submit(order.step, order.act.value, tenant, self._plan_hash)
        submitted.add_done_callback(ended)


def _error(future: PrefectFuture[Any]) -> BaseException | None:
    try:
        found = future.result(raise_on_failure=False)
    except BaseException as error:
        return error
    return found if isinstance(found, BaseException) else None
