from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from domain.phases import Phase, PhaseState
from domain.run_report import RunReport
from tasks.reports.pictures import as_data_uri, timing_plot, topology
from tasks.reports.tasks import report_markdown

PHASES = [
    Phase("plan", PhaseState.DONE, 2.5, "5 to create"),
    Phase("apply", PhaseState.FAILED, 31.0, "a | in the text"),
]
MACHINES = [
    {
        "name": f"demo-server-{n}",
        "role": "server",
        "hypervisor": f"pve{n}",
        "address": f"10.0.0.{n}",
        "version": "v1",
        "state": "Ready",
    }
    for n in (1, 2, 3)
]


def _report(**changed: object) -> RunReport:
    given: dict[str, object] = {
        "title": "Bootstrap of demo",
        "outcome": "succeeded",
        "summary": "All is well.",
        "run_id": "run-1",
        "environment": "lab",
        "cluster": "demo",
        "virtual_ip": "10.0.0.9",
        "phases": PHASES,
        "machines": MACHINES,
    }
    return RunReport(**{**given, **changed})  # type: ignore[arg-type]


def test_the_pictures_are_well_formed_and_name_what_they_show() -> None:
    timing = ElementTree.fromstring(timing_plot(PHASES))
    drawn = ElementTree.fromstring(topology(MACHINES, "10.0.0.9", "demo"))
    assert {"plan", "apply", "31.0 s"} <= set(timing.itertext())
    assert {"pve1", "demo-server-3"} <= set(drawn.itertext())


def test_a_name_with_signs_of_markup_stays_text() -> None:
    machine = {**MACHINES[0], "name": "<script>alert(1)</script>"}
    picture = topology([machine], "10.0.0.9", "demo")
    assert "<script>" not in picture
    assert "<script>alert(1)</script>" in set(ElementTree.fromstring(picture).itertext())


def test_pictures_of_the_same_data_are_equal() -> None:
    assert as_data_uri(timing_plot(PHASES)) == as_data_uri(timing_plot(PHASES))


def test_the_report_names_every_phase_and_machine() -> None:
    text = report_markdown(_report())
    for wanted in ("| plan | done | 2.5 |", "a / in the text", "| demo-server-2 |", "run `run-1`"):
        assert wanted in text


def test_a_report_of_a_failed_run_says_what_to_do_next() -> None:
    text = report_markdown(_report(outcome="failed", next_steps=["Run it again."], machines=[]))
    assert "**Failed**" in text
    assert "- Run it again." in text
    assert "## Machines" not in text
