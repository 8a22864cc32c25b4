"""What a nightly run does with each application that is remembered."""

from __future__ import annotations

from domain.onboarding.app_spec import AppSpec
from domain.onboarding.convergence import (
    Convergence,
    End,
    UnderWay,
    convergences,
    problem_text,
)
from domain.onboarding.saga import Attempt, Course, Journal, Version


def version(name: str, port: int = 8080) -> Version:
    app = AppSpec.model_validate(
        {
            "name": name,
            "team": "storefront",
            "repository": f"storefront/{name}",
            "owners": ["ada@example.org"],
            "kind": "python",
            "port": port,
            "environments": {"staging": {}},
        }
    )
    return Version(app=app, project_id=7)


def attempt(target: Version | None, course: Course = Course.FORWARD) -> Attempt:
    return Attempt(target=target, course=course, run_id="0badc0de-1")


def only(journal: Journal, *under_way: UnderWay) -> Convergence:
    (found,) = convergences([journal], {}, under_way)
    return found


def test_an_application_is_brought_to_its_last_good_version() -> None:
    found = only(Journal(name="shop", good=version("shop")))
    assert (found.version, found.end, found.text) == (version("shop"), End.WAITS, "")


def test_a_change_that_was_cut_off_ends_at_the_last_good_version() -> None:
    good, target = version("shop"), version("shop", 9090)
    found = only(Journal(name="shop", good=good, attempt=attempt(target)))
    assert found.version == good
    assert found.text == "finishes what run 0badc0de left"


def test_a_first_onboarding_that_was_cut_off_is_finished() -> None:
    target = version("shop")
    assert only(Journal(name="shop", attempt=attempt(target))).version == target


def test_what_is_being_taken_off_is_never_brought_back() -> None:
    found = only(
        Journal(name="shop", good=version("shop"), attempt=attempt(None, Course.REMOVE)),
    )
    assert found.version is None
    assert found.end is End.FAILED
    assert "offboard-app" in found.text


def test_an_application_that_a_run_is_at_is_left_alone_whatever_its_journal_says() -> None:
    journal = Journal(name="shop", good=version("shop"), attempt=attempt(None, Course.REMOVE))
    found = only(journal, UnderWay("shop", "offboard-app", "https://x/1"))
    assert (found.version, found.end) == (None, End.LEFT)
    assert found.run_url == "https://x/1"


def test_a_journal_that_cannot_be_read_is_told_beside_the_others() -> None:
    good = Journal(name="shop", good=version("shop"))
    found = convergences([good], {"old": "of another version"}, ())
    assert [(each.app, each.end) for each in found] == [("old", End.FAILED), ("shop", End.WAITS)]


def test_every_failure_is_told_at_once_and_no_failure_is_no_text() -> None:
    found = [
        Convergence("a", end=End.FAILED, text="it is full.", run_url="https://x/a"),
        Convergence("b", end=End.CONVERGED),
        Convergence("c", end=End.FAILED, text="no answer."),
        Convergence("d", end=End.APPROVAL),
        Convergence("e", end=End.LEFT),
    ]
    text = problem_text("lab", found)
    assert "2 of 5 applications in lab" in text
    assert "  - a: it is full. (https://x/a)\n  - c: no answer.\n" in text
    assert problem_text("lab", [each for each in found if each.end is not End.FAILED]) == ""
