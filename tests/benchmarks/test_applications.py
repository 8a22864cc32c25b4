"""What the benchmark's page says of applications at once follows from its figures alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.__main__ import PAGE
from benchmarks.applications import FIGURES
from benchmarks.applications_figures import (
    BEGIN,
    END,
    NOT_MEASURED,
    AppResults,
    AppTimes,
    Failures,
    Together,
    applications_section,
    read_applications,
    with_applications_section,
)
from benchmarks.applications_look import Seen
from benchmarks.applications_picture import applications_picture
from benchmarks.applications_runs import Team, most_at_once, names
from benchmarks.results import Machine
from blocks.app_file import read_app_file

MACHINE = Machine(
    cores=2,
    memory_gib=24.0,
    kernel="6.1.0",
    architecture="x86_64",
    measured_on="2026-11-27",
    versions={"prefect": "3.9.1"},
)


def app(number: int, run_seconds: float, *, has_database: bool = False) -> AppTimes:
    return AppTimes(
        name=f"app{number:03d}",
        has_database=has_database,
        push_seconds=1.0,
        hook_seconds=0.5,
        queue_seconds=3.0,
        run_seconds=run_seconds,
        steps={"dns": 0.4, **({"postgresql-database": 2.0} if has_database else {})},
        phases={"apply": run_seconds},
        offboard_seconds=10.0,
    )


def together(count: int, wall: float, failures: Failures | None = None) -> Together:
    return Together(
        apps=[app(n, 20.0 + n, has_database=n % 4 == 0) for n in range(1, count + 1)],
        most_runs_at_once=min(count, 8),
        load_average=0.5,
        wall_seconds=wall,
        offboard_wall_seconds=2 * wall,
        failures=failures or Failures(),
    )


def results(*sets: Together) -> AppResults:
    return AppResults(machine=MACHINE, sets=list(sets))


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_table_tells_each_number_of_applications_in_order() -> None:
    told = rows(applications_section(results(together(20, 300.0), together(1, 30.0))))
    assert told["seconds"] == ["1 application", "20 applications"]
    assert told["push to Completed, median"] == ["25.5", "35.0"]
    assert told["push to Completed, slowest"] == ["25.5", "44.5"]
    assert told["– Prefect's queue, median"] == ["3.0", "3.0"]
    assert told["**first push to last Completed**"] == ["30.0", "300.0"]
    assert told["… for each application"] == ["30.0", "15.0"]
    assert told["with a database"] == ["0", "5"]
    assert told["runs at once, at most"] == ["1", "8"]


def test_a_step_that_few_applications_have_is_told_of_those() -> None:
    told = rows(applications_section(results(together(1, 30.0), together(20, 300.0))))
    assert told["`postgresql-database`"] == ["–", "2.0"]
    assert told["`dns`"] == ["0.4", "0.4"]


def test_growth_is_told_from_the_smallest_to_the_largest() -> None:
    text = applications_section(results(together(1, 30.0), together(20, 315.0)))
    assert "20 times as many applications take 10.5 times as long" in text
    assert "15 s and 15.0 s for each application" in text
    assert "does not show how time grows" in applications_section(results(together(1, 30.0)))


def test_every_kind_of_failure_is_counted_and_told() -> None:
    failures = Failures(
        not_synced=1, wrong_answers=10, named_by_others=100, unequal_quotas=1000, left=10000
    )
    assert failures.count == 11111
    told = rows(applications_section(results(together(1, 1.0, failures))))
    assert told["left after the off-boarding"] == ["10000"]
    assert told["host names with a wrong answer"] == ["10"]


def test_only_what_lies_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    written = with_applications_section(page, results(together(1, 30.0)))
    assert written.startswith(f"before\n{BEGIN}\n")
    assert written.endswith(f"{END}\nafter\n")
    assert "old\n" not in written
    assert with_applications_section(written, None) == (
        f"before\n{BEGIN}\n\n{NOT_MEASURED}\n\n{END}\nafter\n"
    )


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}\n{BEGIN}"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="Restore them"):
        with_applications_section(page, None)


def test_the_committed_page_is_what_the_committed_figures_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_applications_section(page, read_applications(FIGURES)) == page


def test_figures_are_read_as_they_were_stored(tmp_path: Path) -> None:
    results(together(5, 30.0)).store(tmp_path / "new" / "apps.json")
    assert read_applications(tmp_path / "new" / "apps.json") == results(together(5, 30.0))
    assert read_applications(tmp_path / "none.json") is None


@pytest.mark.parametrize("has_database", [False, True])
def test_every_app_file_is_one_that_the_gateway_takes(has_database: bool) -> None:
    team = Team("set200-app200", 7, has_database)
    spec = read_app_file(team.app_file(), repository="storefront/set200-app200")
    assert (spec.name, spec.image is None) == ("set200-app200", False)
    assert (spec.database is not None) is has_database


def test_no_application_has_a_name_that_is_a_part_of_another() -> None:
    every = [name for count in (1, 5, 20, 200) for name in names(count)]
    assert len(set(every)) == len(every)
    assert not [(a, b) for a in every for b in every if a != b and a in b]


def test_a_thing_that_names_another_application_is_found_in_both_spellings() -> None:
    seen = Seen()
    seen.texts["set5-app001"] = {"OpenBao policy": "path apps/set5-app002", "Harbor": "set5-app001"}
    seen.texts["set5-app002"] = {"PostgreSQL": "set5_app001_development", "Harbor": "set5-app002"}
    assert seen.strangers() == [
        "OpenBao policy of set5-app001 names set5-app002",
        "PostgreSQL of set5-app002 names set5-app001",
    ]


def test_what_is_left_of_an_application_is_found_in_both_spellings() -> None:
    seen = Seen(names={"PostgreSQL": ["postgres", "set1_app001"], "DNS": ["shop", "set1-app001"]})
    assert seen.left(["set1-app001"]) == ["PostgreSQL: set1_app001", "DNS: set1-app001"]
    assert seen.left(["set1-app002"]) == []


def test_quotas_are_compared_within_each_group_and_must_be_there() -> None:
    seen = Seen(quotas={"a": "1", "b": "1", "c": "2", "d": ""})
    assert seen.unequal_quotas([["a", "b"], ["c"]]) == 0
    assert seen.unequal_quotas([["a", "b", "c"]]) == 1
    assert seen.unequal_quotas([["d"]]) == 1


def test_runs_that_follow_each_other_are_not_at_once() -> None:
    times = [("00", "10"), ("05", "20"), ("10", "30"), ("25", "40")]
    runs = [
        {"start_time": f"2026-11-27T10:00:{a}+00:00", "end_time": f"2026-11-27T10:00:{b}+00:00"}
        for a, b in times
    ]
    assert most_at_once(runs) == 2
    assert most_at_once(runs[:1]) == 1


def test_a_longer_time_is_a_longer_line() -> None:
    svg = applications_picture(results(together(20, 300.0), together(1, 30.0), together(5, 75.0)))
    lines = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}line")
    lengths = [float(line.attrib["x2"]) - float(line.attrib["x1"]) for line in lines]
    assert lengths[1] / lengths[0] == pytest.approx(2.5, abs=0.05)
    assert lengths[2] / lengths[0] == pytest.approx(10.0, abs=0.1)
    assert "script" not in svg
    assert "href" not in svg
