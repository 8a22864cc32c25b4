"""The saga: what may run, what is taken back, and what a run finds that another one left.

The property test drives the machine as the engine does, in a world of sets: every call may be cut
short before, in the middle of, or after its effect, and every run may be killed at any edge.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import Conflict, PermanentError
from domain.onboarding.app_spec import AppSpec, Stage
from domain.onboarding.saga import (
    Act,
    Course,
    Journal,
    Mark,
    Order,
    StepOrder,
    Version,
    after,
    before,
    begin,
    begin_removal,
    is_finished,
    orders,
    pending,
    settle,
    turn_back,
    with_present_tags,
)

STEPS = (
    StepOrder("project"),
    StepOrder("registry"),
    StepOrder("database"),
    StepOrder("tenancy"),
    StepOrder("access", ("project", "registry")),
    StepOrder("secrets", ("tenancy", "registry")),
    StepOrder("files"),
    StepOrder("delivery", ("files", "tenancy", "secrets")),
    StepOrder("edge", ("delivery",)),
)
NAMES = tuple(step.name for step in STEPS)
SPECS = tuple(
    AppSpec.model_validate(
        {
            "name": "shop",
            "team": "storefront",
            "repository": "storefront/shop",
            "owners": ["ada@example.org"],
            "kind": "python",
            "port": port,
            "environments": {"staging": {}},
        }
    )
    for port in (8080, 8081, 8082)
)
VERSIONS = tuple(Version(app=app, project_id=7, tags={Stage.STAGING: "1"}) for app in SPECS)


def _begin(journal: Journal, target: Version = VERSIONS[0], unchanged: tuple[str, ...] = ()):
    return begin(journal, target, "run-1", steps=STEPS, unchanged=unchanged)


def _complete(journal: Journal) -> Journal:
    while not is_finished(journal, STEPS):
        for order in orders(journal, STEPS):
            journal = after(before(journal, [order]), order)
    return journal


def _good(version: Version = VERSIONS[0]) -> Journal:
    settled = settle(_complete(_begin(Journal(name="shop"), version)), STEPS)
    assert settled is not None
    return settled


def test_steps_that_need_nothing_run_first_and_at_once() -> None:
    journal = _begin(Journal(name="shop"))
    first = {order.step for order in orders(journal, STEPS)}
    assert first == {"project", "registry", "database", "tenancy", "files"}


def test_a_step_runs_as_soon_as_all_that_it_needs_is_done() -> None:
    journal = _begin(Journal(name="shop"))
    for name in ("project", "registry"):
        journal = after(before(journal, [Order(name, Act.APPLY)]), Order(name, Act.APPLY))
    assert "access" in {order.step for order in orders(journal, STEPS)}
    assert "secrets" not in {order.step for order in orders(journal, STEPS)}


def test_what_is_under_way_is_not_ordered_again() -> None:
    journal = _begin(Journal(name="shop"))
    assert "project" not in {o.step for o in orders(journal, STEPS, running=["project"])}


def test_a_step_that_was_begun_and_not_done_is_ordered_by_the_next_run() -> None:
    journal = before(_begin(Journal(name="shop")), [Order("project", Act.APPLY)])
    assert Order("project", Act.APPLY) in orders(_begin(journal), STEPS)


def test_a_first_onboarding_that_fails_is_removed_in_the_reverse_order_of_what_was_touched() -> (
    None
):
    journal = _begin(Journal(name="shop"))
    for name in ("project", "registry", "tenancy", "access", "secrets"):
        journal = before(journal, [Order(name, Act.APPLY)])
    journal = turn_back(journal, "secrets failed")
    assert journal.attempt is not None
    assert journal.attempt.course is Course.REMOVE
    first = {order.step for order in orders(journal, STEPS)}
    assert first == {"access", "secrets"}
    for name in first:
        journal = after(journal, Order(name, Act.REMOVE))
    assert {o.step for o in orders(journal, STEPS)} == {"project", "registry", "tenancy"}
    assert settle(_complete(journal), STEPS) is None


def test_a_failed_change_goes_back_to_the_last_good_version() -> None:
    journal = before(_begin(_good(), VERSIONS[1], ("project",)), [Order("registry", Act.APPLY)])
    journal = turn_back(journal, "no quota")
    assert orders(journal, STEPS) == [Order("registry", Act.RESTORE)]
    settled = settle(_complete(journal), STEPS)
    assert settled is not None
    assert (settled.good, settled.attempt) == (VERSIONS[0], None)


def test_what_was_not_touched_is_not_taken_back() -> None:
    journal = turn_back(_begin(Journal(name="shop"), unchanged=("database",)), "refused")
    assert is_finished(journal, STEPS)
    assert settle(journal, STEPS) is None


def test_data_that_was_there_before_a_first_attempt_is_not_removed_with_it() -> None:
    journal = begin(
        Journal(name="shop"),
        VERSIONS[0],
        "run-1",
        steps=STEPS,
        unchanged=(),
        holding_data=["database"],
    )
    journal = turn_back(before(journal, [Order("database", Act.APPLY)]), "failed")
    assert orders(journal, STEPS) == []
    assert is_finished(journal, STEPS)


def test_data_that_a_first_attempt_made_itself_is_removed_with_it() -> None:
    journal = before(_begin(Journal(name="shop")), [Order("database", Act.APPLY)])
    again = begin(
        journal, VERSIONS[0], "run-2", steps=STEPS, unchanged=(), holding_data=["database"]
    )
    assert orders(turn_back(again, "failed"), STEPS) == [Order("database", Act.REMOVE)]


def test_an_off_boarding_removes_every_step_and_does_not_turn_back() -> None:
    journal = begin_removal(_good(), "run-2", steps=STEPS)
    assert turn_back(journal, "unreachable") == journal
    assert [o.step for o in orders(journal, STEPS)] == ["edge", "access", "database"]
    assert settle(_complete(journal), STEPS) is None


def test_an_off_boarding_of_half_a_first_onboarding_knows_its_project() -> None:
    half = before(_begin(Journal(name="shop"), VERSIONS[1]), [Order("project", Act.APPLY)])
    journal = begin_removal(half, "run-2", steps=STEPS, known=VERSIONS[2])
    again = begin_removal(journal, "run-3", steps=STEPS, known=VERSIONS[2])
    assert journal.versions == again.versions == [VERSIONS[1]]


def test_an_off_boarding_without_a_journal_knows_what_it_is_told() -> None:
    journal = begin_removal(Journal(name="shop"), "run", steps=STEPS, known=VERSIONS[2])
    assert journal.versions == [VERSIONS[2]]


def test_an_application_that_comes_back_after_half_an_off_boarding_can_be_restored_as_a_whole() -> (
    None
):
    journal = begin_removal(_good(), "run-2", steps=STEPS)
    journal = after(before(journal, [Order("edge", Act.REMOVE)]), Order("edge", Act.REMOVE))
    journal = turn_back(_begin(journal, VERSIONS[1]), "failed")
    assert set(pending(journal, STEPS)) == set(NAMES)
    settled = settle(_complete(journal), STEPS)
    assert settled is not None
    assert settled.good == VERSIONS[0]


def test_an_attempt_that_is_not_finished_cannot_be_closed() -> None:
    with pytest.raises(Conflict, match="project, registry"):
        settle(_begin(Journal(name="shop")), STEPS)


def test_a_journal_of_a_version_with_other_steps_is_refused() -> None:
    journal = before(_begin(Journal(name="shop")), [Order("mail", Act.APPLY)])
    with pytest.raises(PermanentError, match="mail, which this version does not have"):
        orders(journal, STEPS)


def test_tags_that_a_pipeline_deployed_are_taken_in_unless_an_attempt_is_under_way() -> None:
    tags = {Stage.STAGING: "2"}
    good = with_present_tags(_good(), tags).good
    assert good is not None
    assert good.tags == tags
    under_way = _begin(_good(), VERSIONS[1])
    assert with_present_tags(under_way, tags) == under_way


def test_a_journal_survives_its_own_text() -> None:
    journal = before(_begin(_good(), VERSIONS[1]), [Order("project", Act.APPLY)])
    assert Journal.model_validate_json(journal.model_dump_json()) == journal


# --- every edge ----------------------------------------------------------------------------------

OTHER = frozenset(("other-a", "other-b"))


class Killed(BaseException):
    """SIGKILL."""


class World:
    """Per step: the version that it holds, half a version, or nothing; and things of another."""

    def __init__(self, choices: bytes) -> None:
        self._choices = iter(choices)
        self.holds: dict[str, str] = {}
        self.others = dict.fromkeys(NAMES, OTHER)
        self.stored: Journal | None = None
        self.refusals = 0

    def choose(self) -> int:
        """Zero when the choices are used up: then everything works."""
        return next(self._choices, 0)

    def edge(self) -> None:
        if self.choose() % 11 == 1:
            raise Killed

    def save(self, journal: Journal | None) -> None:
        self.edge()
        self.stored = journal
        self.edge()

    def act(self, order: Order, wanted: str | None) -> None:
        """Do half of it, then the rest; may be killed between, or refused."""
        assert self.stored is not None, f"{order} without a journal"
        assert self.stored.attempt is not None, f"{order} without an attempt"
        noted = self.stored.attempt.marks.get(order.step)
        assert noted in (Mark.BEGUN, Mark.UNDOING), f"{order} was not noted: {noted}"
        self.edge()
        if self.holds.get(order.step) != wanted:
            self.holds[order.step] = "half"
        self.edge()
        if self.choose() % 13 == 1:
            self.refusals += 1
            raise PermanentError(f"Unable to {order.act.value} {order.step}: refused. Look.")
        if wanted is None:
            self.holds.pop(order.step, None)
        else:
            self.holds[order.step] = wanted
        self.edge()


def _state(version: Version) -> str:
    return str(version.app.port)


def _one_run(world: World, target: Version | None) -> None:
    """What the engine does, in the same order."""
    journal = world.stored or Journal(name="shop")
    if target is None:
        journal = begin_removal(journal, "run", steps=STEPS)
    else:
        unchanged = [name for name in NAMES if world.holds.get(name) == _state(target)]
        journal = begin(journal, target, "run", steps=STEPS, unchanged=unchanged)
    world.save(journal)
    while not is_finished(journal, STEPS):
        given = orders(journal, STEPS)
        assert given, f"stuck with {pending(journal, STEPS)}"
        given = given[: 1 + world.choose() % len(given)]
        journal = before(journal, given)
        world.save(journal)
        for order in given:
            try:
                world.act(order, _aim(journal, order))
            except PermanentError as error:
                assert journal.attempt is not None
                if journal.attempt.course is not Course.FORWARD:
                    raise
                journal = turn_back(journal, str(error))
                world.save(journal)
                break
            journal = after(journal, order)
            world.save(journal)
    world.save(settle(journal, STEPS))


def _aim(journal: Journal, order: Order) -> str | None:
    attempt = journal.attempt
    assert attempt is not None
    if order.act is Act.REMOVE:
        return None
    version = attempt.target if order.act is Act.APPLY else journal.good
    assert version is not None
    return _state(version)


def _assert_whole(world: World) -> None:
    """With no attempt open, everything is as the good version wants, or there is nothing."""
    if world.stored is None:
        assert world.holds == {}
    elif world.stored.attempt is None:
        assert world.stored.good is not None
        assert world.holds == dict.fromkeys(NAMES, _state(world.stored.good))
    assert all(things == OTHER for things in world.others.values())


@settings(max_examples=10_000)
@given(st.binary(max_size=160), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_whatever_is_killed_or_refused_the_end_is_all_or_nothing(
    choices: bytes, wishes: list[int]
) -> None:
    world = World(choices)
    for wish in wishes:
        with suppress(Killed, PermanentError):
            _one_run(world, VERSIONS[wish] if wish < len(VERSIONS) else None)
        assert world.stored is not None or world.holds == {}, "half-made without a journal"
        _assert_whole(world)
    world._choices = iter(b"")  # from now on everything works
    target = VERSIONS[wishes[0] % len(VERSIONS)]
    _one_run(world, target)
    assert world.stored is not None
    assert (world.stored.good, world.stored.attempt) == (target, None)
    _assert_whole(world)
    _one_run(world, None)
    assert (world.stored, world.holds) == (None, {})
