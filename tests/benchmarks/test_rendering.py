"""The benchmark's page and picture follow from its figures alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.figures import growth, least_squares, mean, mean_overhead, overhead
from benchmarks.picture import bare_parts, flow_parts, stacked_bars
from benchmarks.rendering import BEGIN, END, NOT_MEASURED, section, table, with_section
from benchmarks.results import PHASES, FlowTimes, Machine, Memory, Results, Round, Size
from benchmarks.sizes import SIZES, spec
from domain.machines import machines
from domain.specs import parse_spec

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def flow(configure_seconds: float) -> FlowTimes:
    phases = dict.fromkeys(PHASES, 1.0) | {"configure": configure_seconds, "apply": 8.0}
    return FlowTimes(start_seconds=3.0, phases=phases, whole_seconds=sum(phases.values()) + 4.0)


def round_(configure_seconds: float, bare_configure_seconds: float) -> Round:
    return Round(
        first="flow",
        bootstrap=flow(configure_seconds),
        unchanged=flow(5.0),
        decommission=flow(0.0),
        bare={
            "init": 0.5,
            "plan": 0.5,
            "apply": 8.0,
            "wait": 2.0,
            "configure": bare_configure_seconds,
            "destroy": 3.0,
        },
    )


def size(servers: int, workers: int, *rounds: Round) -> Size:
    memory = Memory(
        prefect_server=250.0,
        worker=100.0,
        flow_process=180.0,
        flow_programs=300.0,
        lab_services=400.0,
        guests=500.0 * (servers + workers),
    )
    return Size(servers=servers, workers=workers, rounds=list(rounds), memory=memory)


@pytest.fixture
def results() -> Results:
    return Results(
        machine=Machine(
            cores=2,
            memory_gib=24.0,
            kernel="6.1.0",
            architecture="x86_64",
            measured_on="2026-11-27",
            versions={"Prefect": "3.9.1"},
        ),
        start_samples_seconds=[4.0, 3.0, 9.0, 3.5, 3.2],
        # Given out of order on purpose.
        sizes=[
            size(3, 2, round_(50.0, 50.0), round_(54.0, 50.0)),
            size(1, 0, round_(30.0, 20.0)),
        ],
    )


def test_least_squares_finds_the_line_that_points_lie_on() -> None:
    assert least_squares([(1, 12.0), (3, 16.0), (10, 30.0)]) == pytest.approx((10.0, 2.0))


def test_least_squares_goes_between_points_that_lie_on_no_line() -> None:
    assert least_squares([(0, 0.0), (1, 3.0), (2, 3.0)]) == pytest.approx((0.5, 1.5))


@pytest.mark.parametrize("points", [[], [(3, 1.0)], [(3, 1.0), (3, 2.0)]])
def test_one_size_has_no_slope(points: list[tuple[float, float]]) -> None:
    assert least_squares(points) is None


def test_overhead_compares_the_shared_phases_only() -> None:
    # flow: plan 1 + apply 8 + configure 11 = 20; bare: 0.5 + 0.5 + 8 + 11 = 20.
    assert overhead(round_(11.0, 11.0)) == pytest.approx(0.0)
    assert overhead(round_(13.0, 11.0)) == pytest.approx(0.1)


def test_a_long_round_weighs_more_in_the_mean_overhead() -> None:
    # (20 + 110) / (20 + 100) - 1; the mean of the two rounds' shares would be 5 per cent.
    measured = size(1, 0, round_(11.0, 11.0), round_(101.0, 91.0))
    assert mean_overhead(measured) == pytest.approx(130 / 120 - 1)


def test_growth_is_seconds_for_each_further_node(results: Results) -> None:
    line = growth(results.sizes, lambda s: mean(s, lambda r: r.bootstrap.phases["configure"]))
    assert line == pytest.approx((30.0 - 5.5, 5.5))  # 30 s at one node, 52 s at five


def test_the_section_tells_the_measured_figures(results: Results) -> None:
    text = section(results)
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    }
    assert rows["configure"] == ["30.0", "52.0", "5.5"]
    assert rows["configure / playbook"] == ["30.0 / 20.0", "52.0 / 50.0"]
    assert rows["**sum**"] == ["39.0 / 29.0", "61.0 / 59.0"]
    assert rows["**overhead** (goal: under +10 %)"] == ["+34.5 %", "+3.4 %"]
    assert rows["overhead, round by round"] == ["–", "+0.0 % to +6.8 %"]
    assert rows["whole bare, with its wait"] == ["31.0", "61.0"]
    assert rows["for each guest"] == ["500", "500"]
    assert "5 samples: median 3.5 s, least 3.0 s, most 9.0 s" in text
    assert "5 nodes take 1.7 times as long as 1" in text
    assert "missed at these numbers of nodes: 1 (+34.5 %)" in text


def test_the_goal_is_called_met_only_when_every_size_meets_it(results: Results) -> None:
    good = results.model_copy(update={"sizes": results.sizes[:1]})
    assert "is met at every size" in section(good)
    assert "is met at every size" not in section(results)


def test_a_page_keeps_all_that_is_outside_its_marks(results: Results) -> None:
    page = f"before\n{BEGIN}\nold figures\n{END}\nafter\n"
    written = with_section(page, results)
    assert written.startswith(f"before\n{BEGIN}\n")
    assert written.endswith(f"{END}\nafter\n")
    assert "old figures" not in written
    assert with_section(written, results) == written


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}\n{BEGIN}"])
def test_a_page_without_its_marks_is_refused(page: str, results: Results) -> None:
    with pytest.raises(ValueError, match="Restore them"):
        with_section(page, results)


def test_what_was_not_measured_is_called_so() -> None:
    assert with_section(f"{BEGIN}{END}", None) == f"{BEGIN}\n\n{NOT_MEASURED}\n\n{END}"


def test_the_committed_page_has_its_marks() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert with_section(page, None).count(NOT_MEASURED) == 1


def test_columns_of_a_table_are_aligned() -> None:
    lines = table(["seconds", "1 node"], [["a", "1.0"], ["a long name", "100.0"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|:------------|-------:|"


def test_bars_are_as_long_as_the_time_they_stand_for(results: Results) -> None:
    root = ElementTree.fromstring(stacked_bars(results))
    told: dict[str, float] = {}
    for bar in root.iter(f"{SVG}rect"):
        title = bar.find(f"{SVG}title")
        if title is not None and title.text is not None:
            told[title.text] = float(bar.attrib["width"])
    assert told["configure: 52.0 s"] / told["apply: 8.0 s"] == pytest.approx(52 / 8, rel=0.01)
    assert told["configure: 50.0 s"] < told["configure: 52.0 s"]


def test_pieces_of_a_bar_add_up_to_the_run(results: Results) -> None:
    one = results.sizes[1]
    assert sum(seconds for _, seconds in flow_parts(one)) == pytest.approx(3.0 + 7 + 8.0 + 30.0)
    assert sum(seconds for _, seconds in bare_parts(one)) == pytest.approx(31.0)


def test_a_picture_loads_nothing_from_outside(results: Results) -> None:
    svg = stacked_bars(results)
    assert "script" not in svg
    assert "href" not in svg
    assert stacked_bars(results) == svg


def test_results_are_read_as_they_were_stored(results: Results, tmp_path: Path) -> None:
    results.store(tmp_path / "new" / "results.json")
    text = (tmp_path / "new" / "results.json").read_text(encoding="utf-8")
    assert Results.model_validate_json(text) == results


@pytest.mark.parametrize("nodes", SIZES)
def test_every_size_is_a_valid_spec_with_that_many_machines(nodes: int) -> None:
    assert len(machines(parse_spec(spec(nodes)))) == nodes
