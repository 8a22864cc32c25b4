"""The engine on a real journal: killed at every edge, refused at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from domain.errors import Conflict, PermanentError
from tasks.onboarding.engine import step_orders

STEPS = ("project", "database", "access", "delivery")


def test_a_first_run_makes_everything_and_remembers_it(world: Any, version: Any) -> None:
    journal = world.run(version())
    assert world.things() == world.wanted(version())
    assert (journal.good, journal.attempt) == (version(), None)
    assert world.journal() == journal


def test_a_second_run_with_the_same_spec_touches_nothing(world: Any, version: Any) -> None:
    world.run(version())
    refusing = dict.fromkeys(STEPS, ("apply", "remove"))
    assert world.run(version(), fails=refusing).good == version()


def test_an_off_boarding_leaves_nothing_and_no_journal(world: Any, version: Any) -> None:
    world.run(version())
    world.run(None)
    assert (world.things(), world.journal()) == ({}, None)


def test_an_off_boarding_of_what_is_not_there_succeeds(world: Any) -> None:
    world.run(None)
    assert world.journal() is None


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_refused_leaves_nothing_of_a_first_onboarding(
    world: Any, version: Any, step: str
) -> None:
    with pytest.raises(PermanentError, match=rf"(?s){step}: .*it is refused.*All of it was taken"):
        world.run(version(), fails={step: ("apply",)})
    assert (world.things(), world.journal()) == ({}, None)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_refused_on_day_2_brings_the_last_good_version_back(
    world: Any, version: Any, step: str
) -> None:
    world.run(version())
    refusals = iter([True])

    def once(*_: object) -> None:
        if next(refusals, False):
            raise PermanentError(f"Unable to apply {step}: it is refused. Allow it.")

    steps_of = world.steps

    def steps(*arguments: Any) -> Any:
        made = steps_of(*arguments)
        for each in made:
            if each.name == step:
                each._refuse = once
        return made

    world.steps = steps
    with pytest.raises(PermanentError, match="back at its last good version and answers"):
        world.run(version(8081))
    world.steps = steps_of
    assert world.things() == world.wanted(version())
    assert world.journal().attempt is None


def test_an_application_that_does_not_answer_is_taken_back(world: Any, version: Any) -> None:
    def silent(_tenant: object) -> None:
        raise PermanentError("Unable to reach shop.example.org: no answer. Look at its log.")

    with pytest.raises(PermanentError, match=r"(?s)no answer.*All of it was taken back"):
        world.run(version(), verify=silent)
    assert (world.things(), world.journal()) == ({}, None)


@pytest.mark.parametrize("step", ["project", "database", "access"])
def test_what_cannot_be_taken_back_is_named_with_its_system(
    world: Any, version: Any, step: str
) -> None:
    with pytest.raises(PermanentError, match="It could not be taken back either") as caught:
        world.run(version(), fails={"delivery": ("apply",), step: ("remove",)})
    text = str(caught.value)
    assert f"{step}-system ({step}): a-staging, b-production, b-staging" in text
    assert "delivery-system" not in text
    assert world.journal().attempt.marks[step] == "undoing"
    world.run(version())
    assert world.things() == world.wanted(version())


def test_a_removal_that_is_refused_names_what_is_left_and_the_next_run_goes_on(
    world: Any, version: Any
) -> None:
    world.run(version())
    with pytest.raises(PermanentError) as caught:
        world.run(None, fails={"database": ("remove",)})
    assert "database-system (database): " in str(caught.value)
    assert "project-system" not in str(caught.value)
    world.run(None)
    assert (world.things(), world.journal()) == ({}, None)


def test_a_run_that_lost_its_lock_cannot_write_over_the_one_that_took_over(
    world: Any, version: Any
) -> None:
    def meanwhile(_tenant: object) -> None:
        world.run(version(8081))

    with pytest.raises(Conflict, match="another run has taken over"):
        world.run(version(), verify=meanwhile)
    assert world.journal().good == version(8081)
    assert world.things() == world.wanted(version(8081))


def test_a_step_that_needs_a_later_one_is_refused(world: Any) -> None:
    steps = world.steps()
    with pytest.raises(PermanentError, match="access needs project"):
        step_orders(steps[1:])


# --- killed at every edge -------------------------------------------------------------------------


def _every_edge(world: Any, check: Callable[[int], None], count: int) -> None:
    assert count > 20, f"only {count} edges: the matrix does not look at what it should"
    for number in range(count):
        check(number)


def test_a_first_onboarding_killed_anywhere_is_finished_by_the_next_run(
    world: Any, version: Any
) -> None:
    def check(number: int) -> None:
        assert world.killed_run(number, version())
        assert world.journal() is not None or world.things() == {}, "half-made, and no journal"
        world.run(version())
        assert world.things() == world.wanted(version())
        world.clear()

    count = world.edges_of(version())
    world.clear()
    _every_edge(world, check, count)


def test_a_first_onboarding_killed_anywhere_is_finished_with_another_spec(
    world: Any, version: Any
) -> None:
    def check(number: int) -> None:
        assert world.killed_run(number, version())
        world.run(version(8081))
        assert world.things() == world.wanted(version(8081))
        assert world.journal().good == version(8081)
        world.clear()

    count = world.edges_of(version())
    world.clear()
    _every_edge(world, check, count)


def test_a_change_killed_anywhere_can_be_refused_and_comes_back_whole(
    world: Any, version: Any
) -> None:
    world.run(version())
    count = world.edges_of(version(8081))

    def refuse_the_new(tenant: Any) -> None:
        if tenant.app.port != 8080:
            raise PermanentError("Unable to reach shop.example.org: no answer. Look at its log.")

    def check(number: int) -> None:
        world.run(version())
        assert world.killed_run(number, version(8081))
        if world.journal().attempt is None and number > count - 2:
            return  # it was complete when it died
        with pytest.raises(PermanentError, match="back at its last good version and answers"):
            world.run(version(8082), verify=refuse_the_new)
        assert world.things() == world.wanted(version())
        assert world.journal().attempt is None

    _every_edge(world, check, count)


def test_a_taking_back_killed_anywhere_leaves_a_journal_and_then_nothing(
    world: Any, version: Any
) -> None:
    fails = {"delivery": ("apply",)}

    def check(number: int) -> None:
        world.killed_run(number, version(), fails=fails)
        assert world.journal() is not None or world.things() == {}, "half-made, and no journal"
        with pytest.raises(PermanentError, match="All of it was taken back"):
            world.run(version(), fails=fails)
        assert (world.things(), world.journal()) == ({}, None)

    _every_edge(world, check, world.edges_of(version(), fails=fails))


def test_an_off_boarding_killed_anywhere_is_finished_by_the_next(world: Any, version: Any) -> None:
    def check(number: int) -> None:
        world.run(version())
        assert world.killed_run(number, None)
        assert world.journal() is not None or world.things() == {}, "half-removed, and no journal"
        world.run(None)
        assert (world.things(), world.journal()) == ({}, None)

    world.run(version())
    _every_edge(world, check, world.edges_of(None))
