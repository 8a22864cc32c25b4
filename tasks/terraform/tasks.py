"""The steps that plan, make and unmake a cluster's machines.

Promises that what is applied is the plan with the hash that was approved, or what remained of it
after a failure that passed, and nothing else. Refuses to apply when the site has changed since.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from prefect import task
from prefect.logging import get_run_logger

from blocks.proxmox import connected
from blocks.tofu import Progress
from domain.adoption import StateEntry
from domain.errors import Conflict, LifecycleError, TemporaryError
from domain.ownership import pool_comment
from domain.specs import ClusterSpec
from domain.tofu_plan import Action, ClusterPlan, parse_plan
from tasks.retry_rules import TEMPORARY
from tasks.terraform.leftovers import settle
from tasks.terraform.workspace import Opened, find_template, opened

TAGS = ["system:tofu"]
APPLY_ROUNDS = 6
PAUSE_SECONDS = 2.0
ONCE = {**TEMPORARY, "retries": 0}
"""An apply goes on by itself, from a plan that is made anew; repeating it blindly would not."""


@dataclass(frozen=True)
class ApplyResult:
    """What an apply did."""

    created: int
    changed: int
    destroyed: int
    rounds: int
    """1 when nothing had to be tried again."""
    seconds: float
    seconds_by_machine: dict[str, float]


@task(name="make the pool", tags=["system:proxmox"], **TEMPORARY)
def ensure_pool(environment: str, spec: ClusterSpec) -> bool:
    """Make the cluster's pool; return False when it existed."""
    return connected(environment).create_pool(spec.proxmox.pool, pool_comment(spec.name))


@task(name="settle leftovers", tags=TAGS, **TEMPORARY)
def adopt_or_clear(environment: str, spec: ClusterSpec) -> list[str]:
    """Adopt or remove what a run that was cut short has left; return one sentence for each."""
    with opened(environment, spec) as place:
        return settle(spec, place)


@task(name="plan the machines", tags=TAGS, **TEMPORARY)
def plan(environment: str, spec: ClusterSpec, destroy: bool = False) -> ClusterPlan:
    """Plan, and keep the plan under its hash for `apply`."""
    with opened(environment, spec) as place:
        if not destroy:
            find_template(spec, place.api)
        return _plan(place, destroy=destroy)


def _plan(place: Opened, *, destroy: bool) -> ClusterPlan:
    path, document = place.tofu.plan(destroy=destroy)
    made = parse_plan(document)
    place.tofu.keep_plan(path, made.plan_hash)
    return made


def _is_destroy(made: ClusterPlan) -> bool:
    return bool(made.rows) and all(row.action is Action.DESTROY for row in made.changed_rows)


def _approved(place: Opened, plan_hash: str) -> ClusterPlan:
    """Return the plan with this hash: the kept one, or the same made again.

    A worker that was replaced during an approval has no kept plan; what counts is what it does.
    """
    path = place.tofu.kept_plan(plan_hash)
    if path.exists():
        made = parse_plan(place.tofu.show(path))
        if made.plan_hash == plan_hash:
            return made
    for destroy in (False, True):
        made = _plan(place, destroy=destroy)
        if made.plan_hash == plan_hash:
            return made
    raise Conflict(
        f"Unable to apply the plan {plan_hash[:12]}: the site has changed, and planning now gives "
        f"another one ({made.plan_hash[:12]}). Run again, look at the new plan and approve that."
    )


@task(name="apply the plan", tags=TAGS, **ONCE)
def apply(environment: str, spec: ClusterSpec, plan_hash: str) -> ApplyResult:
    """Apply the plan with this hash; after a failure that may pass, finish what remains of it.

    Raises:
        Conflict: the plan that exists has another hash, or what remains is not within it.
    """
    started = time.monotonic()
    seconds: dict[str, float] = {}
    approved: ClusterPlan | None = None
    rounds = 0
    while True:
        rounds += 1
        try:
            with opened(environment, spec) as place:
                if approved is None:
                    remaining = approved = _approved(place, plan_hash)
                else:
                    remaining = _remainder(spec, place, approved)
                if not remaining.is_empty:
                    path = place.tofu.kept_plan(remaining.plan_hash)
                    place.tofu.apply(
                        path, parallelism=place.parallelism, on_progress=_tell(seconds)
                    )
            return _result(approved, rounds, time.monotonic() - started, seconds)
        except LifecycleError as error:
            if not isinstance(error, TemporaryError) or rounds >= APPLY_ROUNDS:
                _tell_what_is_left(environment, spec)
                raise
            get_run_logger().warning("Round %d of the apply failed, going on: %s", rounds, error)
        time.sleep(PAUSE_SECONDS * rounds)


def _result(
    approved: ClusterPlan, rounds: int, total_seconds: float, seconds: dict[str, float]
) -> ApplyResult:
    counts = approved.counts
    replaced = counts.get(Action.REPLACE, 0)
    return ApplyResult(
        created=counts.get(Action.CREATE, 0) + replaced,
        changed=counts.get(Action.UPDATE, 0),
        destroyed=counts.get(Action.DESTROY, 0) + replaced,
        rounds=rounds,
        seconds=total_seconds,
        seconds_by_machine=seconds,
    )


def _remainder(spec: ClusterSpec, place: Opened, approved: ClusterPlan) -> ClusterPlan:
    """Plan what is left of an approved plan after a failure."""
    destroy = _is_destroy(approved)
    if not destroy:
        settle(spec, place)
    remaining = _plan(place, destroy=destroy)
    if not remaining.is_remainder_of(approved):
        raise Conflict(
            f"Unable to finish the plan {approved.plan_hash[:12]}: what remains is not within it. "
            "Run again, look at the new plan and approve that."
        )
    return remaining


def _tell_what_is_left(environment: str, spec: ClusterSpec) -> None:
    """Clear what a failed apply left half-made, and name what is left; never hide its error."""
    logger = get_run_logger()
    try:
        with opened(environment, spec) as place:
            settle(spec, place)
            made = ", ".join(sorted(place.tofu.state_machines())) or "none"
    except LifecycleError as error:
        logger.error("What the apply left could not be settled: %s", error)
    else:
        logger.error("The apply failed. Machines that exist and are in the state: %s.", made)


def _tell(seconds: dict[str, float]) -> Callable[[Progress], None]:
    logger = get_run_logger()

    def tell(event: Progress) -> None:
        if event.stage == "start":
            logger.info("%s: %s begins.", event.address, event.action)
        elif event.stage == "complete":
            seconds[event.address] = event.seconds
            logger.info("%s: %s took %.0f s.", event.address, event.action, event.seconds)
        elif event.stage == "errored":
            logger.warning("%s: %s failed.", event.address, event.action)

    return tell


@task(name="read the state", tags=TAGS, **TEMPORARY)
def read_state_machines(environment: str, spec: ClusterSpec) -> dict[str, StateEntry]:
    """Return the machines that the state holds, by name."""
    with opened(environment, spec) as place:
        return place.tofu.state_machines()


@task(name="look for what is left in the state", tags=TAGS, **TEMPORARY)
def state_resources_left(environment: str, spec: ClusterSpec) -> list[str]:
    """Return the names of what the state still holds."""
    with opened(environment, spec) as place:
        return sorted(place.tofu.state_machines())


@task(name="remove the state", tags=TAGS, **TEMPORARY)
def remove_state(environment: str, spec: ClusterSpec) -> bool:
    """Remove a state that holds nothing any more; return False when it was absent."""
    with opened(environment, spec) as place:
        return place.tofu.remove_state(place.state_credential)
