"""An `app.yaml` is read as its author meant it, or refused with every problem and its line."""

from __future__ import annotations

import copy
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.app_file import SIZE_AT_MOST, read_app_file
from domain.onboarding.app_problems import AppProblem, InvalidAppFile, comment
from domain.onboarding.app_reading import parse_app
from domain.onboarding.app_spec import EXAMPLE_APP, AppSpec, Stage

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "bad_apps.yaml").read_text(encoding="utf-8")
)
GOOD = yaml.safe_dump(EXAMPLE_APP)
LIMIT_SECONDS = 10.0


def refusal(text: str) -> InvalidAppFile:
    with pytest.raises(InvalidAppFile) as caught:
        read_app_file(text, repository="storefront/shop")
    return caught.value


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_a_bad_file_is_refused_with_every_problem_and_its_line(case: dict[str, Any]) -> None:
    assert [str(problem) for problem in refusal(case["file"]).problems] == case["problems"]


def test_there_are_at_least_thirty_bad_files_and_no_two_are_the_same() -> None:
    assert len(CASES) >= 30
    assert len({case["file"] for case in CASES}) == len(CASES)


def test_every_problem_names_line_and_field_and_what_to_do() -> None:
    for case in CASES:
        for problem in case["problems"]:
            line, field, rest = problem.split(": ", 2)
            assert line.startswith("line ")
            assert field
            assert ". " in rest or rest == "missing. Add it", problem


def test_the_example_is_read_as_it_is_written() -> None:
    assert read_app_file(GOOD, repository="storefront/shop") == parse_app(EXAMPLE_APP)


def test_the_repository_is_filled_in_from_the_project() -> None:
    text = yaml.safe_dump({k: v for k, v in EXAMPLE_APP.items() if k != "repository"})
    assert read_app_file(text, repository="group/sub/project").repository == "group/sub/project"


def test_words_that_yaml_once_took_for_truths_are_words() -> None:
    text = GOOD.replace("team: storefront", "team: yes")
    assert read_app_file(text, repository="storefront/shop").team == "yes"


def test_an_amount_of_processor_may_be_a_number() -> None:
    text = GOOD + "resources: {cpu: 2, cpu_limit: 2.5}\n"
    resources = read_app_file(text).resources
    assert (resources.cpu, resources.cpu_limit) == ("2", "2.5")


def test_a_file_that_is_too_large_is_not_read() -> None:
    error = refusal(GOOD + "#" * SIZE_AT_MOST)
    assert len(error.problems) == 1
    assert "Use at most 16384" in error.problems[0]


def test_a_secret_that_was_written_into_the_file_is_never_repeated() -> None:
    for case in CASES:
        if "hunter2" in case["file"]:
            error = refusal(case["file"])
            assert "hunter2" not in comment(error) + str(error)


@pytest.mark.parametrize(
    "text",
    [
        "[" * SIZE_AT_MOST,
        "{a: " * (SIZE_AT_MOST // 4),
        "- " * (SIZE_AT_MOST // 2),
        "a: 1\n" * (SIZE_AT_MOST // 5),
        "? " * (SIZE_AT_MOST // 2),
        "!" * SIZE_AT_MOST,
        '"' + "\\" * (SIZE_AT_MOST - 2),
        "a: |\n" + " x\n" * (SIZE_AT_MOST // 3 - 9),
        "&a " * (SIZE_AT_MOST // 3),
    ],
    ids=["lists", "groups", "entries", "twice", "keys", "tags", "escapes", "block", "anchors"],
)
def test_no_file_of_the_allowed_size_takes_long(text: str) -> None:
    began = time.monotonic()
    refusal(text)
    assert time.monotonic() - began < LIMIT_SECONDS


def read_or_refuse(text: str) -> AppSpec | InvalidAppFile:
    try:
        return read_app_file(text, repository="storefront/shop")
    except InvalidAppFile as error:
        lines = text.count("\n") + 1
        for problem in error.problems:
            assert problem.line is not None
            assert 1 <= problem.line <= lines
        rendered = comment(error)
        assert "@" not in rendered.replace("@\u200b", "")
        return error


@given(st.text(max_size=300))
def test_no_text_makes_it_fall(text: str) -> None:
    read_or_refuse(text)


YAMLISH = st.lists(
    st.sampled_from(
        [
            *"{}[]:,&*!|>'\"%@`#?- \n\t",
            "\n  ",
            "name: ",
            "a",
            "1",
            "~",
            "<<: ",
            "---\n",
            "\u2028",
            "\r",
            "\r\n",
        ]
    ),
    max_size=60,
).map("".join)


@settings(max_examples=300)
@given(YAMLISH)
def test_no_mixture_of_yamls_own_signs_makes_it_fall(text: str) -> None:
    read_or_refuse(text)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**20), st.floats(), st.text(max_size=20)),
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.text(max_size=8), below, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from([*AppSpec.model_fields, "unknown"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(FIELDS, VALUES, max_size=5))
def test_any_value_in_any_field_gets_a_sentence(change: dict[str, Any]) -> None:
    found = read_or_refuse(yaml.safe_dump({**copy.deepcopy(EXAMPLE_APP), **change}))
    if isinstance(found, InvalidAppFile):
        for problem in found.problems:
            assert ". " in problem.text, problem
            assert "Input should" not in problem.text, problem
            assert "Value error" not in problem.text, problem


def test_whatever_is_right_survives_a_round_trip() -> None:
    app = parse_app({**EXAMPLE_APP, "resources": {"cpu": 1}, "database": {}})
    assert AppSpec.model_validate(app.model_dump(mode="json")) == app
    assert app.stages == [Stage.DEVELOPMENT, Stage.STAGING, Stage.PRODUCTION]


# --- the comment -----------------------------------------------------------------------------


def test_the_comment_links_every_line() -> None:
    error = refusal(GOOD.replace("port: 8080", "port: 80"))
    text = comment(error, "https://gitlab.example.org/storefront/shop/-/blob/abc/app.yaml")
    assert text == (
        "**app.yaml cannot be used: 1 problem.** Nothing was changed.\n"
        "\n"
        "| Line | Field | Problem |\n"
        "| ---: | --- | --- |\n"
        "| [10](https://gitlab.example.org/storefront/shop/-/blob/abc/app.yaml#L10) | port | "
        "80 is too small. Use at least 1024. |\n"
        "\n"
        "Correct them in one commit; the file is read again when it is pushed.\n"
    )


@pytest.mark.parametrize(
    "value",
    ["@all", "<img src=x>", "[x](https://evil.example.org)", "`a`|b|c", "x\\n/close", "~label #1"],
)
def test_what_a_file_says_does_nothing_in_the_comment(value: str) -> None:
    text = comment(refusal(GOOD.replace("kind: python", f"kind: {value!r}")))
    row = next(line for line in text.splitlines() if "| kind |" in line)
    assert "@all" not in row
    for sign in "<>[]`|~#":
        assert f"\\{sign}" in row or sign not in row.replace("| ", "").replace(" |", "")
    assert not any(line.startswith("/") for line in text.splitlines())


def test_a_comment_has_an_end() -> None:
    error = refusal("".join(f"x{number}: 1\n" for number in range(100)))
    text = comment(error)
    assert len(text.splitlines()) < 60
    assert "more are not shown" in text


def test_an_error_may_leave_its_process() -> None:
    error = refusal("name: Shop\n")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, of this process
    assert again.problems == error.problems
    assert [p.line for p in again.problems] == [p.line for p in error.problems]
    assert isinstance(copy.deepcopy(error.problems[0]), AppProblem)
