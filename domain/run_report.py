"""What a run leaves behind for people: its outcome, times, machines and checks, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from domain.phases import Phase

Row = Mapping[str, str]


@dataclass(frozen=True)
class RunReport:
    """Everything that the report page shows; holds names and figures and never a value."""

    title: str
    outcome: str
    """One word: succeeded, unchanged or failed."""
    summary: str
    run_id: str
    environment: str
    cluster: str
    virtual_ip: str
    phases: Sequence[Phase]
    plan_hash: str = ""
    machines: Sequence[Row] = field(default_factory=tuple)
    """name, role, hypervisor, address, version, state."""
    hosts: Sequence[Row] = field(default_factory=tuple)
    """What the configuration did to each host."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """System to what changed in it, as `0 of 157 objects`."""
    checks: Sequence[Row] = field(default_factory=tuple)
    """check, result, detail."""
    next_steps: Sequence[str] = field(default_factory=tuple)

    @property
    def seconds(self) -> float:
        """Duration of all phases."""
        return round(sum(phase.seconds for phase in self.phases), 1)
