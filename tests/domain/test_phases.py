from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from domain.phases import (
    BOOTSTRAP_WEIGHTS,
    DECOMMISSION_WEIGHTS,
    PhaseState,
    RunProgress,
    unfinished,
)


def test_the_weights_of_each_flow_are_percentages() -> None:
    assert sum(BOOTSTRAP_WEIGHTS.values()) == 100
    assert sum(DECOMMISSION_WEIGHTS.values()) == 100


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30))
def test_progress_never_goes_backwards(fractions: list[float]) -> None:
    progress = RunProgress(BOOTSTRAP_WEIGHTS)
    seen = [progress.percent]
    for phase in progress.phases.values():
        phase.state = PhaseState.RUNNING
        for fraction in sorted(fractions):
            phase.fraction = fraction
            seen.append(progress.percent)
        phase.state = PhaseState.DONE
        seen.append(progress.percent)
    assert seen == sorted(seen)
    assert seen[-1] == 100.0


def test_a_failed_phase_is_the_current_one_and_among_the_unfinished() -> None:
    progress = RunProgress({"plan": 50, "apply": 50})
    progress.phases["plan"].state = PhaseState.DONE
    progress.phases["apply"].state = PhaseState.FAILED
    assert progress.current is progress.phases["apply"]
    assert unfinished(progress) == ["apply"]
    assert progress.percent == 50.0
