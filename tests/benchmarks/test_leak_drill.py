"""What the benchmark's page says of the leak drill follows from its figures alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PAGE
from benchmarks.leak_drill import FIGURES
from benchmarks.leak_drill_figures import (
    BEGIN,
    END,
    NOT_MEASURED,
    DrillFigures,
    DrillResults,
    drill_section,
    read_drills,
    with_drill_section,
)
from benchmarks.leak_drill_picture import growth_picture
from benchmarks.leak_drill_secrets import PARTS, Drill, policy
from benchmarks.results import FlowTimes, Machine
from blocks.rotation.registry import check_secrets
from domain.rotation.policy import parse_policy
from lab.bare_services import BareRedis
from lab.layout import Layout

MACHINE = Machine(
    cores=2,
    memory_gib=24.0,
    kernel="6.1.0",
    architecture="x86_64",
    measured_on="2026-11-27",
    versions={"OpenBao": "2.5.0"},
)


def drill(secrets: int, seconds: float, **failures: int) -> DrillFigures:
    return DrillFigures(
        classes=dict.fromkeys(PARTS.values(), secrets // len(PARTS)),
        times=FlowTimes(
            start_seconds=3.0,
            phases={"preflight": 2.0, "gate": 0.01, "rotate": seconds - 10.0},
            whole_seconds=seconds,
        ),
        load_average=0.5,
        class_seconds=dict.fromkeys(PARTS.values(), 2.5),
        **{
            name: failures.get(name, 0)
            for name in ("not_rotated", "not_proved", "old_accepted", "new_refused")
        },
    )


def results(*drills: DrillFigures) -> DrillResults:
    return DrillResults(machine=MACHINE, drills=list(drills))


def test_the_table_tells_each_number_of_secrets_in_order() -> None:
    text = drill_section(results(drill(2000, 900.0), drill(20, 30.0), drill(200, 120.0)))
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    # A phase that took no time is not shown.
    told = ["secrets", "classes", "seconds", "for each", "failures", "load before"]
    assert rows[0] == [*told, "preflight", "rotate"]
    assert rows[2] == ["20", "5", "30.0", "1.50", "0", "0.5", "2.0", "20.0"]
    assert rows[3] == ["200", "5", "120.0", "0.60", "0", "0.5", "2.0", "110.0"]
    assert rows[4] == ["2,000", "5", "900.0", "0.45", "0", "0.5", "2.0", "890.0"]
    assert ["`redis-acl-user`", "2.50", "2.50", "2.50"] in rows


def test_growth_is_told_from_the_smallest_to_the_largest() -> None:
    text = drill_section(results(drill(20, 30.0), drill(200, 120.0)))
    assert "10 times as many secrets take 4.0 times as long" in text
    assert "20 s and 0.50 s for each secret" in text
    assert "does not show how time grows" in drill_section(results(drill(20, 30.0)))


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (drill(200, 599.9), "10 minutes, is met"),
        (drill(200, 600.0), "10 minutes, is missed"),
        (drill(200, 60.0, old_accepted=1), "10 minutes, is missed"),
        (drill(200, 60.0, not_proved=1), "10 minutes, is missed"),
        (drill(20, 60.0), "were not measured"),
    ],
)
def test_the_goal_is_met_only_in_time_and_without_a_failure(
    figures: DrillFigures, said: str
) -> None:
    assert said in drill_section(results(figures))


def test_every_kind_of_failure_is_counted() -> None:
    figures = drill(20, 1.0, not_rotated=1, not_proved=10, old_accepted=100, new_refused=1000)
    assert figures.failures == 1111


def test_only_what_lies_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    written = with_drill_section(page, results(drill(20, 30.0)))
    assert written.startswith(f"before\n{BEGIN}\n")
    assert written.endswith(f"{END}\nafter\n")
    assert "old\n" not in written
    assert (
        with_drill_section(written, None) == f"before\n{BEGIN}\n\n{NOT_MEASURED}\n\n{END}\nafter\n"
    )


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}\n{BEGIN}"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="Restore them"):
        with_drill_section(page, None)


def test_the_committed_page_is_what_the_committed_figures_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_drill_section(page, read_drills(FIGURES)) == page


def test_figures_are_read_as_they_were_stored(tmp_path: Path) -> None:
    results(drill(20, 30.0)).store(tmp_path / "new" / "drill.json")
    assert read_drills(tmp_path / "new" / "drill.json") == results(drill(20, 30.0))
    assert read_drills(tmp_path / "none.json") is None


def some_drill(count: int) -> Drill:
    layout = Layout("trial", Path("/nonexistent"), 14280)
    return Drill(layout, BareRedis(Path("/nonexistent"), 6379, ""), count)


def test_every_secret_of_a_drill_falls_under_a_rule_of_its_class() -> None:
    made = parse_policy(policy(), list(PARTS.values()))
    found: list[Any] = [made.resolve(path) for path in some_drill(20).paths]
    kinds = [ruled.secret.kind for ruled in found]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(PARTS.values(), 4)
    check_secrets(ruled.secret for ruled in found)


@pytest.mark.parametrize("count", [0, 7])
def test_a_number_that_does_not_share_out_over_the_classes_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="do not share out"):
        some_drill(count)


def test_a_time_that_grows_as_the_secrets_do_is_a_straight_line() -> None:
    svg = growth_picture(results(drill(2000, 3000.0), drill(20, 30.0), drill(200, 300.0)))
    places = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle")
    ]
    first, second, third = places
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.2)
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.2)
    assert first[1] > second[1]  # more seconds are higher up
    assert "script" not in svg
    assert "href" not in svg
